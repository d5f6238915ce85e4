"""hifi.data.formats.limits: one row cannot be huge, in any format, however small its file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from hifi.data.columns import read_texts
from hifi.data.formats.limits import MAX_CHARACTERS, too_large_row
from hifi.data.formats.parquet import ParquetReader
from hifi.data.inference import complete_task
from hifi.data.spec import TaskSpec
from hifi.data.splits import load_split
from hifi.errors import DataError
from tests.hifi.data.files import LIMITS, convert_here, json_list, jsonl, refusal_of, write
from tests.repeated_rows import repeated_rows

LONG = "é" * (MAX_CHARACTERS + 1)
REASON = "the text has 100,001 characters; at most 100,000 are allowed"


def table(path: Path, texts: list[str], *, rows: int = 2, is_coded: bool = True) -> Path:
    """Write a Parquet file whose texts repeat in all rows, and return its path."""
    path.write_bytes(repeated_rows(*texts, rows=rows, is_coded=is_coded))
    return path


@pytest.fixture
def without_unpacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a Parquet file's dictionaries be read, and not their values in every row."""
    monkeypatch.setattr(ParquetReader, "_plain", None)  # calling it would fail


def files(folder: Path) -> list[Path]:
    rows = [{"text": "x", "label": 0}, {"text": LONG, "label": 1}]
    return [
        jsonl(folder / "a.jsonl", rows),
        json_list(folder / "a.json", rows),
        write(folder / "a.csv", f"text,label\nx,0\n{LONG},1\n"),
        table(folder / "a.parquet", ["x", LONG]),
        table(folder / "b.parquet", ["x", LONG], is_coded=False),
    ]


class TestCharacters:
    def test_of_a_text_are_limited_where_a_task_reads_it(self, tmp_path: Path):
        for path in files(tmp_path):
            with pytest.raises(DataError) as caught:
                read_texts(load_split(path, split="train"), "text", split="train")
            assert (caught.value.row, caught.value.column) == (2, "text")
            assert caught.value.reason == REASON
            profile = convert_here(tmp_path, train=path).profile
            with pytest.raises(DataError, match=r"train, row 2.*column 'text'") as caught:
                complete_task(TaskSpec(), profile)
            assert caught.value.reason == REASON

    def test_as_many_as_allowed_are_read(self, tmp_path: Path):
        path = table(tmp_path / "a.parquet", ["x", LONG[1:]])
        texts = read_texts(load_split(path, split="train"), "text", split="train")
        assert len(texts[1]) == MAX_CHARACTERS
        assert complete_task(TaskSpec(), convert_here(tmp_path, train=path).profile)

    def test_of_other_columns_do_not_matter(self, tmp_path: Path):
        rows = [{"text": "x", "page": LONG, "label": row} for row in range(2)]
        profile = convert_here(tmp_path, train=jsonl(tmp_path / "a.jsonl", rows)).profile
        assert complete_task(TaskSpec(text=("text",)), profile).label == "label"

    @pytest.mark.usefixtures("without_unpacking")
    def test_are_counted_before_a_dictionary_is_unpacked(self, tmp_path: Path):
        path = table(tmp_path / "a.parquet", ["x" * 4_000_000], rows=500)  # 2 GB of texts
        assert path.stat().st_size < 100_000
        with pytest.raises(DataError, match="4,000,000 characters") as caught:
            load_split(path, split="train", columns=["text", "label"])
        assert (caught.value.row, caught.value.column) == (1, "text")


class TestRows:
    @pytest.mark.parametrize("nested", ["text", "list", "struct"])
    def test_of_an_upload_hold_no_more_text_in_parquet_than_in_other_files(
        self, nested: str, tmp_path: Path
    ):
        text = "x" * 1_500_000
        values = {
            "text": pa.array(["y", text * 2]),
            "list": pa.array([["y"], [text, text]]),
            "struct": pa.array([{"a": "y", "b": "y"}, {"a": text, "b": text}]),
        }[nested]
        columns = {"text": ["a", "b"], "label": [0, 1], "other": values}
        parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
        refusal = refusal_of(tmp_path, train=tmp_path / "a.parquet")
        assert (refusal.row, refusal.reason) == (2, "the row has more than 2 MiB of texts")

    def test_hold_images_of_any_size(self, tmp_path: Path):
        image = {"bytes": b"\x89PNG\r\n\x1a\n" + bytes(3 << 20), "path": None}
        columns = {"image": [image, image], "label": [0, 1]}
        parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
        assert convert_here(tmp_path, train=tmp_path / "a.parquet").rows == {"train": 2}

    @pytest.mark.usefixtures("without_unpacking")
    def test_of_48_megabytes_are_refused_by_the_library_too(self, tmp_path: Path):
        row = json.dumps({"text": "x" * 48_000_000})
        path = write(tmp_path / "a.jsonl", f'{{"text": "x"}}\n{row}\n')
        with pytest.raises(DataError, match=r"row 2 \(line 2\): the row has more than 32 MiB"):
            load_split(path, split="train")
        path = table(tmp_path / "a.parquet", ["x" * 48_000_000], rows=40)
        with pytest.raises(DataError, match="row 1: the row has more than 32 MiB of texts"):
            load_split(path, split="train")

    def test_that_repeat_are_counted_before_they_are_read(self, tmp_path: Path):
        path = table(tmp_path / "a.parquet", ["a nice film"], rows=300_000)
        assert path.stat().st_size < 50_000
        refusal = refusal_of(tmp_path, train=path, limits=replace(LIMITS, max_rows=200_000))
        assert "more than 200000 rows" in refusal.reason


@pytest.mark.parametrize(("most", "words"), [(2 << 20, "2 MiB"), (3 << 19, "1536 KiB")])
def test_a_row_that_is_too_large_is_told_in_whole_units(most: int, words: str):
    assert too_large_row(most) == f"the row has more than {words}"
