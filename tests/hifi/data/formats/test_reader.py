"""hifi.data.formats.reader: columns that no task can use, and the lines of rows."""

from __future__ import annotations

import csv
import datetime as dt
import decimal
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from hifi.data.formats.reader import find_lines
from hifi.data.inference import check_certain_task, complete_task
from hifi.data.profile import DatasetProfile
from hifi.data.spec import TaskSpec
from hifi.data.splits import load_split, named_lines, read_split
from hifi.errors import AmbiguousTaskError, DataError
from hifi.tasks import make_task
from tests.hifi.data.files import convert_here, json_list, jsonl, refusal_of, write


def both(path: Path, folder: Path) -> list[DatasetProfile]:
    """Return the profiles of a file in the library and as an upload."""
    return [read_split(path, split="train").profile, convert_here(folder, train=path).profile]


def rows_with(**columns: Any) -> list[dict[str, Any]]:
    """Make rows with a text and a label, and further columns."""
    return [
        {"text": f"text {row}", "label": "ab"[row % 2]}
        | {name: values[row % len(values)] for name, values in columns.items()}
        for row in range(4)
    ]


JSON = {
    "an annotation tool's options": [[{"id": "a", "text": "A"}]],
    "empty objects": [{}],
    "objects in objects": [{"a": {"b": 1}}],
    "annotations with results": [[{"result": [{"from_name": "label", "value": {"x": 1}}]}]],
    "lists of lists": [[[1.0, 2.0]]],
    "objects and texts": [{"x": 1}, "none"],
    "texts and objects, in a column of objects first": [{"x": 1}, None, "none"],
    "numbers and texts": [1, "a2"],
    "lists and numbers": [[1], 2],
    "lists of both": [[1, "a"]],
    "hashes beyond 64 bits": [2**64, 1],
}
PARQUET = {
    "objects in objects": pa.array([{"a": {"b": 1}}] * 4),
    "lists of objects": pa.array([[{"a": 1}]] * 4),
    "a map": pa.array([[("k", 1)]] * 4, pa.map_(pa.string(), pa.int64())),
    "bytes of a fixed size": pa.array([b"0123"] * 4, pa.binary(4)),
    "lists of lists": pa.array([[[0.5]]] * 4),
}
KEPT = {  # shapes that no task reads today, but that some will
    "decimals": pa.array([decimal.Decimal("1.5")] * 4),
    "days": pa.array([dt.date(2024, 5, 1)] * 4),
    "times": pa.array([dt.time(1)] * 4),
    "durations": pa.array([dt.timedelta(1)] * 4),
    "lists of texts": pa.array([["a", "b"]] * 4),
    "objects": pa.array([{"a": 1, "b": ["x"]}] * 4),
    "nothing": pa.nulls(4),
    "nothing, as texts": pa.nulls(4, pa.dictionary(pa.int32(), pa.bool_())),
}


