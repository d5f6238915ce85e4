"""Answers to questions as SQuAD has them: texts, and where they begin in the context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise

from hifi.data.characters import OTHER_UNITS, is_inside_character
from hifi.errors import quoted

MISSING = "the answers are missing: empty lists say that there is none"
_PARTS = ("text", "answer_start")
_FORMS = "the answers must be lists text and answer_start, or a list of objects with both"


@dataclass(frozen=True)
class ContextAnswer:
    """An answer, as a part of its context.

    Attributes:
        start: the first character, from 0.
        text: as the context has it, without white space at its ends.
    """

    start: int
    text: str

    @property
    def end(self) -> int:
        """One after the last character."""
        return self.start + len(self.text)


def read_answers(context: str, given: object) -> list[ContextAnswer]:
    """Check a row's answers.

    Answers lose the white space at their ends.

    Args:
        context: the row's.
        given: ``{"text": [...], "answer_start": [...]}``, or a list of objects with a ``text`` and
            an ``answer_start`` each; empty lists if the context has no answer.

    Raises:
        ValueError: they are missing or have another form; an answer is empty, not in the context,
            or begins elsewhere in it; or its ends are inside a character.
    """
    return [_read(context, text, start) for text, start in _pairs(given)]


def _pairs(given: object) -> list[tuple[object, object]]:
    """Return the text and the start of each answer."""
    if given is None:
        raise ValueError(MISSING)
    if isinstance(given, Mapping):
        texts, starts = (given.get(name) for name in _PARTS)
        if not isinstance(texts, list) or not isinstance(starts, list):
            raise ValueError(_FORMS)  # noqa: TRY004 - the row is at fault
        if len(texts) != len(starts):
            raise ValueError(f"the row has {len(texts)} texts of answers and {len(starts)} starts")
        return list(zip(texts, starts, strict=True))
    if not isinstance(given, list) or not all(isinstance(each, Mapping | None) for each in given):
        raise ValueError(_FORMS)
    text, start = _PARTS
    return [(each.get(text), each.get(start)) for each in (entry or {} for entry in given)]


def _read(context: str, text: object, start: object) -> ContextAnswer:
    if not isinstance(text, str) or not text.strip():
        raise ValueError("an answer is empty; a row without an answer has empty lists")
    if type(start) is not int:
        raise ValueError(f"the answer {quoted(text)} has no whole number as answer_start")
    if start < 0 or context[start : start + len(text)] != text:
        raise ValueError(_why_elsewhere(context, text, start))
    answer = ContextAnswer(start + len(text) - len(text.lstrip()), text.strip())
    if any(is_inside_character(context, place) for place in (answer.start, answer.end)):
        raise ValueError(f"the answer {quoted(text)} begins or ends inside a character")
    return answer


def _why_elsewhere(context: str, text: str, start: int) -> str:
    """Return why an answer is not where it should begin."""
    places = [place for place in range(len(context)) if context.startswith(text, place)]
    if not places:
        return f"the answer {quoted(text)} is not in the context"
    nearest = min(places, key=lambda place: abs(place - start))
    reason = f"the answer {quoted(text)} does not begin at {start}, but at {nearest}"
    for unit, width in OTHER_UNITS.items():
        counted = accumulate(sum(map(width, context[a:b])) for a, b in pairwise([0, *places]))
        if start in counted:
            return f"{reason}; {start} counts {unit}: convert it to characters"
    return reason
