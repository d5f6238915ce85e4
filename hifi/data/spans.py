"""Spans of characters with a label, as labelling tools export them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from hifi.data.characters import OTHER_UNITS, is_inside_character, is_inside_word
from hifi.errors import quoted


@dataclass(frozen=True)
class Span:
    """Characters of a text.

    Attributes:
        start: the first character, from 0.
        end: one after the last character.
        label: what they are.
    """

    start: int
    end: int
    label: str


def read_spans(text: str, given: Sequence[Mapping[str, Any] | None] | None) -> list[Span]:
    """Check a row's spans, and return them in the order of the text.

    Spans lose the white space at their ends.

    Args:
        text: the row's text.
        given: objects with ``start``, ``end`` and ``label``, and perhaps with the ``text`` of the
            span; other entries are ignored.

    Raises:
        ValueError: a span has no label, is outside the text, or reversed; it overlaps another one;
            an end is inside a character; or the offsets count bytes or UTF-16 units.
    """
    if given is None:
        raise ValueError("the list of spans is missing")
    entries = [span or {} for span in given]
    spans = sorted((_read(span) for span in entries), key=lambda span: (span.start, span.end))
    texts = {(span["start"], span["end"]): span.get("text") for span in entries}
    reason = _unsound(text, spans, texts)
    if reason is not None:
        unit = _other_unit(text, spans)
        if unit is not None:
            reason += f"; as {unit} all spans would fit: convert them to characters"
        raise ValueError(reason)
    unit = _other_unit(text, spans)
    if unit is not None and any(_cuts_word(text, span) for span in spans):
        raise ValueError(
            f"the offsets seem to count {unit}: in characters they cut words, in {unit} they do not"
        )
    trimmed = [_trim(text, span) for span in spans]
    for before, after in pairwise(trimmed):
        if after.start < before.end:
            raise ValueError(f"the spans {_shown(before)} and {_shown(after)} overlap")
    return trimmed


def _read(span: Mapping[str, Any]) -> Span:
    start, end, label = (span.get(name) for name in ("start", "end", "label"))
    if type(start) is not int or type(end) is not int:
        raise ValueError("a span has no whole numbers as start and end")
    if label is None or not str(label).strip():
        raise ValueError(f"the span {start} to {end} has no label")
    if start >= end:
        raise ValueError(f"the span {start} to {end} is empty or reversed")
    return Span(start, end, str(label))


def _unsound(
    text: str, spans: Sequence[Span], texts: Mapping[tuple[int, int], str | None]
) -> str | None:
    """Return why spans do not fit a text; None if they do."""
    for span in spans:
        shown = _shown(span)
        if span.start < 0 or span.end > len(text):
            return f"the span {shown} is outside the text, which has {len(text)} characters"
        found, stated = text[span.start : span.end], texts[span.start, span.end]
        if stated is not None and stated != found:
            return f"the span {shown} is {quoted(found)}, but its own text is {quoted(stated)}"
        if _is_blank(text, span):
            return f"the span {shown} is only white space"
        for place in (span.start, span.end):
            if is_inside_character(text, place):
                return f"the span {shown} begins or ends inside a character"
    return None


def _other_unit(text: str, spans: Sequence[Span]) -> str | None:
    """Return the unit in which spans would cut no word if it is not characters, else None."""
    if not spans or text.isascii():
        return None
    for name, width in OTHER_UNITS.items():
        place_of, total = {0: 0}, 0
        for place, char in enumerate(text, start=1):
            total += width(char)
            place_of[total] = place
        if total == len(text):
            continue
        converted = [
            replace(span, start=place_of[span.start], end=place_of[span.end])
            for span in spans
            if span.start in place_of and span.end in place_of
        ]
        fits = len(converted) == len(spans) and converted != list(spans)
        if fits and not any(_cuts_word(text, span) or _is_blank(text, span) for span in converted):
            return name
    return None


def _cuts_word(text: str, span: Span) -> bool:
    return is_inside_word(text, span.start) or is_inside_word(text, span.end)


def _is_blank(text: str, span: Span) -> bool:
    return not text[span.start : span.end].strip()


def _trim(text: str, span: Span) -> Span:
    found = text[span.start : span.end]
    start = span.start + len(found) - len(found.lstrip())
    return replace(span, start=start, end=start + len(found.strip()))


def _shown(span: Span) -> str:
    return f"{span.start} to {span.end} ({quoted(span.label)})"