class TestUnfit:
    """A column that no task can use is kept out, and refused only if it is named."""

    def check(self, path: Path, folder: Path) -> None:
        for profile in both(path, folder):
            assert profile.names == ("text", "label")
            assert list(profile.notes) == ["meta"]
            task = complete_task(TaskSpec(), profile)
            assert (task.type, task.text, task.label) == ("classification", ("text",), "label")
            for spec in (TaskSpec(label="meta"), TaskSpec(text=("text", "meta"))):
                with pytest.raises(DataError) as caught:
                    complete_task(spec, profile)
                assert not isinstance(caught.value, AmbiguousTaskError)
                assert (caught.value.split, caught.value.column) == ("train", "meta")
                assert caught.value.reason in profile.notes["meta"]
        loaded = read_split(path, split="train")
        assert make_task(TaskSpec(), loaded.dataset, profile=loaded.profile).label == "label"
        with pytest.raises(DataError, match="column 'meta'"):
            load_split(path, split="train", columns=["text", "meta"])

    @pytest.mark.parametrize("kind", JSON)
    def test_in_json_lines(self, kind: str, tmp_path: Path):
        rows = rows_with(meta=JSON[kind])
        self.check(jsonl(tmp_path / "a.jsonl", rows), tmp_path)
        self.check(json_list(tmp_path / "a.json", rows), tmp_path)

    @pytest.mark.parametrize("kind", PARQUET)
    def test_in_parquet(self, kind: str, tmp_path: Path):
        table = pa.Table.from_pylist(rows_with()).append_column("meta", PARQUET[kind])
        parquet.write_table(table, tmp_path / "a.parquet")
        self.check(tmp_path / "a.parquet", tmp_path)

    @pytest.mark.parametrize("kind", KEPT)
    def test_is_not_a_column_that_some_task_may_use(self, kind: str, tmp_path: Path):
        table = pa.Table.from_pylist(rows_with()).append_column("meta", KEPT[kind])
        parquet.write_table(table, tmp_path / "a.parquet")
        for profile in both(tmp_path / "a.parquet", tmp_path):
            assert profile.names == ("text", "label", "meta")
            task = complete_task(TaskSpec(), profile)
            assert (task.text, task.label) == (("text",), "label")
            with pytest.raises(DataError, match="column 'meta'"):
                complete_task(TaskSpec(type="classification", label="meta"), profile)

    def test_far_down_the_file(self, tmp_path: Path):
        rows = rows_with(meta=[1]) * 5000 + rows_with(meta=["x"])
        path = jsonl(tmp_path / "a.jsonl", rows)
        for profile in both(path, tmp_path):
            assert "row 20001" in profile.notes["meta"]
            assert "the rows above hold int64" in profile.notes["meta"]

    def test_in_validation_matters_to_the_task_that_needs_it(self, tmp_path: Path):
        train = jsonl(tmp_path / "a.jsonl", rows_with(title=["x"]))
        validation = jsonl(tmp_path / "b.jsonl", rows_with(title=["x", {"y": 1}]))
        profile = convert_here(tmp_path, train=train, validation=validation).profile
        assert complete_task(TaskSpec(text=("text",)), profile).text == ("text",)
        with pytest.raises(DataError) as caught:
            complete_task(TaskSpec(text=("title",)), profile)
        assert (caught.value.split, caught.value.row, caught.value.line) == ("validation", 2, 2)
        assert "an object does not fit the rows above" in caught.value.reason

    def test_that_would_be_the_text_is_refused_and_no_other_taken(self, tmp_path: Path):
        rows = rows_with(title=["x"])
        rows[2]["text"] = 5
        path = jsonl(tmp_path / "a.jsonl", rows)
        for profile in both(path, tmp_path):
            with pytest.raises(DataError) as caught:
                complete_task(TaskSpec(), profile)
            assert (caught.value.row, caught.value.column) == (3, "text")
            check_certain_task(profile)  # of two texts the job may name the other
        for row in rows:
            del row["title"]
        profile = convert_here(tmp_path, train=jsonl(path, rows)).profile
        with pytest.raises(DataError) as caught:
            check_certain_task(profile)
        assert (caught.value.row, caught.value.column) == (3, "text")

    @pytest.mark.parametrize("label", [[{"start": 0, "end": 4, "kinds": ["A"]}], {}])
    def test_called_label_is_not_replaced_silently(self, label: Any, tmp_path: Path):
        rows = [{"text": "x", "label": label, "annotator": row} for row in range(3)]
        for profile in both(jsonl(tmp_path / "a.jsonl", rows), tmp_path):
            with pytest.raises(DataError) as caught:
                complete_task(TaskSpec(), profile)
            assert (caught.value.column, caught.value.param) == ("label", "label")
            assert complete_task(TaskSpec(label="annotator"), profile).label == "annotator"

    def test_are_listed_where_no_column_is_left_to_choose(self, tmp_path: Path):
        rows = [{"data": {"text": {"value": "x"}}, "label": row % 2} for row in range(3)]
        for profile in both(jsonl(tmp_path / "a.jsonl", rows), tmp_path):
            with pytest.raises(AmbiguousTaskError, match=r"left out: 'data' \(.*no task reads"):
                complete_task(TaskSpec(), profile)

    def test_are_all_that_there_are(self, tmp_path: Path):
        path = jsonl(tmp_path / "a.jsonl", [{"a": {}, "b": [[1]]}])
        refusal = refusal_of(tmp_path, train=path)
        assert (refusal.row, refusal.column) == (1, "a")


