"""Rows of files as practitioners have them: the input is taken, other columns are left alone."""

from __future__ import annotations

import base64
import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from service.cli.predictions.rows import RowsError, input_columns, open_row_file, place_of

PAIR = {"text": "sentence1", "text_pair": "sentence2"}


def items(path, *, columns):
    with open_row_file(str(path), columns=columns) as file:
        return [row.item for row in file.rows()]


class TestInputColumns:
    @pytest.mark.parametrize(
        ("task", "columns"),
        [
            ({"type": "classification", "text": ["a", "b"]}, {"text": "a", "text_pair": "b"}),
            ({"type": "regression", "text": ["a"]}, {"text": "a"}),
            ({"type": "classification", "text": "a"}, {"text": "a"}),
            ({"type": "image-classification", "image": "photo"}, {"image": "photo"}),
            (
                {"type": "question-answering", "question": "q", "context": "c", "answers": "a"},
                {"question": "q", "context": "c"},
            ),
            (
                {"type": "multiple-choice", "text": ["s"], "choices": ["a", "b"], "label": "l"},
                {"text": "s", "choices": ("a", "b")},
            ),
            (
                {"type": "multiple-choice", "choices": ["endings"], "label": "l"},
                {"choices": "endings"},
            ),
            ({"type": None}, {}),
        ],
    )
    def test_are_the_training_columns_by_the_fields_of_an_input(self, task, columns):
        assert input_columns({"spec": {"task": task}}) == columns

    def test_of_a_job_without_a_task_are_unknown(self):
        assert input_columns({"spec": {}}) == {}


class TestChoices:
    COLUMNS = {"text": "stem", "choices": ("a", "b")}  # noqa: RUF012 - not changed
    ROWS = (
        {"stem": "She", "a": "left", "b": "ran", "label": 0},
        {"stem": "He", "a": "slept", "b": "sang", "label": 1},
    )
    WANTED = (
        {"text": "She", "choices": ["left", "ran"]},
        {"text": "He", "choices": ["slept", "sang"]},
    )

    def test_of_several_columns(self, tmp_path):
        lines = tmp_path / "rows.jsonl"
        lines.write_text("\n".join(map(json.dumps, self.ROWS)), encoding="utf-8")
        table = tmp_path / "rows.parquet"
        parquet.write_table(pa.Table.from_pylist(list(self.ROWS)), table)
        cells = tmp_path / "rows.csv"
        cells.write_text("stem,a,b,label\nShe,left,ran,0\nHe,slept,sang,1\n", encoding="utf-8")
        for path in (lines, table, cells):
            assert items(path, columns=self.COLUMNS) == list(self.WANTED)

    def test_of_a_list_under_the_request_s_own_name(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(map(json.dumps, self.WANTED)), encoding="utf-8")
        assert items(path, columns=self.COLUMNS) == list(self.WANTED)


class TestTrainingFile:
    ROWS = (
        {"idx": 7, "sentence1": "a", "sentence2": "b", "label": 1, "meta": {"any": ["thing"]}},
        {"idx": 8, "sentence1": "größe", "sentence2": "", "label": None, "meta": {}},
    )
    WANTED = ({"text": "a", "text_pair": "b"}, {"text": "größe", "text_pair": ""})

    def test_json_lines(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        path.write_text("\n\n".join(map(json.dumps, self.ROWS)), encoding="utf-8")
        assert items(path, columns=PAIR) == list(self.WANTED)

    def test_json(self, tmp_path):
        path = tmp_path / "rows.json"
        for content in (
            json.dumps(self.ROWS, indent=2),
            json.dumps({"version": 1, "data": self.ROWS}),
            "\n\n".join(map(json.dumps, self.ROWS)),
        ):
            path.write_text(content, encoding="utf-8")
            assert items(path, columns=PAIR) == list(self.WANTED)

    def test_questions_of_squad(self, tmp_path):
        path = tmp_path / "rows.json"
        asked = [{"id": str(number), "question": f"Q{number}"} for number in range(2)]
        article = {"title": "a", "paragraphs": [{"context": "größe", "qas": asked}]}
        path.write_text(json.dumps({"version": "v2.0", "data": [article]}))
        assert items(path, columns={"text": "question", "text_pair": "context"}) == [
            {"text": "Q0", "text_pair": "größe"},
            {"text": "Q1", "text_pair": "größe"},
        ]

    def test_every_task_of_label_studio(self, tmp_path):
        """Those too that training leaves out, because nobody has annotated them."""
        path = tmp_path / "rows.json"
        result = {"was_cancelled": False, "result": []}
        tasks = [
            {"id": number, "data": {"text": text}, "annotations": [result] * (number % 2)}
            for number, text in enumerate(["a", "b", "c"])
        ]
        path.write_text(json.dumps(tasks))
        assert [item["text"] for item in items(path, columns={"text": "text"})] == ["a", "b", "c"]

    @pytest.mark.parametrize(("ending", "sign"), [(".csv", ","), (".tsv", "\t")])
    def test_delimited(self, ending, sign, tmp_path):
        path = tmp_path / f"rows{ending}"
        lines = [["idx", "sentence1", "sentence2", "label"], ["7", "a", "b", "x"]]
        lines += [["8", "größe", '""', "y"]]
        path.write_text("\n".join(map(sign.join, lines)), encoding="utf-8")
        assert items(path, columns=PAIR) == list(self.WANTED)

    def test_parquet_with_columns_that_no_task_reads(self, tmp_path):
        path = tmp_path / "rows.parquet"
        table = pa.table(
            {
                "sentence1": ["a", "größe"],
                "sentence2": ["b", ""],
                "when": pa.array([1, 2], pa.duration("s")),
                "maps": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())),
            }
        )
        parquet.write_table(table, path)
        assert items(path, columns=PAIR) == list(self.WANTED)

    @pytest.mark.parametrize("is_struct", [False, True])
    def test_pictures_of_parquet_are_encoded(self, is_struct, tmp_path):
        path = tmp_path / "rows.parquet"
        picture = {"bytes": b"\x89PNG", "path": "a.png"} if is_struct else b"\x89PNG"
        parquet.write_table(pa.table({"photo": [picture], "label": [1]}), path)
        encoded = base64.b64encode(b"\x89PNG").decode()
        assert items(path, columns={"image": "photo"}) == [{"image": encoded}]

    def test_many_batches_are_read_in_order(self, tmp_path):
        path = tmp_path / "rows.parquet"
        texts = [f"text {number}" for number in range(1000)]
        parquet.write_table(pa.table({"text": texts}), path, row_group_size=300)
        assert [item["text"] for item in items(path, columns={"text": "text"})] == texts


