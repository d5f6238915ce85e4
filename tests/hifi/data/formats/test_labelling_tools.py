"""hifi.data.formats.labelling_tools: exports of Prodigy, doccano and Label Studio."""

from __future__ import annotations

import json
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hifi.data.inference import check_certain_task, complete_task
from hifi.data.profile import DatasetProfile
from hifi.data.spec import TaskSpec
from hifi.data.splits import load_split, named_lines, read_split
from hifi.errors import DataError, HifiError
from hifi.tasks import make_task
from tests.hifi.data.files import LIMITS, convert_here, jsonl, refusal_of, write

Row = dict[str, Any]

ADA = "Ada wrote to London"


def span(start: int, end: int, label: str) -> Row:
    return {"start": start, "end": end, "label": label}


def tokens_of(text: str) -> list[Row]:
    """Return the tokens of a text as Prodigy writes them."""
    tokens, start = [], 0
    for number, word in enumerate(text.split(" ")):
        end = start + len(word)
        tokens.append(
            {"text": word, "start": start, "end": end, "id": number, "ws": end < len(text)}
        )
        start = end + 1
    return tokens


def prodigy(text: str, *spans: Row, answer: str = "accept", **others: Any) -> Row:
    """Return a row of the recipe ``ner.manual``."""
    return {
        "text": text,
        "meta": {"source": "letters", "pages": [1, 2]},
        "_input_hash": -1000851534,
        "_task_hash": 1404823735,
        "_is_binary": False,
        "tokens": tokens_of(text),
        "_view_id": "ner_manual",
        "spans": [{**each, "token_start": 0, "token_end": 0} for each in spans],
        "answer": answer,
        "_timestamp": 1646910000,
        "_annotator_id": "letters-ada",
        "_session_id": "letters-ada",
        **others,
    }


def studio_value(start: int, end: int, text: str, *labels: str) -> Row:
    return {"start": start, "end": end, "text": text, "labels": list(labels)}


def annotation(*values: Row, was_cancelled: bool = False) -> Row:
    """Return an annotation of Label Studio."""
    results = [
        {
            "value": value,
            "id": f"r{number}",
            "from_name": "label",
            "to_name": "text",
            "type": "labels",
            "origin": "manual",
        }
        for number, value in enumerate(values)
    ]
    return {
        "id": 7,
        "completed_by": 1,
        "result": results,
        "was_cancelled": was_cancelled,
        "ground_truth": False,
        "created_at": "2024-05-01T10:00:00.000000Z",
        "lead_time": 3.5,
    }


def task_of(text: str, *annotations: Row, **data: Any) -> Row:
    """Return a task of Label Studio."""
    return {
        "id": 1,
        "annotations": list(annotations),
        "file_upload": "letters.txt",
        "drafts": [],
        "predictions": [],
        "data": {"text": text, **data},
        "meta": {},
        "created_at": "2024-05-01T10:00:00.000000Z",
        "project": 1,
    }


def read(path: Path, folder: Path) -> list[Row]:
    """Read a file as training does, and as an upload; both are the same."""
    found: list[Row] = read_split(path, split="train").dataset.to_list()
    uploaded = convert_here(folder, train=path).paths["train"]
    assert load_split(uploaded, split="train").to_list() == found
    return found


def spans_of(folder: Path, rows: list[Row]) -> list[tuple[str, list[Row]]]:
    """Return the texts and the spans of rows that are written to a file."""
    found = read(jsonl(folder / "a.jsonl", rows), folder)
    return [
        (row["text"], [{name: each[name] for name in span(0, 0, "")} for each in row["spans"]])
        for row in found
    ]


