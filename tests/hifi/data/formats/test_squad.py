"""hifi.data.formats.squad: a row for each question of SQuAD's articles."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hifi.data.formats import squad
from hifi.data.formats.reader import find_lines
from hifi.data.splits import load_split, read_split
from hifi.errors import DataError
from tests.hifi.data.files import LIMITS, convert_here, jsonl, refusal_of, write

Row = dict[str, Any]

ADA = "Ada Lovelace wrote to Charles Babbage in 1843."
RAIN = "It rained in London."


def answer(context: str, text: str) -> Row:
    return {"text": text, "answer_start": context.index(text)}


def question(number: int, text: str, *answers: Row, **others: Any) -> Row:
    return {"id": f"q{number}", "question": text, "answers": list(answers), **others}


def paragraph(context: str, *questions: Row) -> Row:
    return {"context": context, "qas": list(questions)}


def article(title: str, *paragraphs: Row) -> Row:
    return {"title": title, "paragraphs": list(paragraphs)}


def row(number: int, title: str, context: str, text: str, *answers: Row) -> Row:
    parts = {part: [each[part] for each in answers] for part in ("text", "answer_start")}
    return {
        "id": f"q{number}",
        "title": title,
        "question": text,
        "context": context,
        "answers": parts,
    }


FIRST = (
    article(
        "Letters",
        paragraph(
            ADA,
            question(1, "Who wrote?", answer(ADA, "Ada Lovelace"), answer(ADA, "Ada")),
            question(2, "When?", answer(ADA, "1843")),
        ),
        paragraph(RAIN, question(3, "Where?", answer(RAIN, "London"))),
    ),
    article("Empty", paragraph("Nobody asked.")),
    article("Weather", paragraph(RAIN, question(4, "What?", answer(RAIN, "It rained")))),
)
FIRST_ROWS = [
    row(1, "Letters", ADA, "Who wrote?", answer(ADA, "Ada Lovelace"), answer(ADA, "Ada")),
    row(2, "Letters", ADA, "When?", answer(ADA, "1843")),
    row(3, "Letters", RAIN, "Where?", answer(RAIN, "London")),
    row(4, "Weather", RAIN, "What?", answer(RAIN, "It rained")),
]
WRITERS = {
    "published": lambda articles: json.dumps({"version": "1.1", "data": articles}),
    "indented": lambda articles: json.dumps({"version": "1.1", "data": articles}, indent=2),
    "sorted": lambda articles: json.dumps({"version": "1.1", "data": articles}, sort_keys=True),
    "without a version": lambda articles: json.dumps({"data": articles}),
    "reversed": lambda articles: json.dumps(reverse({"version": "1.1", "data": articles})),
}


def reverse(value: Any) -> Any:
    """Reverse the order of all entries of objects."""
    if isinstance(value, dict):
        return {name: reverse(value[name]) for name in reversed(value)}
    return [reverse(each) for each in value] if isinstance(value, list) else value


def nested(found: Row) -> Row:
    """Return a row of the hub as a question of its paragraph."""
    parts = zip(found["answers"]["text"], found["answers"]["answer_start"], strict=True)
    answers = [{"text": text, "answer_start": start} for text, start in parts]
    return {"id": found["id"], "question": found["question"], "answers": answers}


def published(path: Path, *articles: Row) -> Path:
    """Write articles as SQuAD was published: one line without spaces between entries."""
    whole = {"version": "v2.0", "data": articles}
    return write(path, json.dumps(whole, separators=(",", ":")))


def read(path: Path, folder: Path) -> list[Row]:
    """Read a file as training does, and as an upload; both are the same."""
    found: list[Row] = read_split(path, split="train").dataset.to_list()
    uploaded = convert_here(folder, train=path).paths["train"]
    assert load_split(uploaded, split="train").to_list() == found
    return found


class TestQuestions:
    @pytest.mark.parametrize("writer", WRITERS)
    def test_are_rows(self, writer: str, tmp_path: Path):
        path = write(tmp_path / "a.json", WRITERS[writer](FIRST))
        assert read(path, tmp_path) == FIRST_ROWS
        assert list(read_split(path, split="train").dataset.column_names) == [
            *("id", "title", "question", "context", "answers"),
        ]

    def test_are_the_rows_of_the_hub(self, tmp_path: Path):
        path = published(tmp_path / "a.json", *FIRST)
        assert read(path, tmp_path) == read(jsonl(tmp_path / "a.jsonl", FIRST_ROWS), tmp_path)

    def test_of_real_articles_are_the_rows_of_the_hub(self, test_data: Path, tmp_path: Path):
        path = test_data / "data" / "squad" / "validation.jsonl"
        expected = load_split(path, split="train").to_list()
        articles = [
            article(
                title,
                *(
                    paragraph(context, *map(nested, asked))
                    for context, asked in groupby(rows, key=itemgetter("context"))
                ),
            )
            for title, rows in groupby(expected, key=itemgetter("title"))
        ]
        found = load_split(published(tmp_path / "a.json", *articles), split="train").to_list()
        assert found == expected
        assert len(found) == 2000

    def test_of_version_2_without_an_answer_have_empty_lists(self, tmp_path: Path):
        path = published(
            tmp_path / "a.json",
            article(
                "Letters",
                paragraph(
                    ADA,
                    question(
                        1,
                        "Who answered?",
                        is_impossible=True,
                        plausible_answers=[answer(ADA, "Charles Babbage")],
                    ),
                    question(2, "When?", answer(ADA, "1843"), is_impossible=False),
                    question(3, "Why?", is_impossible=True),
                    question(4, "How?"),
                ),
            ),
        )
        none: Row = {"text": [], "answer_start": []}
        assert [found["answers"] for found in read(path, tmp_path)] == [
            none,
            {"text": ["1843"], "answer_start": [41]},
            none,
            none,
        ]
        assert set(read(path, tmp_path)[0]) == {"id", "title", "question", "context", "answers"}

    def test_that_have_an_answer_are_not_impossible(self, tmp_path: Path):
        asked = question(3, "Why?", answer(ADA, "Ada"), is_impossible=True)
        path = published(tmp_path / "a.json", article("a", paragraph(ADA, question(1, "W"), asked)))
        with pytest.raises(DataError, match="is_impossible, but has answers") as caught:
            read(path, tmp_path)
        assert caught.value.row == 2

    def test_of_which_none_has_an_answer_are_rows(self, tmp_path: Path):
        path = published(tmp_path / "a.json", article("a", paragraph(ADA, question(1, "Why?"))))
        assert read(path, tmp_path)[0]["answers"] == {"text": [], "answer_start": []}

    def test_that_are_not_labelled_have_no_answers(self, tmp_path: Path):
        asked = [{"id": "q1", "question": "Who?"}, {"id": "q2", "question": "W", "answers": None}]
        path = published(tmp_path / "a.json", article("a", paragraph(ADA, *asked)))
        assert [found["answers"] for found in read(path, tmp_path)] == [None, None]
        asked.append(question(3, "When?", answer(ADA, "1843")))
        path = published(tmp_path / "a.json", article("a", paragraph(ADA, *asked)))
        assert [found["answers"] for found in read(path, tmp_path)] == [
            None,
            None,
            {"text": ["1843"], "answer_start": [41]},
        ]

    def test_may_lack_a_title_and_an_id(self, tmp_path: Path):
        asked = {"question": "When?", "answers": [answer(ADA, "1843")]}
        path = published(tmp_path / "a.json", {"paragraphs": [paragraph(ADA, asked)]})
        (found,) = read(path, tmp_path)
        assert (found["id"], found["title"], found["question"]) == (None, None, "When?")

    def test_have_their_lines(self, tmp_path: Path):
        path = write(tmp_path / "a.json", WRITERS["indented"](FIRST))
        lines = path.read_text().splitlines()
        starts = [number for number, line in enumerate(lines) if '"id":' in line]
        found = find_lines(path, ending=".json", rows={1, 2, 3, 4, 5})
        assert found == dict(enumerate(starts, start=1))  # an object begins on the line above

    @settings(max_examples=50)
    @given(
        st.lists(
            st.builds(
                lambda paragraphs: article("a", *paragraphs),
                st.lists(
                    st.builds(
                        lambda count: paragraph(ADA, *[question(n, "Q") for n in range(count)]),
                        st.integers(0, 3),
                    ),
                    max_size=3,
                ),
            ),
            min_size=1,
            max_size=3,
        ),
        st.sampled_from(list(WRITERS)),
    )
    def test_are_as_many_as_in_the_file(self, articles: list[Row], writer: str):
        expected = [
            asked["id"] for each in articles for part in each["paragraphs"] for asked in part["qas"]
        ]
        with tempfile.TemporaryDirectory() as name:
            path = write(Path(name, "a.json"), WRITERS[writer](articles))
            if expected:
                assert load_split(path, split="train")["id"][:] == expected
            else:
                assert refusal_of(Path(name), train=path).reason == "there are no rows"


def place_of(content: str, part: str) -> tuple[int, int]:
    """Return the line of a part of a text, and its place in the line."""
    before = content[: content.index(part)]
    return before.count("\n") + 1, len(before) - before.rfind("\n")


class TestRefusals:
    QUESTION = question(1, "When?", answer(ADA, "1843"))

    @pytest.mark.parametrize(
        ("second", "reason"),
        [
            ("text", "every article must be a JSON object, not a text"),
            ({"title": "a"}, "every article must have paragraphs"),
            ({"text": "a", "label": 1}, "every article must have paragraphs"),
            ({"paragraphs": None}, "the paragraphs of an article must be a list, not null"),
            (article("a", [1]), "every paragraph must be a JSON object, not a list"),
            (article("a", {"context": ADA}), "every paragraph must have questions (qas)"),
            (
                article("a", {"context": ADA, "qas": {}}),
                "the questions (qas) of a paragraph must be a list, not an object",
            ),
            (article("a", paragraph(ADA, 5)), "every question must be a JSON object, not a whole"),
        ],
    )
    def test_of_other_articles_name_the_row_and_the_line(
        self, second: Any, reason: str, tmp_path: Path
    ):
        first = article("a", paragraph(ADA, self.QUESTION))
        content = f'{{"data": [{json.dumps(first)},\n{json.dumps(second)}]}}'
        refusal = refusal_of(tmp_path, train=write(tmp_path / "a.json", content))
        assert (refusal.row, refusal.line) == (2, 2)
        assert refusal.reason.startswith(reason)

    @pytest.mark.parametrize(
        "answers", ["1843", {}, ["1843"], [{"text": "1843"}], [{"answer_start": 41}], [None]]
    )
    def test_of_answers_that_are_none(self, answers: Any, tmp_path: Path):
        wrong = {"id": "q2", "question": "Who?", "answers": answers}
        path = published(tmp_path / "a.json", article("a", paragraph(ADA, self.QUESTION, wrong)))
        with pytest.raises(DataError) as caught:
            load_split(path, split="train")
        assert (caught.value.row, caught.value.line) == (2, 1)
        assert caught.value.reason == (
            "the answers of a question must be a list of objects with text and answer_start"
        )

    @pytest.mark.parametrize("writer", ["indented", "sorted", "reversed"])
    def test_of_broken_text_name_the_question_and_the_place(self, writer: str, tmp_path: Path):
        content = WRITERS[writer](FIRST).replace('"q3"', '"q3" "x"')
        path = write(tmp_path / "a.json", content)
        with pytest.raises(DataError) as caught:
            load_split(path, split="train")
        assert caught.value.row == 3
        line, character = place_of(content, '"x"')
        assert caught.value.reason == (
            f"not JSON: Expecting ',' delimiter at line {line}, character {character}"
        )
        assert str(refusal_of(tmp_path, train=path)) == str(caught.value)

    def test_of_a_truncated_file(self, tmp_path: Path):
        content = published(tmp_path / "a.json", *FIRST).read_bytes()
        path = write(tmp_path / "b.json", content[:-30])
        refusal = refusal_of(tmp_path, train=path)
        assert "the file ends at line 1, character" in refusal.reason


class TestLimits:
    def test_of_a_row_count_its_context(self, tmp_path: Path):
        long = paragraph("x" * 900, question(1, "a" * 50), question(2, "a" * 200))
        path = published(tmp_path / "a.json", article("a", long))
        refusal = refusal_of(tmp_path, train=path, limits=replace(LIMITS, max_row_bytes=1024))
        assert (refusal.row, refusal.reason) == (2, "the row has more than 1 KiB")

    def test_of_bytes_count_a_context_for_each_of_its_questions(self, tmp_path: Path):
        many = paragraph("x" * 100_000, *[question(number, "Who?") for number in range(2000)])
        path = published(tmp_path / "a.json", article("a", many))
        assert path.stat().st_size < 300_000
        limits = replace(LIMITS, max_bytes=10 << 20)
        refusal = refusal_of(tmp_path, train=path, limits=limits)
        assert "more than 10485760 bytes" in refusal.reason

    def test_of_an_article_hold_only_while_its_title_is_not_known(
        self, tmp_path: Path, monkeypatch
    ):
        monkeypatch.setattr(squad, "_MOST_BYTES", 1 << 10)
        large = article("a", *[paragraph(ADA, question(each, "When?")) for each in range(20)])
        path = published(tmp_path / "a.json", large)
        assert len(read(path, tmp_path)) == 20
        refusal = refusal_of(tmp_path, train=published(tmp_path / "a.json", reverse(large)))
        assert refusal.reason == (
            "more than 1 KiB of an article are above its title; put the title first"
        )
        assert (refusal.row, refusal.line) == (13, 1)

    def test_of_a_paragraph_hold_wherever_its_title_is(self, tmp_path: Path, monkeypatch):
        monkeypatch.setattr(squad, "_MOST_BYTES", 1 << 10)
        large = article("a", paragraph(ADA, *[question(each, "When?") for each in range(50)]))
        refusal = refusal_of(tmp_path, train=published(tmp_path / "a.json", large))
        assert refusal.reason == ("more than 1 KiB of an article are in one paragraph; divide it")
        # After a context of 48 bytes and questions of 43, of 44 from the eleventh on.
        assert (refusal.row, refusal.line) == (23, 1)


class TestOtherLists:
    """An object's ``data`` that does not begin with an article is a list of rows."""

    @pytest.mark.parametrize(
        "rows",
        [
            [{"title": "a", "text": "b"}, {"title": "c", "text": "d"}],
            [{"title": "a", "paragraphs": "b"}, {"title": "c", "paragraphs": "d"}],
            [{"question": "a", "context": "b", "answers": {"text": ["b"], "answer_start": [0]}}],
        ],
    )
    def test_are_read_as_they_are(self, rows: list[Row], tmp_path: Path):
        path = write(tmp_path / "a.json", json.dumps({"version": 1, "data": rows}))
        assert read(path, tmp_path) == rows
