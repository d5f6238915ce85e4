"""hifi.data.answers: answers that stand in their context, and the reasons why others do not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hifi.data.answers import ContextAnswer, read_answers

CONTEXT = "Ada left London for Turin. Turin is far."
WORDS = ("Ada", "Женя", "Zoë", "Jose\u0301", "🙂", "👍🏽", "中国", "שלום", "سلام", "in", "x1")


def listed(*pairs: tuple[Any, Any]) -> dict[str, list[Any]]:
    texts, starts = ([pair[place] for pair in pairs] for place in (0, 1))
    return {"text": texts, "answer_start": starts}


def reason_of(context: str, given_answers: Any) -> str:
    with pytest.raises(ValueError, match=r"\w") as caught:
        read_answers(context, given_answers)
    return str(caught.value)


class TestSoundAnswers:
    def test_of_both_forms(self):
        expected = [ContextAnswer(9, "London"), ContextAnswer(20, "Turin")]
        assert read_answers(CONTEXT, listed(("London", 9), ("Turin", 20))) == expected
        objects = [
            {"text": "London", "answer_start": 9},
            {"text": "Turin", "answer_start": 20, "id": 7},
        ]
        assert read_answers(CONTEXT, objects) == expected

    @pytest.mark.parametrize("none", [listed(), []])
    def test_may_be_none(self, none: Any):
        assert read_answers(CONTEXT, none) == []

    def test_lose_the_white_space_at_their_ends(self):
        (found,) = read_answers(CONTEXT, listed((" London ", 8)))
        assert (found, found.end) == (ContextAnswer(9, "London"), 15)

    def test_lose_one_half_of_a_line_break(self):
        answers = listed(("x\r", 0), ("\ny", 2))
        assert read_answers("x\r\ny", answers) == [ContextAnswer(0, "x"), ContextAnswer(3, "y")]

    def test_may_be_any_of_equal_texts(self):
        assert read_answers(CONTEXT, listed(("Turin", 27))) == [ContextAnswer(27, "Turin")]

    def test_may_be_the_whole_context(self):
        assert read_answers("Ada", listed(("Ada", 0))) == [ContextAnswer(0, "Ada")]

    @given(st.lists(st.sampled_from(WORDS), min_size=1), st.data())
    def test_of_any_script(self, words: list[str], data: st.DataObject):
        place = data.draw(st.integers(0, len(words) - 1))
        start = len("".join(f"{word} " for word in words[:place]))
        context = " ".join(words)
        assert read_answers(context, listed((words[place], start))) == [
            ContextAnswer(start, words[place])
        ]


class TestRefusals:
    def test_of_missing_answers(self):
        assert "empty lists say that there is none" in reason_of(CONTEXT, None)

    @pytest.mark.parametrize(
        "given_answers",
        [
            ["a"],
            "a",
            5,
            {},
            {"answer": "a"},
            {"text": "Ada", "answer_start": 0},
            {"text": ["Ada"], "answer_start": None},
        ],
    )
    def test_of_other_forms(self, given_answers: Any):
        reason = reason_of(CONTEXT, given_answers)
        assert reason.startswith("the answers must be lists text and answer_start")

    def test_of_lists_of_different_lengths(self):
        reason = reason_of(CONTEXT, {"text": ["Ada", "London"], "answer_start": [0]})
        assert reason == "the row has 2 texts of answers and 1 starts"

    @pytest.mark.parametrize("text", [None, "", " \n", 7])
    def test_of_an_empty_answer(self, text: Any):
        assert "an answer is empty" in reason_of(CONTEXT, listed((text, 0)))

    @pytest.mark.parametrize("start", [None, 9.0, True, "9"])
    def test_of_a_start_that_is_no_whole_number(self, start: Any):
        reason = reason_of(CONTEXT, listed(("London", start)))
        assert reason == "the answer 'London' has no whole number as answer_start"

    @pytest.mark.parametrize("entry", [None, {}, {"answer_start": 0}])
    def test_of_objects_without_a_text(self, entry: Any):
        assert "an answer is empty" in reason_of(CONTEXT, [entry])

    @pytest.mark.parametrize("start", [0, -1, 99, 2**62])
    def test_of_an_answer_that_the_context_has_not(self, start: int):
        assert reason_of(CONTEXT, listed(("Rome", start))) == (
            "the answer 'Rome' is not in the context"
        )

    @pytest.mark.parametrize(
        ("start", "nearest"), [(19, 20), (21, 20), (-1, 20), (26, 27), (99, 27)]
    )
    def test_of_a_start_beside_the_answer(self, start: int, nearest: int):
        reason = reason_of(CONTEXT, listed(("Turin", start)))
        assert reason == f"the answer 'Turin' does not begin at {start}, but at {nearest}"

    @pytest.mark.parametrize(
        ("context", "answer", "unit"),
        [
            ("Zoë left Turin", "Turin", "bytes"),
            ("🙂 left Turin", "Turin", "UTF-16 units"),
            ("Женя в Турине", "Турине", "bytes"),
        ],
    )
    def test_of_starts_in_another_unit(self, context: str, answer: str, unit: str):
        before = context[: context.index(answer)]
        lengths = {
            "bytes": len(before.encode()),
            "UTF-16 units": len(before.encode("utf-16-le")) // 2,
        }
        reason = reason_of(context, listed((answer, lengths[unit])))
        assert reason.endswith(f"{lengths[unit]} counts {unit}: convert it to characters")

    def test_of_an_answer_that_is_inside_a_character_without_its_white_space(self):
        reason = reason_of("a \u0301b", listed((" \u0301b", 1)))
        assert "begins or ends inside a character" in reason

    @pytest.mark.parametrize(("text", "start"), [("Jose", 0), ("👍", 6), ("\u0301", 4)])
    def test_of_an_answer_that_ends_inside_a_character(self, text: str, start: int):
        reason = reason_of("Jose\u0301 👍🏽", listed((text, start)))
        assert "begins or ends inside a character" in reason