class TestProdigy:
    def test_has_its_spans(self, tmp_path: Path):
        rows = [
            prodigy(ADA, span(0, 3, "person"), span(13, 19, "place")),
            prodigy("It rained"),
        ]
        assert spans_of(tmp_path, rows) == [
            (ADA, [span(0, 3, "person"), span(13, 19, "place")]),
            ("It rained", []),
        ]

    def test_keeps_its_other_values_but_lists_and_objects(self, tmp_path: Path):
        path = jsonl(tmp_path / "a.jsonl", [prodigy(ADA, span(0, 3, "person"))])
        (row,) = read(path, tmp_path)
        assert "tokens" not in row
        assert "meta" not in row
        assert (row["_annotator_id"], row["_timestamp"]) == ("letters-ada", 1646910000)
        assert row["spans"] == [span(0, 3, "person")]

    def test_leaves_out_rows_that_were_rejected_or_ignored(self, tmp_path: Path):
        rows = [
            prodigy("one", answer="reject"),
            prodigy(ADA, span(0, 3, "person")),
            prodigy("two", span(0, 3, "person"), answer="ignore"),
            prodigy("It rained"),
        ]
        assert [text for text, _ in spans_of(tmp_path, rows)] == [ADA, "It rained"]

    def test_tells_how_many_rows_are_left_out(self, tmp_path: Path):
        rows = [prodigy("one", answer="reject"), prodigy(ADA, span(0, 3, "person"))]
        path = jsonl(tmp_path / "a.jsonl", rows)
        profile = convert_here(tmp_path, train=path).profile
        for found in (profile, DatasetProfile.from_json(profile.to_json())):
            assert found.left_out == {"train": 1}
        assert read_split(path, split="train").profile.left_out == {"train": 1}

    def test_leaves_out_rejected_rows_without_hashes_too(self, tmp_path: Path):
        rows = [
            {"text": ADA, "spans": [span(0, 3, "person")], "answer": "accept"},
            {"text": "one", "spans": [], "answer": "reject"},
        ]
        assert [text for text, _ in spans_of(tmp_path, rows)] == [ADA]

    def test_takes_rows_without_an_answer_for_accepted(self, tmp_path: Path):
        row = prodigy(ADA, span(0, 3, "person"))
        del row["answer"]
        assert spans_of(tmp_path, [row]) == [(ADA, [span(0, 3, "person")])]

    def test_may_lack_the_spans_of_some_rows(self, tmp_path: Path):
        rows = [prodigy("It rained"), prodigy(ADA, span(0, 3, "person")), prodigy("It snowed")]
        del rows[0]["spans"], rows[2]["spans"]
        assert [len(spans) for _, spans in spans_of(tmp_path, rows)] == [0, 1, 0]

    def test_of_which_nothing_was_accepted_has_no_rows(self, tmp_path: Path):
        rows = [prodigy(ADA, span(0, 3, "person"), answer="reject")]
        path = jsonl(tmp_path / "a.jsonl", rows)
        with pytest.raises(DataError, match="there are no rows"):
            read_split(path, split="train")
        assert refusal_of(tmp_path, train=path).reason.endswith(
            "nobody accepted or labelled them: 1"
        )

    @pytest.mark.parametrize("start", ["\n", "\n \n", "\ufeff", "\ufeff\n\n"])
    def test_is_recognised_after_blank_lines(self, start: str, tmp_path: Path):
        rows = [prodigy("one", answer="reject"), prodigy(ADA, span(0, 3, "person"))]
        content = start + "\n\n".join(map(json.dumps, rows))
        found = read(write(tmp_path / "a.jsonl", content), tmp_path)
        assert [row["text"] for row in found] == [ADA]

    def test_is_recognised_after_rows_that_show_no_tool(self, tmp_path: Path):
        rows = [{"text": f"row {number}"} for number in range(50)]
        rows += [prodigy(ADA, span(0, 3, "person"))]
        assert spans_of(tmp_path, rows)[-1] == (ADA, [span(0, 3, "person")])

    def test_means_token_classification(self, tmp_path: Path):
        rows = [prodigy(ADA, span(0, 3, "person")), prodigy("It rained")]
        path = jsonl(tmp_path / "a.jsonl", rows)
        profile = convert_here(tmp_path, train=path, validation=path).profile
        check_certain_task(profile)
        task = complete_task(TaskSpec(), profile)
        assert (task.type, task.text, task.spans) == ("token-classification", ("text",), "spans")


class TestDoccano:
    @pytest.mark.parametrize("name", ["label", "labels"])
    def test_has_triples(self, name: str, tmp_path: Path):
        rows = [
            {"id": 1, "text": "It rained", name: [], "Comments": []},
            {"id": 2, "text": ADA, name: [[0, 3, "person"], [13, 19, "place"]], "Comments": []},
        ]
        assert spans_of(tmp_path, rows) == [
            ("It rained", []),
            (ADA, [span(0, 3, "person"), span(13, 19, "place")]),
        ]
        (_, row) = read(jsonl(tmp_path / "a.jsonl", rows), tmp_path)
        assert set(row) == {"id", "text", "spans"}

    def test_of_an_older_version_has_other_entries(self, tmp_path: Path):
        row = {
            "id": 2,
            "text": ADA,
            "meta": {},
            "annotation_approver": None,
            "labels": [[0, 3, "person"]],
        }
        assert spans_of(tmp_path, [row]) == [(ADA, [span(0, 3, "person")])]

    def test_of_a_project_with_relations_has_objects(self, tmp_path: Path):
        entities = [
            {"id": 11, "label": "person", "start_offset": 0, "end_offset": 3},
            {"id": 12, "label": "place", "start_offset": 13, "end_offset": 19},
        ]
        relations = [{"id": 1, "from_id": 11, "to_id": 12, "type": "wrote to"}]
        rows = [
            {"id": 1, "text": "It rained", "entities": [], "relations": [], "Comments": []},
            {"id": 2, "text": ADA, "entities": entities, "relations": relations},
        ]
        assert spans_of(tmp_path, rows) == [
            ("It rained", []),
            (ADA, [span(0, 3, "person"), span(13, 19, "place")]),
        ]

    def test_counts_characters(self, tmp_path: Path):
        rows = [{"text": "🙂 Ada", "label": [[2, 5, "person"]]}]
        assert spans_of(tmp_path, rows) == [("🙂 Ada", [span(2, 5, "person")])]


