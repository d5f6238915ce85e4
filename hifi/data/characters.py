"""Where a text may be divided: between characters as people see them, and between words."""

from __future__ import annotations

import unicodedata

_JOINER = "\u200d"
_MARKS = frozenset({"Mn", "Mc", "Me"})
_IN_WORDS = frozenset({"Lu", "Ll", "Lt", "Nd"})  # scripts with upper and lower case use spaces
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_REGIONS = range(0x1F1E6, 0x1F200)  # two of them are a flag


def is_inside_character(text: str, place: int) -> bool:
    """Return whether a place is inside what people see as one character: a letter and its accent.

    Args:
        text: the text.
        place: between the characters ``place - 1`` and ``place``, as Python counts them.
    """
    if not 0 < place < len(text):
        return False
    before, after = text[place - 1], text[place]
    if before == "\r" and after == "\n":
        return True
    if _JOINER in (before, after) or unicodedata.category(after) in _MARKS:
        return True
    if ord(after) in _SKIN_TONES:
        return True
    if ord(after) not in _REGIONS:
        return False
    flags = 0
    while flags < place and ord(text[place - 1 - flags]) in _REGIONS:
        flags += 1
    return flags % 2 == 1


def is_inside_word(text: str, place: int) -> bool:
    """Return whether a place is between two letters or digits of a script that divides words.

    These are the scripts with upper and lower case, as the Latin one. In others, as the Chinese
    one, a word may end anywhere.

    Args:
        text: the text.
        place: as in :func:`is_inside_character`.
    """
    if not 0 < place < len(text):
        return False
    if is_inside_character(text, place):
        return True
    start = place - 1
    while start and unicodedata.category(text[start]) in _MARKS:
        start -= 1
    return all(unicodedata.category(each) in _IN_WORDS for each in (text[start], text[place]))
