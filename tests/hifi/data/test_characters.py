"""hifi.data.characters: places inside what people see as one character, and inside words."""

from __future__ import annotations

import unicodedata

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from hifi.data.characters import OTHER_UNITS, is_inside_character, is_inside_word

FAMILY = "👨‍👩‍👧"
WALES = "🏴\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f"

# What stands in texts, each a character as people see it.
SEEN = (
    "a",
    "Я",
    "e\u0301",
    "o\u0302\u0323",
    " ",
    ".",
    "7",
    "中",
    "ش",
    "ب\u0650",
    "\u05d1\u05bc\u05b0",
    "क\u094d\u200dष",
    "की",
    "ก\u0e33",
    "\u1112\u1161\u11ab",
    "한",
    "\r\n",
    "\n",
    FAMILY,
    WALES,
    "🇩🇪",
    "👍🏽",
    "❤\ufe0f",
    "1\ufe0f\u20e3",
    "🙂\u200d↔\ufe0f",
    "ﾊﾞ",
)


def inside(text: str) -> list[int]:
    return [place for place in range(len(text) + 1) if is_inside_character(text, place)]


class TestIsInsideCharacter:
    @pytest.mark.parametrize("text", SEEN)
    def test_of_one_character_is_every_place_but_its_ends(self, text: str):
        assert inside(text) == list(range(1, len(text)))

    @pytest.mark.parametrize(
        ("text", "places"),
        [
            ("ab", []),
            ("", []),
            ("e\u0301a\u0301", [1, 3]),
            ("🇩🇪🇫🇷", [1, 3]),
            ("x🇩🇪🇫🇷", [2, 4]),
            ("🇩🇪🇫", [1]),
            ("👍🏽👍", [1]),
            ("\n\r", []),
            (FAMILY + "x", [1, 2, 3, 4]),
            ("سنة س\u200d.", [5]),
            ("سنة س\u200d ب", [5]),
        ],
    )
    def test_of_several_characters_are_the_places_in_each(self, text: str, places: list[int]):
        assert inside(text) == places

    @pytest.mark.parametrize("place", [-1, 0, 2, 3])
    def test_is_no_place_outside_of_the_text_or_at_its_ends(self, place: int):
        assert not is_inside_character("e\u0301", place)

    @given(st.lists(st.sampled_from(SEEN)).map("".join))
    def test_is_every_place_that_divides_a_grapheme(self, text: str):
        ends = {found.end() for found in regex.finditer(r"\X", text)} | {0}
        assert inside(text) == [place for place in range(len(text)) if place not in ends]


class TestIsInsideWord:
    @pytest.mark.parametrize(
        ("text", "places"),
        [
            ("Ada wrote", [1, 2, 5, 6, 7, 8]),
            ("Дя яй", [1, 4]),
            ("a1", [1]),
            ("e\u0301a", [1, 2]),
            ("a-b", []),
            ("中国人", []),
            ("ada中", [1, 2]),
            ("2024年", [1, 2, 3]),
            ("שלום", []),
            ("سلام", []),
            ("", []),
        ],
    )
    def test_depends_on_the_script(self, text: str, places: list[int]):
        found = [place for place in range(len(text) + 1) if is_inside_word(text, place)]
        assert found == places

    def test_of_a_decomposed_text_is_the_same_as_of_a_composed_one(self):
        composed = "Ĝis, ĉĉ ö"
        decomposed = unicodedata.normalize("NFD", composed)
        seen = [
            len(unicodedata.normalize("NFD", composed[:place])) for place in range(len(composed))
        ]
        for place, other in enumerate(seen):
            assert is_inside_word(composed, place) == is_inside_word(decomposed, other)


class TestOtherUnits:
    @pytest.mark.parametrize(
        ("character", "units", "size"),
        [("a", 1, 1), ("é", 1, 2), ("世", 1, 3), ("👍", 2, 4), ("\ud83d", 1, 3)],
    )
    def test_count_a_character_as_often_as_it_takes(self, character: str, units: int, size: int):
        found = {name: width(character) for name, width in OTHER_UNITS.items()}
        assert found == {"UTF-16 units": units, "bytes": size}