class TestLabelStudio:
    def test_is_no_row_that_only_has_an_empty_list_of_annotations(self, tmp_path: Path):
        rows = [
            {"text": text, "label": label, "data": {"a": 1}, "annotations": []}
            for text, label in (("one", "x"), ("two", "y"))
        ]
        assert [row["label"] for row in read(jsonl(tmp_path / "a.jsonl", rows), tmp_path)] == [
            *("x", "y"),
        ]

    def test_has_the_spans_of_its_tasks(self, tmp_path: Path):
        rows = [
            task_of(
                ADA,
                annotation(
                    studio_value(0, 3, "Ada", "person"), studio_value(13, 19, "London", "place")
                ),
            ),
            task_of("It rained", annotation()),
        ]
        assert spans_of(tmp_path, rows) == [
            (ADA, [span(0, 3, "person"), span(13, 19, "place")]),
            ("It rained", []),
        ]

    def test_takes_the_first_annotation_that_was_not_cancelled(self, tmp_path: Path):
        first, second, third = (
            annotation(studio_value(*each), was_cancelled=number == 0)
            for number, each in enumerate(
                [(0, 3, "Ada", "wrong"), (0, 3, "Ada", "person"), (13, 19, "London", "place")]
            )
        )
        assert spans_of(tmp_path, [task_of(ADA, first, second, third)]) == [
            (ADA, [span(0, 3, "person")])
        ]

    def test_leaves_out_tasks_that_nobody_has_annotated(self, tmp_path: Path):
        rows = [
            task_of("not seen yet"),
            task_of(ADA, annotation(studio_value(0, 3, "Ada", "person"))),
            task_of("skipped", annotation(was_cancelled=True)),
        ]
        assert [text for text, _ in spans_of(tmp_path, rows)] == [ADA]

    def test_leaves_results_of_other_kinds_alone(self, tmp_path: Path):
        row = task_of(ADA, annotation(studio_value(0, 3, "Ada", "person")))
        row["annotations"][0]["result"] += [
            {"type": "choices", "to_name": "text", "value": {"choices": ["letter"]}},
            {"type": "relation", "from_id": "r0", "to_id": "r0", "direction": "right"},
        ]
        assert spans_of(tmp_path, [row]) == [(ADA, [span(0, 3, "person")])]

    def test_has_its_text_under_any_name(self, tmp_path: Path):
        row = task_of(ADA, annotation(studio_value(0, 3, "Ada", "person")))
        row["data"] = {"letter": ADA, "year": 1843, "tags": ["old"]}
        path = jsonl(tmp_path / "a.jsonl", [row])
        (found,) = read(path, tmp_path)
        assert (found["text"], found["year"], set(found)) == (ADA, 1843, {"text", "year", "spans"})

    def test_keeps_the_other_data_of_a_task(self, tmp_path: Path):
        row = task_of(ADA, annotation(studio_value(0, 3, "Ada", "person")), author="Ada", year=1843)
        (found,) = read(jsonl(tmp_path / "a.jsonl", [row]), tmp_path)
        assert (found["author"], found["year"]) == ("Ada", 1843)

    @pytest.mark.parametrize("is_min", [False, True])
    def test_counts_utf_16_units(self, is_min: bool, tmp_path: Path):
        text = "👍🏽 Женя met Ada in Zürich 🙂"
        values = []
        for part, label in (
            ("👍🏽", "mood"),
            ("Ada", "person"),
            ("Zürich", "place"),
            ("🙂", "mood"),
        ):
            start = len(text[: text.index(part)].encode("utf-16-le")) // 2
            end = start + len(part.encode("utf-16-le")) // 2
            values.append(studio_value(start, end, part, label))
        row = {"text": text, "label": values} if is_min else task_of(text, annotation(*values))
        ((_, found),) = spans_of(tmp_path, [row])
        parts = [text[each["start"] : each["end"]] for each in found]
        assert parts == ["👍🏽", "Ada", "Zürich", "🙂"]

    @pytest.mark.parametrize("name", ["label", "labels"])
    def test_of_the_short_form_has_a_list_beside_the_text(self, name: str, tmp_path: Path):
        others = {
            "annotator": 1,
            "annotation_id": 3,
            "created_at": "2024-05-01T10:00:00.000000Z",
            "updated_at": "2024-05-01T10:00:00.000000Z",
            "lead_time": 3.5,
        }
        rows = [
            {"id": 1, "text": "It rained", **others},
            {"id": 2, "text": ADA, name: [studio_value(0, 3, "Ada", "person")], **others},
        ]
        assert spans_of(tmp_path, rows) == [("It rained", []), (ADA, [span(0, 3, "person")])]

    def test_with_two_labels_of_a_span_is_refused_as_overlapping(self, tmp_path: Path):
        value = studio_value(0, 3, "Ada", "person", "woman")
        row = task_of(ADA, annotation(value))
        assert spans_of(tmp_path, [row]) == [(ADA, [span(0, 3, "person"), span(0, 3, "woman")])]
        path = jsonl(tmp_path / "a.jsonl", [row])
        with pytest.raises(DataError, match="overlap"):
            check_certain_task(convert_here(tmp_path, train=path).profile)

    def test_with_a_span_whose_own_text_differs_is_refused(self, tmp_path: Path):
        row = task_of(ADA, annotation(studio_value(0, 3, "Bob", "person")))
        path = jsonl(tmp_path / "a.jsonl", [row])
        with pytest.raises(DataError, match="its own text is 'Bob'"):
            check_certain_task(convert_here(tmp_path, train=path).profile)


