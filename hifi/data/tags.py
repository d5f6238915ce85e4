"""Tags of words: their scheme, what may follow what, and the entities that they mark.

``BIO`` marks the first word of an entity with ``B-`` and the others with ``I-``; in its older form
(``IOB1``) only an entity that directly follows another one of its type begins with ``B-``.
``BILOU`` (also written with E for L and S for U) marks the last word, and entities of one word, as
well. ``IO`` has one tag for each type, with or without ``I-``. In all of them ``O`` is no entity.
``WORDS`` are tags of which every word has one, as parts of speech.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hifi.data.profile import Problem, first_problem
from hifi.errors import quoted

Scheme = Literal["BIO", "IOB1", "BILOU", "IO", "WORDS"]
OUTSIDE = "O"
EDGE = ""  # stands for the place before the first word and after the last one
_PREFIXED = re.compile(r"([BILUESM])-(.+)", re.DOTALL)
_SAME = {"E": "L", "S": "U", "M": "I"}  # letters of BIOES and BMES


@dataclass(frozen=True)
class Entity:
    """Consecutive words of one type.

    Attributes:
        first: the first word, from 0.
        last: the last word.
        type: what they are.
    """

    first: int
    last: int
    type: str


def find_scheme(pairs: Mapping[tuple[str, str], int], *, names: Collection[str] = ()) -> Scheme:
    """Return the scheme of a training split's tags.

    Args:
        pairs: the first row of each pair of tags that follow each other, ``EDGE`` included.
        names: of a column that names its tags, whether they occur or not.

    Returns:
        If some tags have a prefix and others have none, the scheme of those with one; it is then
        not ``IO``, so that the others are misplaced.
    """
    tags = {tag for pair in pairs for tag in pair} - {EDGE, OUTSIDE}
    prefixes = {parse_tag(tag)[0] for tag in tags}
    if not prefixes - {""}:
        has_outside = OUTSIDE in names or any(OUTSIDE in pair for pair in pairs)
        return "IO" if has_outside else "WORDS"
    if prefixes & {"L", "U"}:
        return "BILOU"
    if "B" not in prefixes:
        return "IOB1" if "" in prefixes else "IO"
    begins = any(_begins(*pair) for pair in pairs)
    return "BIO" if begins else "IOB1"


def _begins(before: str, tag: str) -> bool:
    """Return whether a ``B-`` tag begins an entity that ``I-`` could begin as well."""
    return parse_tag(tag)[0] == "B" and parse_tag(before)[1] != parse_tag(tag)[1]


def first_misplaced(pairs: Mapping[tuple[str, str], int], *, scheme: Scheme) -> Problem | None:
    """Return the first row with a tag that the scheme does not allow in its place.

    Args:
        pairs: of a split, as in :func:`find_scheme`.
        scheme: of the training split.
    """
    problems = []
    for (before, tag), row in pairs.items():
        reason = _misplaced(before, tag, scheme=scheme)
        if reason is not None:
            problems.append(Problem(row=row, reason=reason))
    return first_problem(problems)


def _misplaced(before: str, tag: str, *, scheme: Scheme) -> str | None:
    first, second = parse_tag(before), parse_tag(tag)
    is_open = first[0] in ("B", "I") and first[1] == second[1]
    if scheme in ("BIO", "IOB1", "BILOU") and tag not in (EDGE, OUTSIDE) and not second[0]:
        begin = quoted(f"B-{tag}")
        return (
            f"the tag {quoted(tag)} has no prefix, as in {begin}, but other tags of train have one"
        )
    if scheme in ("BIO", "BILOU") and second[0] in ("I", "L") and not is_open:
        where = "begins a row" if before == EDGE else f"follows {quoted(before)}"
        begin = f"B-{second[1]}"
        return f"the tag {quoted(tag)} {where}: an entity begins with {quoted(begin)}"
    if scheme == "BILOU" and first[0] in ("B", "I") and second[0] not in ("I", "L"):
        where = "ends a row" if tag == EDGE else f"is followed by {quoted(tag)}"
        end = quoted(f"L-{first[1]}")
        return f"the tag {quoted(before)} {where}: an entity of several words ends with {end}"
    return None


def find_entities(tags: Sequence[str], *, scheme: Scheme = "BIO") -> list[Entity]:
    """Return the entities that tags mark.

    ``I-`` without a ``B-`` of its type before it begins an entity too, as in seqeval's default mode
    and in conlleval.

    Args:
        tags: of a row's words.
        scheme: that they follow.
    """
    if scheme == "WORDS":
        return [Entity(place, place, tag) for place, tag in enumerate(tags)]
    found: list[Entity] = []
    is_open = False  # whether the next word may continue the last entity
    for place, tag in enumerate(tags):
        letter, kind = ("I", tag) if scheme == "IO" and not parse_tag(tag)[0] else parse_tag(tag)
        if tag == OUTSIDE:
            is_open = False
            continue
        if is_open and letter in ("I", "L") and found[-1].type == kind:
            found[-1] = Entity(found[-1].first, place, kind)
        else:
            found.append(Entity(place, place, kind))
        is_open = letter not in ("L", "U")
    return found


def write_tags(entities: Sequence[Entity], *, words: int, scheme: Scheme) -> list[str]:
    """Return the tags of a row's words: ``BIO``, or the types themselves of ``WORDS``."""
    tags = [OUTSIDE] * words
    for entity in entities:
        for place in range(entity.first, entity.last + 1):
            tags[place] = entity.type if scheme == "WORDS" else _bio(entity, place)
    return tags


def _bio(entity: Entity, place: int) -> str:
    return f"{'B' if place == entity.first else 'I'}-{entity.type}"


def types_of(tags: Collection[str], *, scheme: Scheme) -> list[str]:
    """Return the types of entities among some tags, sorted; of ``WORDS`` the tags."""
    if scheme == "WORDS":
        return sorted(set(tags))
    return sorted({parse_tag(tag)[1] for tag in tags if tag != OUTSIDE})


def tag_labels(types: Sequence[str], *, names: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the classes of words with entities of some types, in the order of the logits.

    Args:
        types: of the entities.
        names: the tags of a column that names them; if they are just these classes, their order is
            kept.
    """
    labels = (OUTSIDE, *(f"{letter}-{each}" for each in types for letter in "BI"))
    return tuple(names) if names is not None and set(names) == set(labels) else labels


def parse_tag(tag: str) -> tuple[str, str]:
    """Return the letter before a tag's type, or an empty text, and the type."""
    found = _PREFIXED.fullmatch(tag)
    if found is None:
        return "", tag
    letter, kind = found.groups()
    return _SAME.get(letter, letter), kind
