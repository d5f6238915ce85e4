"""hifi.data.tags: schemes, what may follow what, and the entities that tags mark."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hifi.data.tags import (
    EDGE,
    Entity,
    find_entities,
    find_scheme,
    first_misplaced,
    parse_tag,
    tag_labels,
    types_of,
    write_tags,
)

Pairs = dict[tuple[str, str], int]

BIO = ["B-a I-a O B-b", "O B-a B-a I-a"]
IOB1 = ["I-a I-a B-a I-a O", "I-b B-b"]
BILOU = ["B-a I-a L-a O U-b", "U-a B-b L-b"]
BIOES = ["B-a I-a E-a O S-b", "S-a B-b E-b"]
BMES = ["B-a M-a E-a O S-b", "S-a B-b E-b"]


def pairs_of(rows: list[str]) -> Pairs:
    """Return the pairs of rows of tags that are written with spaces between them."""
    found: Pairs = {}
    for row, tags in enumerate(rows, start=1):
        words = tags.split()
        for pair in zip((EDGE, *words), (*words, EDGE), strict=True):
            found.setdefault(pair, row)
    return found


def misplaced(row: str, *, scheme: str) -> str | None:
    problem = first_misplaced(pairs_of([row]), scheme=scheme)
    return None if problem is None else problem.reason


class TestParseTag:
    @pytest.mark.parametrize(
        ("tag", "letter", "kind"),
        [
            ("B-person", "B", "person"),
            ("I-O", "I", "O"),
            ("E-x", "L", "x"),
            ("S-x", "U", "x"),
            ("M-x", "I", "x"),
            ("B-B-x", "B", "B-x"),
            ("B-two\nlines", "B", "two\nlines"),
            ("person", "", "person"),
            ("O", "", "O"),
            ("B-", "", "B-"),
            ("b-person", "", "b-person"),
            ("PRP-x", "", "PRP-x"),
        ],
    )
    def test_divides_a_prefix_from_a_type(self, tag: str, letter: str, kind: str):
        assert parse_tag(tag) == (letter, kind)


class TestFindScheme:
    @pytest.mark.parametrize(
        ("rows", "scheme"),
        [
            (BIO, "BIO"),
            (["O O", "B-a"], "BIO"),
            (IOB1, "IOB1"),
            (["I-a B-a I-b"], "IOB1"),
            (["I-a B-b"], "BIO"),
            (BILOU, "BILOU"),
            (BIOES, "BILOU"),
            (BMES, "BILOU"),
            (["U-a O"], "BILOU"),
            (["I-a I-a O I-b"], "IO"),
            (["a a O b"], "IO"),
            (["NOUN VERB", "DET NOUN"], "WORDS"),
            (["O O"], "IO"),
        ],
    )
    def test_is_told_by_the_tags_that_follow_each_other(self, rows: list[str], scheme: str):
        assert find_scheme(pairs_of(rows)) == scheme

    def test_reads_the_name_of_no_entity_even_if_every_word_is_in_one(self):
        pairs = pairs_of(["a b", "a"])
        assert find_scheme(pairs) == "WORDS"
        assert find_scheme(pairs, names=("O", "a", "b")) == "IO"

    @pytest.mark.parametrize(
        ("rows", "row"),
        [
            (["B-a O b"], 1),
            (["B-a", "O", "b"], 3),
            (["B-a I-a B-"], 1),
            (["I-a O", "a"], 2),
            (["U-a", "O O", "a a"], 3),
        ],
    )
    def test_finds_a_tag_without_a_prefix_misplaced_among_others(self, rows: list[str], row: int):
        pairs = pairs_of(rows)
        problem = first_misplaced(pairs, scheme=find_scheme(pairs))
        assert problem is not None
        assert (problem.row, "has no prefix" in problem.reason) == (row, True)


class TestFirstMisplaced:
    @pytest.mark.parametrize(
        ("rows", "scheme"),
        [
            (BIO, "BIO"),
            (IOB1, "IOB1"),
            (BILOU, "BILOU"),
            (BIOES, "BILOU"),
            (BMES, "BILOU"),
            (["I-a I-a O I-b I-a"], "IO"),
            (["a a O b"], "IO"),
            (["NOUN VERB NOUN"], "WORDS"),
        ],
    )
    def test_is_none_in_sound_rows(self, rows: list[str], scheme: str):
        assert first_misplaced(pairs_of(rows), scheme=scheme) is None

    @pytest.mark.parametrize(
        ("row", "scheme", "reason"),
        [
            ("I-a", "BIO", "the tag 'I-a' begins a row: an entity begins with 'B-a'"),
            ("O I-a", "BIO", "the tag 'I-a' follows 'O': an entity begins with 'B-a'"),
            ("B-a I-b", "BIO", "the tag 'I-b' follows 'B-a': an entity begins with 'B-b'"),
            ("I-a", "BILOU", "the tag 'I-a' begins a row"),
            ("L-a", "BILOU", "the tag 'L-a' begins a row"),
            ("U-a L-a", "BILOU", "the tag 'L-a' follows 'U-a'"),
            ("B-a L-a L-a", "BILOU", "the tag 'L-a' follows 'L-a'"),
            ("B-a L-a I-a", "BILOU", "the tag 'I-a' follows 'L-a'"),
            ("B-a E-b", "BILOU", "the tag 'E-b' follows 'B-a': an entity begins with 'B-b'"),
            (
                "B-a",
                "BILOU",
                "the tag 'B-a' ends a row: an entity of several words ends with 'L-a'",
            ),
            ("B-a O", "BILOU", "the tag 'B-a' is followed by 'O'"),
            ("B-a I-a B-a L-a", "BILOU", "the tag 'I-a' is followed by 'B-a'"),
            ("B-a M-a S-a", "BILOU", "the tag 'M-a' is followed by 'S-a'"),
            ("O a", "BIO", "the tag 'a' has no prefix"),
            ("a I-a", "BILOU", "the tag 'a' has no prefix"),
            ("a", "IOB1", "the tag 'a' has no prefix"),
        ],
    )
    def test_has_the_reason(self, row: str, scheme: str, reason: str):
        assert reason in (misplaced(row, scheme=scheme) or "")

    def test_is_the_lowest_row(self):
        pairs = {("O", "I-b"): 5, (EDGE, "I-a"): 3, (EDGE, "O"): 1}
        problem = first_misplaced(pairs, scheme="BIO")
        assert problem is not None
        assert (problem.row, "'I-a'" in problem.reason) == (3, True)


class TestFindEntities:
    @pytest.mark.parametrize(
        ("row", "scheme", "expected"),
        [
            ("B-a I-a O B-b", "BIO", [(0, 1, "a"), (3, 3, "b")]),
            ("B-a B-a I-a", "BIO", [(0, 0, "a"), (1, 2, "a")]),
            ("I-a I-a B-a I-b", "IOB1", [(0, 1, "a"), (2, 2, "a"), (3, 3, "b")]),
            ("I-a O I-a", "BIO", [(0, 0, "a"), (2, 2, "a")]),
            ("B-a I-a L-a U-a", "BILOU", [(0, 2, "a"), (3, 3, "a")]),
            ("B-a E-a S-b S-b", "BILOU", [(0, 1, "a"), (2, 2, "b"), (3, 3, "b")]),
            ("B-a M-a E-a B-a E-a", "BILOU", [(0, 2, "a"), (3, 4, "a")]),
            ("U-a I-a", "BILOU", [(0, 0, "a"), (1, 1, "a")]),
            ("a a O b a", "IO", [(0, 1, "a"), (3, 3, "b"), (4, 4, "a")]),
            ("I-a I-a I-b", "IO", [(0, 1, "a"), (2, 2, "b")]),
            ("NOUN NOUN O", "WORDS", [(0, 0, "NOUN"), (1, 1, "NOUN"), (2, 2, "O")]),
            ("B-O I-O O I-O", "BIO", [(0, 1, "O"), (3, 3, "O")]),
            ("O O", "BIO", []),
        ],
    )
    def test_of_every_scheme(self, row: str, scheme: str, expected: list[tuple[int, int, str]]):
        assert find_entities(row.split(), scheme=scheme) == [Entity(*each) for each in expected]


@st.composite
def entities_of_rows(draw: st.DrawFn) -> tuple[list[Entity], int]:
    """Draw the entities of a row, in the order of its words, and the number of words."""
    entities: list[Entity] = []
    words = draw(st.integers(0, 2))
    for gap, length, kind in draw(
        st.lists(
            st.tuples(st.integers(0, 2), st.integers(1, 3), st.sampled_from(["a", "b", "O", "B-a"]))
        )
    ):
        entities.append(Entity(words + gap, words + gap + length - 1, kind))
        words += gap + length
    return entities, words + draw(st.integers(0, 2))


class TestWriteTags:
    def test_of_two_entities_next_to_each_other(self):
        entities = [Entity(0, 1, "a"), Entity(2, 2, "a")]
        tags = write_tags(entities, words=4, scheme="BIO")
        assert tags == ["B-a", "I-a", "B-a", "O"]

    @given(entities_of_rows())
    def test_then_finding_them_is_the_identity(self, drawn: tuple[list[Entity], int]):
        entities, words = drawn
        tags = write_tags(entities, words=words, scheme="BIO")
        assert len(tags) == words
        assert find_entities(tags, scheme="BIO") == entities
        assert first_misplaced(pairs_of([" ".join(tags)]), scheme="BIO") is None

    @given(st.lists(st.sampled_from(["NOUN", "VERB", "O"])))
    def test_of_words_are_their_types(self, tags: list[str]):
        found = find_entities(tags, scheme="WORDS")
        assert write_tags(found, words=len(tags), scheme="WORDS") == tags


class TestTypes:
    def test_of_all_schemes_but_words_leave_out_the_tag_of_no_entity(self):
        tags = ["O", "S-b", "B-a", "I-a"]
        assert types_of(tags, scheme="BILOU") == ["a", "b"]
        assert types_of(["O", "NOUN"], scheme="WORDS") == ["NOUN", "O"]

    def test_have_two_classes_of_words_each(self):
        assert tag_labels(["a", "b"]) == ("O", "B-a", "I-a", "B-b", "I-b")

    def test_keep_the_order_of_names_that_are_just_these_classes(self):
        names = ("B-a", "I-a", "O")
        assert tag_labels(["a"], names=names) == names
        assert tag_labels(["a"], names=(*names, "U-a")) == ("O", "B-a", "I-a")
