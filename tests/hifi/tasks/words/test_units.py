"""hifi.tasks.words.units with the kinds of tokenizers that text models have."""

from __future__ import annotations

import unicodedata
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hifi.tasks.words.units import WordUnits, find_given_units, find_units
from tests.tiny_tokenizers import KINDS

EACH = pytest.mark.parametrize("kind", KINDS)
CODER = "\U0001f469\U0001f3fd\u200d\U0001f4bb"  # a woman, a skin tone, a joiner and a computer
# Latin with accents of both kinds, Cyrillic, Hebrew and Arabic with vowel signs, Chinese, Thai.
CHARACTERS = "abL1é\u0301д א\u05b8لس\u064e世界ก\u0e34.,' \u00a0" + CODER
TEXT = st.text(st.sampled_from(CHARACTERS), max_size=12)


@cache
def tokenizer_of(kind: str):
    return KINDS[kind]()


def offsets_of(kind: str, text: str) -> list[tuple[int, int]]:
    """Return the characters of the tokens of a text, without special tokens."""
    encoded = tokenizer_of(kind)(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoded["offset_mapping"]


def words_of(kind: str, text: str) -> list[str]:
    units = find_units(text, offsets_of(kind, text))
    return [text[start:end] for start, end in zip(units.starts, units.ends, strict=True)]


def triples(units: WordUnits) -> list[tuple[int, ...]]:
    columns = (units.tokens.tolist(), units.starts.tolist(), units.ends.tolist())
    return list(zip(*columns, strict=True))


def glued(text: str, place: int) -> bool:
    """Return whether no word ends at a place, as the documentation says it."""
    before, after = text[place - 1], text[place]
    if after.isspace():
        return False
    if before == "\u200d" and unicodedata.category(after)[0] not in "ZPC":
        return True
    if after == "\u200d" or unicodedata.combining(after) or after == "\U0001f3fd":
        return True
    if unicodedata.category(after) == "Mn":  # Thai vowels have no combining class
        return True
    base = next((c for c in reversed(text[:place]) if unicodedata.category(c) != "Mn"), "\u0301")
    return all(unicodedata.category(each) in ("Lu", "Ll", "Lt", "Nd") for each in (base, after))


def expected_units(text: str, offsets: list[tuple[int, int]]) -> list[tuple[int, ...]]:
    """Find words one character at a time: neighbours are one word if glued or of one token."""
    covers = [
        {place for place in range(*offset) if not text[place].isspace()} for offset in offsets
    ]
    joined = [False] * len(text)  # with the character before
    for place in range(1, len(text)):
        between = [min(cover) < place <= max(cover) for cover in covers if cover]
        joined[place] = glued(text, place) or any(between)
    group = [sum(not each for each in joined[: place + 1]) for place in range(len(text))]
    found: dict[int, list[int]] = {}
    for token, cover in enumerate(covers):
        for place in sorted(cover):
            entry = found.setdefault(group[place], [token, place, place + 1])
            entry[1:] = [min(entry[1], place), max(entry[2], place + 1)]
    for entry in found.values():
        while entry[2] < len(text) and glued(text, entry[2]) and not _is_cased(text[entry[2]]):
            entry[2] += 1  # marks that the tokenizer leaves out
    return [tuple(entry) for entry in found.values()]


def _is_cased(character: str) -> bool:
    return unicodedata.category(character) in ("Lu", "Ll", "Lt", "Nd")


class TestFindUnits:
    @EACH
    @given(text=TEXT)
    def test_are_those_of_a_search_by_characters(self, kind: str, text: str):
        offsets = offsets_of(kind, text)
        assert triples(find_units(text, offsets)) == expected_units(text, offsets)

    @EACH
    @given(text=TEXT)
    def test_do_not_overlap_and_have_no_space_at_an_end(self, kind: str, text: str):
        units = find_units(text, offsets_of(kind, text))
        assert (units.starts < units.ends).all()
        assert (units.ends[:-1] <= units.starts[1:]).all()
        assert (units.tokens[:-1] < units.tokens[1:]).all()
        words = [text[start:end] for start, end in zip(units.starts, units.ends, strict=True)]
        assert words == [word.strip() for word in words]

    @EACH
    @pytest.mark.parametrize("word", ["London", "Ada1", "caf\u00e9s", "cafe\u0301s", "дом", "2024"])
    def test_a_word_of_a_script_with_upper_case_is_one(self, kind: str, word: str):
        assert words_of(kind, f"a {word}, b") == ["a", word, ",", "b"]

    @EACH
    @pytest.mark.parametrize("character", ["e\u0301", "e\u0301\u0323", "א\u05b8", CODER])
    def test_ends_behind_what_people_see_as_one_character(self, kind: str, character: str):
        text = f"a {character} b"
        assert words_of(kind, text) == ["a", character, "b"]

    @pytest.mark.parametrize("kind", ["wordpiece", "byte-level", "metaspace"])
    @pytest.mark.parametrize("text", ["世界", "אב", "لس"])
    def test_of_other_scripts_are_the_tokens(self, kind: str, text: str):
        assert words_of(kind, f"a {text}") == ["a", *text]

    @EACH
    def test_of_blanks_there_are_none(self, kind: str):
        assert len(find_units(" \n", offsets_of(kind, " \n"))) == 0

    def test_a_token_with_an_inner_space_is_one(self):
        assert words_of("metaspace-whole", "a in london") == ["a", "in london"]
        assert words_of("metaspace", "a in london") == ["a", "in", "london"]

    def test_the_space_before_a_word_is_no_part_of_it(self):
        """As a tokenizer counts that trims no offsets."""
        units = find_units("a london", [(0, 1), (1, 5), (5, 8)])
        assert triples(units) == [(0, 0, 1), (1, 2, 8)]

    def test_a_mark_behind_a_space_belongs_to_no_word_before_it(self):
        units = find_units("a\u200d b", [(0, 1), (3, 4)])
        assert triples(units) == [(0, 0, 2), (1, 3, 4)]


class TestFindGivenUnits:
    @EACH
    @pytest.mark.parametrize(
        "words",
        [
            ["Ada", "Lovelace", "in", "London", "!"],
            ["caf\u00e9s", "cafe\u0301s", "дом", "世界", "א\u05b8ב", "لس", "ก\u0e34", CODER],
            ["don't", "U.S.", "a/b", "..."],
            ["New York", "in"],
        ],
    )
    def test_every_word_is_one_with_all_its_characters(self, kind: str, words: list[str]):
        text = " ".join(words)
        units = find_given_units(words, offsets_of(kind, text))
        found = [text[start:end] for start, end in zip(units.starts, units.ends, strict=True)]
        assert found == words

    @EACH
    def test_each_is_answered_by_its_first_token(self, kind: str):
        text, starts = "ada world don cafe\u0301", [0, 4, 10, 14]
        offsets = offsets_of(kind, text)
        first = [
            next(
                token
                for token, (begin, end) in enumerate(offsets)
                if end > start and text[begin:end].strip()
            )
            for start in starts
        ]
        assert find_given_units(text.split(), offsets).tokens.tolist() == first

    @pytest.mark.parametrize("kind", ["wordpiece", "wordpiece-cased"])
    def test_one_of_which_nothing_is_read_is_none(self, kind: str):
        words = ["ada", "\u200b", "don", "\u0007"]
        units = find_given_units(words, offsets_of(kind, " ".join(words)))
        assert units.starts.tolist() == [0, 6]

    def test_a_token_over_two_words_is_the_first_ones(self):
        for words, starts in ((["a", "in", "london"], [0, 2, 5]), (["a", "in", "lon"], [0, 2])):
            units = find_given_units(words, offsets_of("metaspace-whole", " ".join(words)))
            assert units.starts.tolist() == starts