class TestRequestsOwnNames:
    def test_are_taken_where_the_training_columns_are_missing(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        path.write_text('{"text": "a", "text_pair": "b", "label": 1}\n')
        assert items(path, columns=PAIR) == [{"text": "a", "text_pair": "b"}]

    def test_the_training_columns_come_first(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        path.write_text('{"text": "wrong", "sentence1": "a", "sentence2": "b"}\n')
        assert items(path, columns=PAIR) == [{"text": "a", "text_pair": "b"}]

    def test_a_row_without_an_input_names_its_line_and_columns(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        path.write_text('{"text": "a"}\n\n{"label": 1, "title": "b"}\n')
        told = r"row 2 \(line 3\) has no column 'sentence1', which the job reads; it has 'label', "
        with pytest.raises(RowsError, match=told):
            items(path, columns=PAIR)


class TestRefusedRows:
    """A message names the line of the file, as for the data sets of the service."""

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            (b"text\na\n\xff\n", r"row 2 \(line 3\), column 'text': not UTF-8"),
            (b'text\n"a\nb"\n\nb\0\n', r"row 2 \(line 5\), column 'text': .* NUL"),
            (b"text,other\na,b\nc\n", r"row 2 \(line 3\): 1 fields"),
            (b"title\na\n", r"^row 1 \(line 2\) has no column 'text'"),
        ],
    )
    def test_of_delimited_files(self, content, told, tmp_path):
        path = tmp_path / "rows.csv"
        path.write_bytes(content)
        with pytest.raises(RowsError, match=told):
            items(path, columns={"text": "text"})

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            (
                b'[{"text": "a"},\n{"text": ]',
                r": row 2 \(line 2\): not JSON: Expecting value at line 2",
            ),
            (
                b'[{"text": "a"},\n{"text": "b"',
                r": row 2 \(line 2\): not JSON: the file ends at line",
            ),
            (b'[{"text": "a"},\n\n{"text": "\xff"}]', r": row 2 \(line 3\): not UTF-8"),
            (
                b'[{"text": "a"},\n\n5]',
                r": row 2 \(line 3\): every entry of the list must be a JSON",
            ),
            (b'{"text": "a"}\n\n{"text": NaN}', r": row 2 \(line 3\): not JSON: NaN is not a JSON"),
            (b'[{"text": "a"},\n{"text": 1e999}]', r"^row 2 cannot be sent"),
            (b'[{"text": "a"}, {"title": "a"}]', r"^row 2 \(line 1\) has no column 'text'"),
            (b'{"a": [1],\n"b": [2]}', r": a \.json file must be a list of objects"),
        ],
    )
    def test_of_json_files(self, content, told, tmp_path):
        path = tmp_path / "rows.json"
        path.write_bytes(content)
        with pytest.raises(RowsError, match=told):
            items(path, columns={"text": "text"})

    @pytest.mark.parametrize(("ending", "line"), [(".json", 6), (".jsonl", 7)])
    def test_of_labelling_tools_have_their_line_among_all_rows(self, ending, line, tmp_path):
        """Training leaves out the first two."""
        path = tmp_path / f"rows{ending}"
        result = {"was_cancelled": False, "result": []}
        tasks = [{"data": {"text": "a"}, "annotations": []}] * 2
        tasks += [{"data": {"text": "a"}, "annotations": [result]}, {"data": {}, "annotations": []}]
        lines = [json.dumps(task) for task in tasks]
        whole = "[\n\n" + ",\n".join(lines) + "]" if ending == ".json" else "\n\n".join(lines)
        path.write_text(whole)
        with pytest.raises(RowsError, match=rf"^row 4 \(line {line}\) has no column 'text'"):
            items(path, columns={"text": "text"})


class TestPlace:
    @pytest.mark.parametrize(
        ("line", "told"), [(None, "row 2"), (2, "row 2"), (5, "row 2 (line 5)")]
    )
    def test_names_the_line_where_it_differs(self, line, told):
        assert place_of(2, line) == told
