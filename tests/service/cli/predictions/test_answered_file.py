"""``--out``: rows with their answers beside them; a stopped run continues."""

from __future__ import annotations

import csv
import json
import os
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from hifi.cli import main
from service.cli.predictions import answered_file, display, requests
from tests.service.stub_server import document, problem

PATH = "/jobs/job_1/predict"


@pytest.fixture
def answering(stub, job, monkeypatch):
    """Answer every row by its text's length; count the texts; requests have two rows."""
    asked: list[str] = []
    monkeypatch.setattr(requests, "_MOST_ANSWERS", 2)

    def answer(handler: Any, request: Any) -> None:
        texts = [item["text"] for item in request.json["inputs"]]
        if "stop" in texts and asked.count("stop") == 0:
            asked.append("stop")
            problem(400, "invalid_request", "no more")(handler, request)
            return
        asked.extend(texts)
        data = [
            {"index": index, "job": "job_1", **_answer(text)} for index, text in enumerate(texts)
        ]
        document({"object": "list", "data": data})(handler, request)

    stub.on("GET", "/jobs/job_1", document(job))
    stub.on("POST", PATH, answer)
    return asked


def _answer(text: str) -> dict[str, Any]:
    if text.startswith("bad"):
        number = text.removeprefix("bad ")
        message = f"too long: {number}" if number.isdigit() else "too long"
        return {"error": {"code": "text_too_long", "message": message, "param": None}}
    label = "long" if len(text) > 3 else "short"
    if text == "half":
        label = "\ud800"
    return {"label": label, "score": 0.75, "scores": {label: 0.75}}


def predict(*arguments: object) -> int:
    return main(["jobs", "predict", "job_1", *map(str, arguments)])