class TestPlaces:
    """Errors have the row among those that are kept, and its line in the file."""

    ROWS = (
        prodigy("one", answer="reject"),
        prodigy(ADA, span(0, 3, "person")),
        prodigy("two", answer="ignore"),
        prodigy("It rained"),
    )

    @staticmethod
    def content(rows: tuple[Row, ...], *others: str) -> str:
        """Return the lines of rows, each after a blank line, and other lines."""
        return "".join(f"\n{json.dumps(row)}\n" for row in rows) + "".join(others)

    def test_of_bad_spans(self, tmp_path: Path):
        bad = (*self.ROWS, prodigy(ADA, span(0, 99, "person")))
        path = write(tmp_path / "a.jsonl", self.content(bad))
        with pytest.raises(DataError, match="outside the text") as caught:
            check_certain_task(convert_here(tmp_path, train=path).profile)
        dataset = load_split(path, split="train")
        task = make_task(TaskSpec(), dataset)
        with pytest.raises(DataError) as trained, named_lines({"train": path}):
            task.targets(dataset, split="train")
        assert trained.value.reason == caught.value.reason
        for error in (caught.value, trained.value):
            place = (error.split, error.row, error.line, error.column)
            assert place == ("train", 3, 10, "spans")

    @pytest.mark.parametrize(
        ("line", "reason"),
        [("{'text'}\n", "not JSON"), ("[1]\n", "must be a JSON object"), ('{"text": NaN}', "NaN")],
    )
    def test_of_broken_lines(self, line: str, reason: str, tmp_path: Path):
        path = write(tmp_path / "a.jsonl", self.content(self.ROWS, line))
        with pytest.raises(DataError, match=reason) as caught:
            read_split(path, split="train")
        assert (caught.value.row, caught.value.line) == (3, 9)
        refusal = refusal_of(tmp_path, train=path)
        assert (refusal.row, reason in refusal.reason) == (3, True)

    def test_of_lines_that_are_too_long(self, tmp_path: Path):
        long = json.dumps(prodigy("x" * 5000))
        path = write(tmp_path / "a.jsonl", self.content(self.ROWS, long))
        limits = replace(LIMITS, max_row_bytes=4096)
        refusal = refusal_of(tmp_path, limits=limits, train=path)
        assert (refusal.row, refusal.line) == (3, 9)
        assert "more than 4 KiB" in refusal.reason

    def test_of_values_that_do_not_fit_the_rows_above(self, tmp_path: Path):
        rows = [*self.ROWS, prodigy("two", extra=1), prodigy("three", extra="x")]
        path = jsonl(tmp_path / "a.jsonl", rows)
        column = convert_here(tmp_path, train=path).profile.column("extra")
        assert column is not None
        assert column.unfit is not None
        assert (column.unfit.row, column.unfit.line) == (4, 6)


