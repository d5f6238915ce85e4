"""hifi.data.formats: one reader for each ending, and which columns it looks at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hifi.data.columns import profile_split, read_targets, read_texts
from hifi.data.formats import ENDINGS
from hifi.data.formats.checks import first_misfit
from hifi.data.formats.limits import UNLIMITED, Budget
from hifi.data.formats.reader import open_reader
from hifi.data.splits import load_split
from hifi.errors import DataError, MissingColumnError
from tests.hifi.data.files import json_list, jsonl, write
from tests.root import ROOT


def parquet(path: Path, columns: dict[str, Any], **metadata: str) -> Path:
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return path


ODD = [{"odd": [[1]], "text": "x"}, {"odd": "y", "text": "z"}]
# Of every format a file whose column "odd" no task could read.
FILES = {
    ".jsonl": lambda folder: jsonl(folder / "a.jsonl", ODD),
    ".json": lambda folder: json_list(folder / "a.json", ODD),
    ".csv": lambda folder: write(folder / "a.csv", b"odd,text\n\xff,x\n\0,z\n"),
    ".tsv": lambda folder: write(folder / "a.tsv", b"odd\ttext\n\xff\tx\n\0\tz\n"),
    ".parquet": lambda folder: parquet(
        folder / "a.parquet",
        {
            "odd": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
            "odd.text": pa.array([[[1]], None]),
            "text": ["x", "z"],
        },
    ),
}


class TestReaders:
    @pytest.mark.process
    def test_are_described_without_loading_one(self):
        code = "import sys, hifi.data.formats, hifi.data.formats.limits; print(*sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert not {"pyarrow", "numpy", "pandas"} & set(done.stdout.split())

    def test_are_all_tried_here(self):
        assert set(FILES) == set(ENDINGS)

    @pytest.mark.parametrize("ending", ENDINGS)
    def test_do_not_check_unused_columns(self, ending: str, tmp_path: Path):
        path = FILES[ending](tmp_path)
        reader = open_reader(path, ending=ending, budget=Budget(UNLIMITED), columns=["text"])
        assert reader.schema.names == ["text"]
        assert pa.Table.from_batches(reader.batches()).to_pydict() == {"text": ["x", "z"]}
        with pytest.raises(DataError, match="odd"):
            load_split(path, split="train", columns=["odd"])

    @pytest.mark.parametrize("ending", ENDINGS)
    def test_name_the_existing_columns(self, ending: str, tmp_path: Path):
        with pytest.raises(MissingColumnError, match=r"the columns are: 'odd'.*'text'") as caught:
            load_split(FILES[ending](tmp_path), split="test", columns=["text", "none"])
        assert (caught.value.split, caught.value.column) == ("test", "none")

    def test_of_the_library_take_rows_that_an_upload_may_not_have(self, tmp_path: Path):
        text = "x" * (3 << 20)
        paths = [
            jsonl(tmp_path / "a.jsonl", [{"text": text}]),
            json_list(tmp_path / "a.json", [{"text": text}]),
            write(tmp_path / "a.csv", f"text,label\n{text},1\n"),
        ]
        for path in paths:
            assert load_split(path, split="train")["text"][:] == [text]

    def test_of_the_library_take_thousands_of_columns(self, tmp_path: Path):
        row = {f"c{column}": column for column in range(3000)}
        lines = [",".join(map(str, line)) for line in (row.keys(), row.values())]
        for path in (
            write(tmp_path / "a.csv", "\n".join(lines)),
            write(tmp_path / "a.jsonl", json.dumps(row)),
            write(tmp_path / "a.json", json.dumps([row])),
        ):
            assert len(load_split(path, split="train").column_names) == 3000


class TestCellsOfParquet:
    """A file marked as cells may come from another program and hold nulls."""

    def test_that_are_null_are_missing(self, tmp_path: Path):
        path = parquet(
            tmp_path / "a.parquet", {"text": ["a", None], "n": ["1", None]}, **{"hifi.cells": "1"}
        )
        dataset = load_split(path, split="train")
        with pytest.raises(DataError, match="row 2, column 'text': the text is missing"):
            read_texts(dataset, "text", split="train")
        with pytest.raises(DataError, match="row 2, column 'n': the target is missing"):
            read_targets(dataset, "n", split="train")
        label = profile_split(dataset).columns[1].problems["label"]["train"]
        assert (label.row, label.reason) == (2, "the label is missing")


class TestFirstMisfit:
    @pytest.mark.parametrize("place", range(9))
    def test_is_found(self, place: int):
        values = [0] * place + [1] * (9 - place)
        assert first_misfit(values, fit=lambda some: not any(some)) == place