class TestFormats:
    def test_json_lines_keep_every_column(self, answering, tmp_path):
        rows = [
            {"text": "a", "meta": {"any": [1]}, "label": 0},
            {"text": "größe"},
            {"text": "bad", "label": None},
        ]
        source, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
        source.write_text("\n".join(map(json.dumps, rows)))
        assert predict("--file", source, "--out", out) == 1
        written = [json.loads(line) for line in out.read_text().splitlines()]
        short = {"label": "short", "score": 0.75, "scores": {"short": 0.75}}
        assert written[0] == {**rows[0], **{f"predicted_{k}": v for k, v in short.items()}}
        assert written[1]["predicted_label"] == "long"
        assert written[2] == {
            **rows[2],
            "predicted_error": {"code": "text_too_long", "message": "too long", "param": None},
        }
        assert answering == ["a", "größe", "bad"]

    @pytest.mark.parametrize("is_nested", [False, True])
    def test_a_json_list_stays_a_list(self, answering, is_nested, tmp_path):
        rows = [{"text": "a", "meta": {"any": [1]}}, {"text": "größe", "\udead": "\ud800"}]
        source, out = tmp_path / "rows.json", tmp_path / "out.json"
        source.write_text(json.dumps({"data": rows} if is_nested else rows))
        assert predict("--file", source, "--out", out) == 0
        written = json.loads(out.read_text(encoding="utf-8"))
        assert [
            {name: row[name] for name in row if "predicted" not in name} for row in written
        ] == (rows)
        assert [row["predicted_label"] for row in written] == ["short", "long"]
        assert answering == ["a", "größe"]

    def test_json_lines_in_a_json_file_stay_lines(self, answering, tmp_path):
        rows = [{"text": "a"}, {"text": "größe"}]
        source, out = tmp_path / "rows.json", tmp_path / "out.json"
        source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        assert predict("--file", source, "--out", out) == 0
        lines = out.read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["predicted_label"] for line in lines] == ["short", "long"]
        assert answering == ["a", "größe"]

    def test_the_questions_of_squad_become_a_list_of_rows(self, job, request, tmp_path):
        job["spec"]["task"]["text"] = ["question"]
        answering = request.getfixturevalue("answering")
        source, out = tmp_path / "rows.json", tmp_path / "out.json"
        asked = [{"id": "q1", "question": "a"}, {"id": "q2", "question": "größe"}]
        article = {"title": "b", "paragraphs": [{"context": "c", "qas": asked}]}
        source.write_text(json.dumps({"version": "v2.0", "data": [article]}))
        assert predict("--file", source, "--out", out) == 0
        written = json.loads(out.read_text(encoding="utf-8"))
        names = ("id", "title", "context", "predicted_label")
        assert [tuple(row[name] for name in names) for row in written] == [
            ("q1", "b", "c", "short"),
            ("q2", "b", "c", "long"),
        ]
        assert answering == ["a", "größe"]

    @pytest.mark.parametrize(("ending", "sign"), [(".csv", ","), (".tsv", "\t")])
    def test_delimited_files_keep_their_texts(self, answering, ending, sign, tmp_path):
        source, out = tmp_path / f"rows{ending}", tmp_path / f"out{ending}"
        source.write_text(f'id{sign}text\n007{sign}"a\nb"\n1.50{sign}bad\n')
        assert predict("--file", source, "--out", out) == 1
        with out.open(newline="") as file:
            written = list(csv.reader(file, delimiter=sign))
        fields = ["label", "score", "scores", "error"]
        assert written == [
            ["id", "text", *(f"predicted_{name}" for name in fields)],
            ["007", "a\nb", "short", "0.75", '{"short": 0.75}', ""],
            ["1.50", "bad", "", "", "", "too long (text_too_long)"],
        ]
        assert answering == ["a\nb", "bad"]

    @pytest.mark.parametrize(("ending", "sign"), [(".csv", ","), (".tsv", "\t")])
    def test_delimited_files_keep_columns_without_a_name(self, answering, ending, sign, tmp_path):
        source, out = tmp_path / f"rows{ending}", tmp_path / f"out{ending}"
        rows = [
            ["", "text", "Unnamed: 0", " ", "library", ""],
            ["0", "a", "x", "y", "numpy", "1.50"],
            ["1", "größe", "", "", "pandas", "2.0"],
        ]
        source.write_text("".join(f"{sign.join(row)}\n" for row in rows), encoding="utf-8")
        assert predict("--file", source, "--out", out) == 0
        assert answering == ["a", "größe"]
        with out.open(encoding="utf-8", newline="") as file:
            written = list(csv.reader(file, delimiter=sign))
        assert [row[:6] for row in written] == rows
        assert [row[6] for row in written] == ["predicted_label", "short", "long"]

    def test_parquet_keeps_its_types(self, answering, tmp_path):
        source, out = tmp_path / "rows.parquet", tmp_path / "out.parquet"
        table = pa.table(
            {
                "when": pa.array(range(5), pa.timestamp("ms")),
                "text": ["a", "bad", "größe", "b", "c"],
                "maps": pa.array([[("k", 1)]] * 5, pa.map_(pa.string(), pa.int64())),
            }
        )
        parquet.write_table(table, source, row_group_size=2)
        assert predict("--file", source, "--out", out) == 1
        assert answering == table["text"].to_pylist()
        written = parquet.read_table(out)
        assert written.select(table.column_names) == table
        assert written["predicted_label"].to_pylist() == ["short", None, "long", "short", "short"]
        assert written["predicted_score"].type == pa.float64()
        assert written["predicted_error"].to_pylist()[:2] == [None, "too long (text_too_long)"]

    def test_parquet_has_the_types_of_answers(self, stub, job, tmp_path):
        task = {"type": "question-answering", "question": "text", "context": "c", "answers": "a"}
        stub.on("GET", "/jobs/job_1", document({**job, "spec": {**job["spec"], "task": task}}))
        found: Any = [
            {"answer": "Turin", "score": 0.9, "start": 20, "end": 25},
            {"answer": None, "score": 0.8, "start": None, "end": None},
        ]
        data = [{"index": index, "job": "job_1", **each} for index, each in enumerate(found)]
        stub.on("POST", PATH, document({"object": "list", "data": data}))
        source, out = tmp_path / "rows.parquet", tmp_path / "out.parquet"
        parquet.write_table(pa.table({"text": ["Where?", "Why?"], "c": ["a", "b"]}), source)
        assert predict("--file", source, "--out", out) == 0
        written = parquet.read_table(out)
        for name, kind in (("score", pa.float64()), ("start", pa.int64()), ("end", pa.int64())):
            assert written.schema.field(f"predicted_{name}").type == kind
        for name in ("answer", "score", "start", "end"):
            assert written[f"predicted_{name}"].to_pylist() == [each[name] for each in found]

    def test_large_rows_of_parquet_are_in_memory_a_few_at_a_time(
        self, answering, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(answered_file, "_BATCH_BYTES", 4000)
        source, out = tmp_path / "rows.parquet", tmp_path / "out.parquet"
        large = [os.urandom(1000) for _ in range(9)]
        table = pa.table({"text": [f"t{row}" for row in range(9)], "other": large})
        parquet.write_table(table, source)
        assert predict("--file", source, "--out", out) == 0
        assert len(answering) == 9
        assert parquet.read_table(out).select(table.column_names) == table
        groups = parquet.read_metadata(out).num_row_groups
        assert groups > 2  # each was written before the next was read


class TestHalvesOfSurrogatePairs:
    """JSON can escape them; UTF-8, and so every output, has none."""

    def test_of_json_lines_read_as_they_were(self, answering, tmp_path):
        rows = [
            {"text": "bad \ud800 x"},
            {"text": "größe", "note": ["\\\udfff"]},
            {"text": "a", "\udead": 1},
            {"text": "half"},
        ]
        source, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
        source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        assert predict("--file", source, "--out", out) == 1
        assert answering == ["bad \ud800 x", "größe", "a", "half"]
        written = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        for row, found in zip(rows, written, strict=True):
            assert {name: found[name] for name in row} == row
        assert written[0]["predicted_error"]["code"] == "text_too_long"
        labels = [row.get("predicted_label") for row in written]
        assert labels == [None, "long", "short", "\ud800"]

    @pytest.mark.parametrize("ending", [".csv", ".tsv"])
    def test_of_answers_are_escaped_in_delimited_files(self, answering, ending, tmp_path):
        source, out = tmp_path / f"rows{ending}", tmp_path / f"out{ending}"
        source.write_text("text\na\nhalf\n")
        assert predict("--file", source, "--out", out) == 0
        assert answering == ["a", "half"]
        sign = "," if ending == ".csv" else "\t"
        with out.open(encoding="utf-8", newline="") as file:
            written = list(csv.DictReader(file, delimiter=sign))
        assert [row["predicted_label"] for row in written] == ["short", "\\ud800"]
        assert written[1]["predicted_scores"] == '{"\\ud800": 0.75}'

    def test_of_answers_are_escaped_in_parquet(self, answering, tmp_path):
        source, out = tmp_path / "rows.parquet", tmp_path / "out.parquet"
        parquet.write_table(pa.table({"text": ["a", "half"]}), source)
        assert predict("--file", source, "--out", out) == 0
        assert answering == ["a", "half"]
        assert parquet.read_table(out)["predicted_label"].to_pylist() == ["short", "\\ud800"]


class TestRowsWithoutAnAnswer:
    def test_are_named_with_their_lines(self, answering, tmp_path, capsys):
        texts = ["a", "bad", "b", "bad", "bad", "bad"]
        source, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
        source.write_text("\n\n".join(json.dumps({"text": text}) for text in texts))
        assert predict("--file", source, "--out", out) == 1
        assert answering == texts
        rows = "row 2 (line 3), row 4 (line 7), row 5 (line 9) and 1 more"
        assert capsys.readouterr().err.splitlines() == [
            f"hifi: error: {rows}: too long (text_too_long)",
            "hifi: error: 4 of 6 rows have no answer; predicted_error says why",
        ]

    def test_of_delimited_files_are_named_with_the_line_on_which_they_begin(
        self, answering, tmp_path, capsys
    ):
        source, out = tmp_path / "rows.csv", tmp_path / "out.csv"
        source.write_text('text,other\n"a\nb",x\n\nbad,"y\ny"\nbad,z\n')
        for options in (["--out", out], []):
            assert predict("--file", source, *options) == 1
            told = "hifi: error: row 2 (line 5), row 3 (line 7): too long (text_too_long)"
            assert capsys.readouterr().err.splitlines()[0] == told
        assert answering == ["a\nb", "bad", "bad"] * 2

    def test_of_json_are_named_with_the_line_on_which_they_begin(self, answering, tmp_path, capsys):
        source, out = tmp_path / "rows.json", tmp_path / "out.json"
        source.write_text('[{"text": "a"},\n\n{\n"text": "bad"},\n {"text": "bad"}]')
        for options in (["--out", out], []):
            assert predict("--file", source, *options) == 1
            told = "hifi: error: row 2 (line 3), row 3 (line 5): too long (text_too_long)"
            assert capsys.readouterr().err.splitlines()[0] == told
        assert answering == ["a", "bad", "bad"] * 2

    def test_of_parquet_have_no_line(self, answering, tmp_path, capsys):
        source, out = tmp_path / "rows.parquet", tmp_path / "out.parquet"
        parquet.write_table(pa.table({"text": ["a", "bad"]}), source)
        assert predict("--file", source, "--out", out) == 1
        assert answering == ["a", "bad"]
        told = "hifi: error: row 2: too long (text_too_long)"
        assert capsys.readouterr().err.splitlines()[0] == told

    def test_of_an_earlier_run_are_named_too(self, answering, tmp_path, capsys):
        source, out = tmp_path / "rows.csv", tmp_path / "out.csv"
        source.write_text("text\nbad\na\nb\nstop\n")
        assert predict("--file", source, "--out", out) == 1
        capsys.readouterr()
        assert predict("--file", source, "--out", out) == 1
        assert answering == ["bad", "a", "stop", "b", "stop"]
        assert "row 1 (line 2): too long" in capsys.readouterr().err

    def test_with_many_errors_are_named_for_the_first(
        self, answering, tmp_path, capsys, monkeypatch
    ):
        monkeypatch.setattr(display, "_SHOWN_ERRORS", 2)
        source, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
        texts = ["bad 1", "bad 2", "bad 3", "bad 2"]
        source.write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
        expected = [
            "hifi: error: row 1: too long: 1 (text_too_long)",
            "hifi: error: row 2, row 4: too long: 2 (text_too_long)",
        ]
        for options, hint in ([], "--json lists all"), (["--out", out], "predicted_error says why"):
            assert predict("--file", source, *options) == 1
            last = f"hifi: error: 4 of 4 rows have no answer; {hint}"
            assert capsys.readouterr().err.splitlines() == [*expected, last]
        assert answering == texts * 2


class TestContinuing:
    @pytest.fixture
    def source(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        texts = ["a", "b", "c", "stop", "e"]
        path.write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
        return path

    def test_asks_only_for_the_rows_without_an_answer(self, answering, source, tmp_path, capsys):
        out = tmp_path / "out.jsonl"
        assert predict("--file", source, "--out", out) == 1
        assert "2 rows are done; run the same command again" in capsys.readouterr().err
        assert not out.exists()
        assert predict("--file", source, "--out", out) == 0
        assert answering == ["a", "b", "stop", "c", "stop", "e"]
        written = [json.loads(line) for line in out.read_text().splitlines()]
        assert [row["text"] for row in written] == ["a", "b", "c", "stop", "e"]
        assert [path.name for path in tmp_path.iterdir()].count("out.jsonl.part") == 0

    @pytest.mark.usefixtures("answering")
    def test_an_error_before_the_first_answer_leaves_nothing(self, tmp_path, capsys):
        source, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
        source.write_text('{"text": "stop"}\n')
        assert predict("--file", source, "--out", out) == 1
        assert capsys.readouterr().err == "hifi: error: no more\n"
        assert list(tmp_path.iterdir()) == [source]

    def test_a_line_that_was_cut_off_is_asked_again(self, answering, source, tmp_path):
        out, journal = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
        assert predict("--file", source, "--out", out) == 1
        journal.write_bytes(journal.read_bytes()[:-5])
        assert predict("--file", source, "--out", out) == 0
        assert answering == ["a", "b", "stop", "b", "c", "stop", "e"]

    @pytest.mark.parametrize("change", ["rows", "options"])
    def test_answers_for_something_else_are_refused(
        self, change, answering, source, tmp_path, capsys
    ):
        out = tmp_path / "out.jsonl"
        assert predict("--file", source, "--out", out) == 1
        before = (tmp_path / "out.jsonl.part").read_bytes()
        if change == "rows":
            source.write_text('{"text": "other"}\n')
        options = ["--no-truncate"] if change == "options" else []
        assert predict("--file", source, "--out", out, *options) == 1
        assert "has answers for other rows" in capsys.readouterr().err
        assert (tmp_path / "out.jsonl.part").read_bytes() == before
        assert "other" not in answering

    def test_json_describes_the_file(self, answering, tmp_path, capsys):
        source, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
        source.write_text('{"text": "a"}\n')
        assert predict("--file", source, "--out", out, "--json") == 0
        assert answering
        written = json.loads(capsys.readouterr().out)
        assert written["object"] == "predictions"
        assert (written["rows"], written["errors"], written["job"]) == (1, 0, "job_1")
        assert (written["path"], written["bytes"]) == (str(out), out.stat().st_size)


class TestRefusals:
    @pytest.mark.parametrize(
        ("out", "told"),
        [
            ("out.csv", "must end with .jsonl"),
            ("rows.jsonl", "is the file of the rows"),
            ("missing/out.jsonl", "does not exist"),
        ],
    )
    def test_outputs_that_cannot_be_written(self, out, told, answering, tmp_path, capsys):
        source = tmp_path / "rows.jsonl"
        source.write_text('{"text": "a"}\n')
        assert predict("--file", source, "--out", tmp_path / out) == 1
        assert told in capsys.readouterr().err
        assert answering == []
        assert source.read_text() == '{"text": "a"}\n'

    def test_rows_that_have_answers_already(self, answering, tmp_path, capsys):
        source = tmp_path / "rows.jsonl"
        source.write_text('{"text": "a", "predicted_label": "x"}\n')
        assert predict("--file", source, "--out", tmp_path / "out.jsonl") == 1
        assert "has answers already: the column 'predicted_label'" in capsys.readouterr().err
        assert answering == []