class TestOtherFiles:
    """Rows that are no tool's are left as they are."""

    @pytest.mark.parametrize(
        "rows",
        [
            [{"text": "a", "label": ["x", "y"]}, {"text": "b", "label": []}],
            [{"text": "a", "labels": ["x"]}, {"text": "b", "labels": ["y"]}],
            [{"text": "a", "label": [1, 2, 3]}, {"text": "b", "label": [4]}],
            [{"text": "a", "label": "labels"}, {"text": "b", "label": "label"}],
            [{"text": "a", "label": 0}, {"text": "b", "label": 1}],
            [{"text": ADA, "spans": [span(0, 3, "person")]}, {"text": "b", "spans": []}],
            [{"text": ADA, "entities": ["Ada"]}, {"text": "b", "entities": []}],
            [{"tokens": ["a"], "tags": ["O"]}, {"tokens": ["b"], "tags": ["B-x"]}],
            [{"data": "x", "annotations": ["y"]}, {"data": "z", "annotations": []}],
            [{"text": "a", "answer": "reject", "label": "x"}, {"text": "b", "answer": "accept"}],
        ],
    )
    def test_are_read_as_they_are(self, rows: list[Row], tmp_path: Path):
        found = read(jsonl(tmp_path / "a.jsonl", rows), tmp_path)
        names = dict.fromkeys(name for row in rows for name in row)
        assert found == [{name: row.get(name) for name in names} for row in rows]

    def test_of_prodigys_text_classification_keep_their_answers(self, tmp_path: Path):
        rows = [prodigy(ADA, answer="accept", label="letter")]
        rows += [prodigy("It rained", answer="reject", label="letter")]
        for row in rows:
            del row["spans"], row["tokens"]
        found = read(jsonl(tmp_path / "a.jsonl", rows), tmp_path)
        assert [row["answer"] for row in found] == ["accept", "reject"]


NAMES = (
    *("text", "spans", "label", "labels", "entities", "data", "annotations", "answer", "tokens"),
    *("_input_hash", "start", "end", "start_offset", "end_offset", "value", "result", "to_name"),
    *("was_cancelled", "type", "tags"),
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, 3, -1, 2**62, 2**64, 10**30, 0.5, 1e300])
    | st.sampled_from(["", " ", "Ada", "accept", "labels", "text", "🙂", "\ud800", "B-x", "O"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=12,
)
EXPORTED: tuple[Row, ...] = (
    prodigy(ADA, span(0, 3, "person")),
    {"text": ADA, "label": [[0, 3, "person"]]},
    {"text": ADA, "entities": [{"label": "x", "start_offset": 0, "end_offset": 3}]},
    task_of(ADA, annotation(studio_value(0, 3, "Ada", "person"))),
    {"text": ADA, "label": [studio_value(0, 3, "Ada", "person")]},
)


@st.composite
def hostile_rows(draw: st.DrawFn) -> list[Row]:
    """Draw rows of a tool of which any entries, also deep inside, are replaced by other values."""

    def changed(value: Any) -> Any:
        if draw(st.integers(0, 9)) == 0:
            return draw(VALUES)
        if isinstance(value, dict):
            return {name: changed(inner) for name, inner in value.items()}
        return [changed(inner) for inner in value] if isinstance(value, list) else value

    first = draw(st.sampled_from(EXPORTED))
    rows = [first, changed(first), draw(st.dictionaries(st.sampled_from(NAMES), VALUES))]
    return [row for row in draw(st.permutations(rows)) if isinstance(row, dict)]


class TestHostileFiles:
    @staticmethod
    def trained(path: Path) -> str | None:
        """Read a file as training does; return the refusal."""
        try:
            loaded = read_split(path, split="train")
            task = make_task(TaskSpec(), loaded.dataset, profile=loaded.profile)
            task.targets(loaded.dataset, split="train")
        except HifiError as error:
            return str(error)
        return None

    @settings(max_examples=200)
    @given(hostile_rows())
    def test_are_read_or_refused(self, rows: list[Row]):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            path = jsonl(folder / "a.jsonl", rows)
            self.trained(path)
            try:
                profile = convert_here(folder, train=path).profile
            except DataError:
                return
            for check in (check_certain_task, lambda found: complete_task(TaskSpec(), found)):
                with suppress(HifiError):
                    check(profile)
