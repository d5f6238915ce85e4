"""worker.inference.batches.rows: resuming in the middle, and what makes a row no input."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from worker.inference.batches.rows import RowInvalidError, read_batches, read_input


class TestReadBatches:
    @pytest.mark.parametrize("start", [0, 1, 299, 300, 301, 600, 899, 900])
    def test_begins_at_any_row(self, tmp_path: Path, start: int):
        parquet.write_table(pa.table({"n": range(900)}), tmp_path / "f", row_group_size=300)
        with parquet.ParquetFile(tmp_path / "f") as file:
            found = [row["n"] for b in read_batches(file, start=start) for row in b.to_pylist()]
        assert found == list(range(start, 900))


class TestReadInput:
    def test_takes_the_columns_of_the_job(self):
        row = {"a": "x", "b": "y", "other": 3}
        assert read_input(row, {"text": "a", "text_pair": "b"}) == {"text": "x", "text_pair": "y"}
        assert read_input({"w": ["x", "y"]}, {"tokens": "w"}) == {"tokens": ["x", "y"]}
        image = {"i": {"bytes": b"\x00\x01", "path": "p"}}
        assert read_input(image, {"image": "i"}) == {"image": "AAE="}

    def test_takes_choices_of_one_column_or_several(self):
        row = {"a": "x", "b": "y", "both": ["x", "y"], "stem": "s"}
        wanted = {"text": "s", "choices": ["x", "y"]}
        for choices in ("both", ("a", "b")):
            assert read_input(row, {"text": "stem", "choices": choices}) == wanted
        with pytest.raises(RowInvalidError, match="the column 'b' is an empty text"):
            read_input({**row, "b": ""}, {"choices": ("a", "b")})

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            *(("text", value) for value in (None, 3, "", "a\0b", "x" * 10_000_000)),
            *(("tokens", value) for value in ("text", [], [""], [None])),
            *(("image", value) for value in (None, "text", {"bytes": None})),
        ],
    )
    def test_names_the_column_of_what_it_cannot_read(self, field: str, value: object):
        with pytest.raises(RowInvalidError, match="'c'"):
            read_input({"c": value}, {field: "c"})
