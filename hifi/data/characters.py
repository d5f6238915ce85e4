"""Where a text may be divided, between characters and between words, and how else it is counted."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping

# The units in which some tools count offsets, and how many of them a character takes.
OTHER_UNITS: Mapping[str, Callable[[str], int]] = {
    "UTF-16 units": lambda character: 1 + (ord(character) > 0xFFFF),
    "bytes": lambda character: len(character.encode(errors="surrogatepass")),
}
_JOINER = "\u200d"
_MARKS = frozenset({"Mn", "Mc", "Me"})
_IN_WORDS = frozenset({"Lu", "Ll", "Lt", "Nd"})  # scripts with upper and lower case use spaces
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_TAGS = range(0xE0020, 0xE0080)  # the rest of a region's flag
_HANGUL = (range(0x1160, 0x1200), range(0xD7B0, 0xD7FC))  # vowels and endings of a syllable
_ATTACHED = frozenset("\u0e33\u0eb3\uff9e\uff9f")  # vowels and marks with a category of letters
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
    if before.isascii() and after.isascii():  # the rest takes ten times as long
        return (before, after) == ("\r", "\n")
    if before == _JOINER and unicodedata.category(after)[0] not in "ZPC":
        return True
    if _continues(after):
        return True
    if ord(after) not in _REGIONS:
        return False
    flags = 0
    while flags < place and ord(text[place - 1 - flags]) in _REGIONS:
        flags += 1
    return flags % 2 == 1


def start_of_character(text: str, place: int) -> int:
    """Return where the character begins inside which a place is, as people see it.

    Tokenizers of bytes divide characters.
    """
    while is_inside_character(text, place):
        place -= 1
    return place


def end_of_character(text: str, place: int) -> int:
    """Return where the character ends inside which a place is, as people see it.

    Some tokenizers read no accents of their own, or not the joiners between emoji.
    """
    while is_inside_character(text, place) and not text[place].isspace():
        place += 1
    return place


def _continues(char: str) -> bool:
    """Return whether a character belongs to the one before it in any case."""
    if char == _JOINER or char in _ATTACHED or unicodedata.category(char) in _MARKS:
        return True
    return any(ord(char) in codes for codes in (_SKIN_TONES, _TAGS, *_HANGUL))


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
