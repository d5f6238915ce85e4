"""hifi.data.spans: spans that fit their text, and the reasons why others do not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hifi.data.spans import Span, read_spans

WORDS = ("Ada", "Женя", "Zoë", "Jose\u0301", "🙂", "👍🏽", "中国", "שלום", "سلام", "in", "x1")


def entry(start: Any, end: Any, label: Any = "x", **others: Any) -> dict[str, Any]:
    return {"start": start, "end": end, "label": label, **others}


def reason_of(text: str, *given_spans: Any) -> str:
    with pytest.raises(ValueError, match=r"\w") as caught:
        read_spans(text, given_spans)
    assert type(caught.value) is ValueError
    return str(caught.value)


def place_of(text: str, part: str) -> dict[str, Any]:
    return entry(text.index(part), text.index(part) + len(part))


class TestSoundSpans:
    def test_are_in_the_order_of_the_text(self):
        text = "Ada wrote to London"
        found = read_spans(text, [entry(13, 19, "place"), entry(0, 3, "person")])
        assert found == [Span(0, 3, "person"), Span(13, 19, "place")]

    def test_may_touch_each_other_and_the_ends_of_the_text(self):
        found = read_spans("AdaBob", [entry(0, 3), entry(3, 6)])
        assert found == [Span(0, 3, "x"), Span(3, 6, "x")]

    def test_lose_the_white_space_at_their_ends(self):
        text = "to \t\u00a0Ada\u3000\n."
        assert read_spans(text, [entry(2, 10)]) == [Span(5, 8, "x")]

    def test_that_only_share_white_space_do_not_overlap(self):
        found = read_spans("Ada Bob", [entry(0, 4), entry(3, 7)])
        assert found == [Span(0, 3, "x"), Span(4, 7, "x")]

    def test_may_cut_words_in_texts_of_ascii(self):
        assert read_spans("unhappy", [entry(2, 7)]) == [Span(2, 7, "x")]

    def test_may_cut_words_beside_others_if_another_unit_explains_nothing(self):
        assert read_spans("é ab", [entry(2, 3)]) == [Span(2, 3, "x")]
        assert read_spans("naïve Überlegung", [entry(6, 10)]) == [Span(6, 10, "x")]

    def test_may_have_their_own_text(self):
        found = read_spans("Ada wrote", [entry(0, 3, text="Ada"), entry(4, 9, text=None)])
        assert found == [Span(0, 3, "x"), Span(4, 9, "x")]

    def test_have_labels_of_other_types_as_texts(self):
        assert read_spans("Ada", [entry(0, 3, 7)]) == [Span(0, 3, "7")]

    def test_may_be_none(self):
        assert read_spans("Ada", []) == []

    @pytest.mark.parametrize(
        ("text", "part"),
        [
            ("كتبت آدا إلى لندن", "لندن"),
            ("هو في القاهرة اليوم", "القاهرة"),
            ("עדה כתבה ללונדון", "לונדון"),
            ("艾达在伦敦写信", "伦敦"),
            ("Женя живёт в Москве", "Москве"),
            ("👨‍👩‍👧 Jose\u0301 ok", "Jose\u0301"),
            ("🇩🇪🇫🇷 flags", "🇫🇷"),
        ],
    )
    def test_of_any_script(self, text: str, part: str):
        (span,) = read_spans(text, [place_of(text, part)])
        assert text[span.start : span.end] == part

    @given(st.lists(st.tuples(st.sampled_from(WORDS), st.booleans()), min_size=1))
    def test_of_whole_words_are_unchanged(self, drawn: list[tuple[str, bool]]):
        text, wanted = "", []
        for word, is_marked in drawn:
            if is_marked:
                wanted.append(Span(len(text), len(text) + len(word), "x"))
            text += word + " "
        assert read_spans(text, [entry(span.start, span.end) for span in wanted]) == wanted


class TestRefusals:
    def test_of_a_missing_list(self):
        with pytest.raises(ValueError, match="the list of spans is missing"):
            read_spans("Ada", None)

    @pytest.mark.parametrize("span", [None, {}, entry(None, 3), entry(0, None), entry(0.0, 3.0)])
    @pytest.mark.parametrize("place", [0, 1])
    def test_of_entries_without_ends(self, span: Any, place: int):
        spans = [entry(0, 3)]
        spans.insert(place, span)
        assert "no whole numbers as start and end" in reason_of("Ada wrote", *spans)

    @pytest.mark.parametrize("label", [None, "", " \t"])
    def test_of_spans_without_a_label(self, label: Any):
        assert reason_of("Ada", entry(0, 3, label)) == "the span 0 to 3 has no label"

    @pytest.mark.parametrize(("start", "end"), [(2, 2), (3, 1), (0, 0), (3, -1)])
    def test_of_empty_and_reversed_spans(self, start: int, end: int):
        reason = reason_of("Ada", entry(start, end))
        assert reason == f"the span {start} to {end} is empty or reversed"

    @pytest.mark.parametrize(("start", "end"), [(-1, 2), (0, 4), (3, 4), (10, 12), (0, 2**62)])
    def test_of_spans_outside_of_the_text(self, start: int, end: int):
        reason = reason_of("Ada", entry(start, end))
        assert (
            reason == f"the span {start} to {end} ('x') is outside the text, which has 3 characters"
        )

    def test_of_a_span_of_white_space(self):
        assert "only white space" in reason_of("Ada \n wrote", entry(3, 6))

    @pytest.mark.parametrize(
        ("first", "second"),
        [((0, 3), (2, 5)), ((0, 9), (4, 6)), ((4, 9), (4, 9)), ((0, 5), (4, 9))],
    )
    def test_of_spans_that_overlap(self, first: tuple[int, int], second: tuple[int, int]):
        for spans in ((first, second), (second, first)):
            reason = reason_of("Ada wrote", *[entry(*span) for span in spans])
            assert "overlap" in reason

    def test_of_a_span_whose_own_text_differs(self):
        reason = reason_of("Ada wrote", entry(0, 3, text="Bob"))
        assert reason == "the span 0 to 3 ('x') is 'Ada', but its own text is 'Bob'"

    @pytest.mark.parametrize(
        ("text", "start", "end"),
        [
            ("Jose\u0301", 0, 4),
            ("o\u0302\u0323 x", 0, 2),
            ("👨‍👩‍👧 x", 0, 1),
            ("👨‍👩‍👧 x", 2, 5),
            ("👍🏽 x", 0, 1),
            ("🇩🇪🇫🇷", 1, 3),
            ("🇩🇪", 1, 2),
            ("❤\ufe0f", 0, 1),
            ("بِب", 0, 1),
            ("שָׁלוֹם", 0, 1),
            ("\u1112\u1161\u11ab", 0, 2),
        ],
    )
    def test_of_ends_inside_a_character(self, text: str, start: int, end: int):
        assert "begins or ends inside a character" in reason_of(text, entry(start, end))

    def test_show_long_labels_short(self):
        assert len(reason_of("Ada", entry(0, 9, "x" * 10_000))) < 500


class TestOtherUnits:
    @staticmethod
    def counted(text: str, part: str, unit: str) -> dict[str, Any]:
        """Return the span of a part in UTF-16 units or in bytes."""
        width = {"utf-16-le": 2, "utf-8": 1}[unit]
        start = len(text[: text.index(part)].encode(unit)) // width
        return entry(start, start + len(part.encode(unit)) // width)

    @pytest.mark.parametrize(
        ("text", "part", "unit", "name"),
        [
            ("🙂 Ada wrote", "Ada", "utf-16-le", "UTF-16 units"),
            ("👍🏽👍🏽 to London", "London", "utf-16-le", "UTF-16 units"),
            ("👨‍👩‍👧 Ada", "Ada", "utf-16-le", "UTF-16 units"),
            ("Женя живёт тут", "живёт", "utf-8", "bytes"),
            ("Zoë met Ada today", "Ada", "utf-8", "bytes"),
            ("Jose\u0301 met Ada today", "Ada", "utf-8", "bytes"),
            ("🙂 Ada wrote", "Ada", "utf-8", "bytes"),
        ],
    )
    def test_are_named_if_they_explain_the_spans(self, text: str, part: str, unit: str, name: str):
        assert name in reason_of(text, self.counted(text, part, unit))

    def test_are_named_if_the_spans_are_outside_of_the_text(self):
        reason = reason_of("Привет Женя", self.counted("Привет Женя", "Женя", "utf-8"))
        assert "is outside the text" in reason
        assert "as bytes all spans would fit: convert them to characters" in reason

    def test_are_named_if_the_own_text_of_a_span_differs(self):
        span = self.counted("🙂🙂🙂🙂 Ada", "Ada", "utf-16-le") | {"text": "Ada"}
        assert "UTF-16 units" in reason_of("🙂🙂🙂🙂 Ada", span)

    def test_are_not_named_if_they_do_not_explain_all_spans(self):
        spans = [self.counted("Женя живёт тут", "живёт", "utf-8"), entry(90, 99)]
        reason = reason_of("Женя живёт тут", *spans)
        assert "outside the text" in reason
        assert "bytes" not in reason

    @given(
        st.lists(st.sampled_from(("Ada", "Zoë", "🙂", "Женя", "中国")), min_size=1),
        st.sampled_from(["utf-16-le", "utf-8"]),
    )
    def test_never_move_a_span_silently_into_a_word(self, words: list[str], unit: str):
        text = " ".join([*words, "London", "x" * 99])
        span = self.counted(text, "London", unit)
        try:
            (found,) = read_spans(text, [span])
        except ValueError:
            return
        assert text[found.start : found.end] == "London"