class TestLines:
    @pytest.mark.parametrize(
        ("name", "content", "lines"),
        [
            ("a.jsonl", '{"a": 1}\n{"a": 2}\n', [1, 2]),
            ("a.jsonl", '\ufeff\n\n{"a": 1}\n \t\n\r\n{"a": 2}', [3, 6]),
            ("a.json", '[{"a": 1},\n\n{"a":\n2}]', [1, 3]),
            ("a.csv", "x,y\n1,2\n3,4\n", [2, 3]),
            ("a.csv", "\n\nx,y\n\n1,2\n\n\n3,4", [5, 8]),
            ("a.csv", 'x,y\n"1\n\n1",2\n3,4\n', [2, 5]),
            ("a.csv", '"x\nx",y\n1,2\n3,4\n', [3, 4]),
            ("a.csv", 'x,y\r\n"a ""b\r\n""",2\r\n3,4\r\n', [2, 4]),
            ("a.csv", 'x,y\na"b,2\n"c"d,"e\nf"\n3,4\n', [2, 3, 5]),
            ("a.csv", "x,y\r1,2\r3,4\r", [2, 3]),
            ("a.tsv", 'x\ty\n1,"\t2\n3\t4\n', [2, 3]),
            ("a.tsv", 'x\ty\n1\t"2\n2"\n3\t4\n', [2, 4]),
        ],
    )
    def test_of_rows(self, name: str, content: str, lines: list[int], tmp_path: Path):
        path = write(tmp_path / name, content)
        rows = range(1, len(lines) + 1)
        found = find_lines(path, ending=path.suffix, rows=set(rows))
        assert found == dict(zip(rows, lines, strict=True))
        assert find_lines(path, ending=path.suffix, rows={len(lines) + 1}) == {}
        assert len(load_split(path, split="train")) == len(lines)

    def test_of_a_file_without_lines(self, tmp_path: Path):
        parquet.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
        assert find_lines(tmp_path / "a.parquet", ending=".parquet", rows={1}) == {}

    @given(
        st.lists(
            st.lists(st.text(st.sampled_from('ab"\n\r, é'), max_size=6), min_size=2, max_size=2),
            min_size=1,
            max_size=20,
        ),
        st.sampled_from(["\n", "\r\n"]),
    )
    def test_are_those_of_another_parser(self, rows: list[list[str]], newline: str):
        with tempfile.TemporaryDirectory() as name:
            path = Path(name, "a.csv")
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator=newline)
                writer.writerows([["x", "y"], *rows])
            expected, before = {}, 0
            with path.open(encoding="utf-8", newline="") as file:
                reader = csv.reader(file)
                for number, _ in enumerate(reader):
                    if number:
                        expected[number] = before + 1
                    before = reader.line_num
            assert find_lines(path, ending=".csv", rows=set(expected)) == expected

    @pytest.mark.parametrize(
        ("name", "content", "place"),
        [
            ("a.jsonl", '\n{"a": "x"}\n\n{"a": \n', "row 2 (line 4): not JSON: Expecting value at"),
            ("a.jsonl", '{"a": "x"}\n\n{"a": "\\ud800"}\n', "row 2 (line 3), column 'a': "),
            ("a.json", '[{"a": "x"},\n\n{"a": ]', "row 2 (line 3): not JSON: Expecting value at "),
            ("a.json", '[{"a": "x"},\n{"a": "\\ud800"}]', "row 2 (line 2), column 'a': "),
            ("a.csv", 'a,b\n"x\ny",1\nz\n', "row 2 (line 4): 1 fields, the header has 2"),
            ("a.csv", 'a,b\n"x\ny",1\nz,\0\n', "row 2 (line 4), column 'b': the text holds a NUL"),
            ("a.csv", 'a,b\nx,1\n\n"z,2\n', "row 2 (line 4): a quotation mark"),
        ],
    )
    def test_are_named_by_errors(self, name: str, content: str, place: str, tmp_path: Path):
        path = write(tmp_path / name, content)
        with pytest.raises(DataError) as caught:
            load_split(str(path), split="train")
        assert str(caught.value).startswith(f"train, {place}")
        assert str(refusal_of(tmp_path, train=path)) == str(caught.value)

    def test_of_a_json_error_name_its_character(self, tmp_path: Path):
        path = write(tmp_path / "a.jsonl", '{"a": 1}\n\n\n{"a": 1,, "b": 2}\n')
        reason = refusal_of(tmp_path, train=path).reason
        assert reason.startswith("not JSON: Expecting property name enclosed in double quotes")
        assert reason.endswith("at character 9 of the line")
        assert "line 1" not in reason

    def test_of_rows_that_a_task_refuses_are_kept_for_the_job(self, tmp_path: Path):
        path = write(tmp_path / "a.csv", 'text,topic,n\n"a\n\nb",x,1\n\n ,y,2\n')
        profile = convert_here(tmp_path, train=path).profile
        with pytest.raises(DataError) as caught:
            complete_task(TaskSpec(text=("text",), label="n"), profile)
        assert str(caught.value) == "train, row 2 (line 6), column 'text': the text is empty"
        assert DatasetProfile.from_json(profile.to_json()) == profile

    def test_of_rows_that_training_refuses(self, tmp_path: Path):
        path = write(tmp_path / "a.csv", "text\na\n\n\nb\n")
        for source, line in ((path, 5), (str(path), 5), ([{"text": "a"}], None)):
            with pytest.raises(DataError) as caught, named_lines({"train": source}):
                raise DataError("it is so", split="train", row=2)
            assert caught.value.line == line
        with pytest.raises(DataError) as caught, named_lines({"train": path, "validation": None}):
            raise DataError("it is so", split="validation", row=2)
        assert caught.value.line is None
