"""hifi.data.parquet: invalid files, decompression bombs, and files with false metadata."""

from __future__ import annotations

import datetime as dt
import decimal
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, Image, Value

from hifi.data.profiling import add_lines
from hifi.data.splits import load_split
from hifi.errors import DataError
from service.datasets.checking.exchange import Limits
from tests.hifi.data.files import LIMITS, convert_here, refusal_of, write
from tests.tiny_tasks import png


def table_file(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def features_file(path: Path, columns: dict[str, Any], features: Any) -> Path:
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return path


class TestDamaged:
    @pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1PAR1", b"no parquet" * 100])
    def test_garbage(self, content: bytes, tmp_path: Path):
        refusal = refusal_of(tmp_path, train=write(tmp_path / "a.parquet", content))
        assert "empty" in refusal.reason or "not a Parquet file" in refusal.reason

    @pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
    def test_cut_off(self, keep: float, tmp_path: Path):
        whole = table_file(tmp_path / "a.parquet", {"a": list(range(1000))}).read_bytes()
        path = write(tmp_path / "a.parquet", whole[: int(len(whole) * keep)])
        assert "truncated" in refusal_of(tmp_path, train=path).reason

    def test_the_middle_overwritten(self, tmp_path: Path):
        whole = bytearray(table_file(tmp_path / "a.parquet", {"a": ["x" * 100] * 9}).read_bytes())
        whole[4:60] = b"\xff" * 56
        refusal = refusal_of(tmp_path, train=write(tmp_path / "a.parquet", bytes(whole)))
        assert "damaged or truncated" in refusal.reason

    def test_a_footer_of_nonsense(self, tmp_path: Path):
        whole = bytearray(table_file(tmp_path / "a.parquet", {"a": [1]}).read_bytes())
        whole[-60:-8] = b"\xff" * 52
        refusal = refusal_of(tmp_path, train=write(tmp_path / "a.parquet", bytes(whole)))
        assert "damaged or truncated" in refusal.reason

    def test_a_footer_that_is_huge(self, tmp_path: Path):
        length = 64 << 20
        path = tmp_path / "a.parquet"
        with path.open("wb") as file:
            file.write(b"PAR1")
            file.truncate(length + 4)
            file.seek(0, 2)
            file.write(length.to_bytes(4, "little") + b"PAR1")
        assert "footer" in refusal_of(tmp_path, train=path).reason

    def test_encrypted(self, tmp_path: Path):
        whole = table_file(tmp_path / "a.parquet", {"a": [1]}).read_bytes()
        path = write(tmp_path / "a.parquet", b"PARE" + whole[4:-4] + b"PARE")
        assert "encrypted" in refusal_of(tmp_path, train=path).reason

    def test_texts_that_are_not_utf8(self, tmp_path: Path):
        texts = pa.array([b"a", b"\xff\xfe"]).view(pa.string())
        lists = pa.ListArray.from_arrays([0, 1, 2], texts)
        for values in (texts, lists):
            path = table_file(tmp_path / "a.parquet", {"a": values})
            refusal = refusal_of(tmp_path, train=path)
            assert (refusal.row, refusal.column) == (2, "a")
            assert "UTF-8" in refusal.reason


class TestBombs:
    def test_rows_without_number(self, tmp_path: Path):
        path = table_file(tmp_path / "a.parquet", {"a": pa.nulls(2_000_000, pa.bool_())})
        assert path.stat().st_size < 10_000
        assert "more than 1000000 rows" in refusal_of(tmp_path, train=path).reason

    @pytest.mark.parametrize("nested", ["text", "struct", "list"])
    def test_a_million_times_the_same_text(self, nested: str, tmp_path: Path):
        text = "x" * 100_000
        values: Any = {
            "text": lambda: [text] * 600,
            "struct": lambda: [{"bytes": text.encode(), "path": None}] * 600,
            "list": lambda: [[text] * 20] * 30,
        }[nested]()
        path = table_file(tmp_path / "a.parquet", {"a": values})
        assert path.stat().st_size < 200_000
        limits = replace(LIMITS, max_bytes=50_000_000)
        assert "bytes, the most allowed" in refusal_of(tmp_path, train=path, limits=limits).reason

    def test_a_long_text_in_many_rows_is_no_bomb_where_there_is_room(self, tmp_path: Path):
        path = table_file(tmp_path / "a.parquet", {"a": ["x" * 100_000] * 1000, "b": [0, 1] * 500})
        converted = convert_here(tmp_path, train=path, limits=replace(LIMITS, max_bytes=1 << 30))
        assert converted.rows == {"train": 1000}
        read = load_split(converted.paths["train"], split="train")
        assert {len(text) for text in read["a"]} == {100_000}

    def test_declared_bytes(self, tmp_path: Path):
        path = table_file(tmp_path / "a.parquet", {"a": ["x" * 10_000_000]}, use_dictionary=False)
        limits = replace(LIMITS, max_bytes=1_000_000)
        assert "bytes, the most allowed" in refusal_of(tmp_path, train=path, limits=limits).reason

    def test_columns(self, tmp_path: Path):
        path = table_file(tmp_path / "a.parquet", {f"c{column}": [1] for column in range(1001)})
        assert "1001 columns" in refusal_of(tmp_path, train=path).reason

    def test_entries_of_columns(self, tmp_path: Path):
        entries = {f"c{entry}": 1 for entry in range(600)}
        path = table_file(tmp_path / "a.parquet", {"a": [entries], "b": [entries]})
        assert "1200 columns and entries" in refusal_of(tmp_path, train=path).reason


class TestEmpty:
    def test_without_rows(self, tmp_path: Path):
        path = table_file(tmp_path / "a.parquet", {"a": pa.array([], pa.string())})
        assert refusal_of(tmp_path, train=path).reason == "there are no rows"

    def test_without_columns(self, tmp_path: Path):
        path = table_file(tmp_path / "a.parquet", {})
        assert refusal_of(tmp_path, train=path).reason == "there are no columns"


class TestColumns:
    def test_two_of_one_name(self, tmp_path: Path):
        table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["x", "x"])
        pq.write_table(table, tmp_path / "a.parquet")
        assert refusal_of(tmp_path, train=tmp_path / "a.parquet").column == "x"

    @pytest.mark.parametrize("name", ["a\0b", "x" * 300])
    def test_invalid_names(self, name: str, tmp_path: Path):
        path = table_file(tmp_path / "a.parquet", {name: [1]})
        assert "column 1" in refusal_of(tmp_path, train=path).reason

    @pytest.mark.parametrize(
        "kind",
        [
            pa.list_(pa.list_(pa.int64())),
            pa.list_(pa.struct([("a", pa.int64())])),
            pa.struct([("a", pa.struct([("b", pa.int64())]))]),
            pa.map_(pa.string(), pa.int64()),
            pa.binary(16),
        ],
        ids=str,
    )
    def test_that_no_task_reads_are_left_out(self, kind: pa.DataType, tmp_path: Path):
        path = table_file(tmp_path / "a.parquet", {"a": ["x"], "b": pa.nulls(1, kind)})
        converted = convert_here(tmp_path, train=path)
        assert converted.profile.names == ("a",)
        assert "no task reads columns of" in converted.profile.notes["b"]
        assert load_split(converted.paths["train"], split="train").column_names == ["a"]
        with pytest.raises(DataError, match="column 'b': no task reads columns of"):
            load_split(path, split="train", columns=["a", "b"])
        path = table_file(tmp_path / "a.parquet", {"b": pa.nulls(1, kind)})
        assert refusal_of(tmp_path, train=path).column == "b"

    def test_a_nul_in_a_text_names_the_row(self, tmp_path: Path):
        path = table_file(tmp_path / "a.parquet", {"a": ["x"] * 30_000 + ["\0"]})
        refusal = refusal_of(tmp_path, train=path)
        assert (refusal.row, refusal.column) == (30_001, "a")

    @pytest.mark.parametrize(
        ("values", "name"),
        [
            (pa.array(["x", None], pa.large_string()), "string"),
            (pa.array(["x", "y"], pa.string_view()), "string"),
            (pa.array(["x", "y", "x"]).dictionary_encode(), "string"),
            (pa.array([1, 2]).dictionary_encode(), "int64"),
            (pa.array([1, 2], pa.uint8()), "uint8"),
            (pa.array([2**64 - 1], pa.uint64()), "uint64"),
            (pa.array([1.5, None], pa.float16()), "float16"),
            (pa.array([1.5, float("nan")], pa.float32()), "float32"),
            (pa.array([True, None]), "bool"),
            (pa.array([None, None]), "null"),
            (pa.array([[1], None, []], pa.large_list(pa.int8())), "list<int8>"),
            (pa.array([[1, 2]], pa.list_(pa.int8(), 2)), "list<int8>"),
            (pa.array([["x", None]]), "list<string>"),
            (pa.array([{"a": 1, "b": ["x"]}, None]), "struct<a: int64, b: list<string>>"),
            (pa.array([dt.date(2024, 5, 1)]), "date32[day]"),
            (pa.array([dt.datetime(2024, 5, 1)]), "timestamp[us]"),  # noqa: DTZ001
            (pa.array([dt.timedelta(1)]), "duration[us]"),
            (pa.array([dt.time(1)]), "time64[us]"),
            (pa.array([decimal.Decimal("1.5")]), "decimal128(2, 1)"),
        ],
        ids=str,
    )
    def test_that_are_kept(self, values: pa.Array, name: str, tmp_path: Path):
        path = table_file(tmp_path / "a.parquet", {"a": values, "b": ["x"] * len(values)})
        converted = convert_here(tmp_path, train=path)
        assert converted.columns == {"a": name, "b": "string"}
        read = load_split(converted.paths["train"], split="train")
        assert repr(read.with_format("arrow")["a"].to_pylist()) == repr(values.to_pylist())

    def test_cells_of_a_converted_file_are_cells_again(self, tmp_path: Path):
        first = convert_here(tmp_path, train=write(tmp_path / "a.csv", "text,label\na,007\nb,NA\n"))
        again = tmp_path / "again"
        again.mkdir()
        second = convert_here(again, train=first.paths["train"])
        assert second.profile == add_lines(first.profile, {"train": {}})  # of a CSV file
        assert second.paths["train"].read_bytes() == first.paths["train"].read_bytes()


COLUMNS = {"text": ["a", "b"], "label": [1, 0]}


class TestFeatures:
    def test_names_of_classes_and_images_are_kept(self, tmp_path: Path):
        features = Features(
            {"image": Image(), "label": ClassLabel(names=["zebra", "ape"]), "x": Value("int64")}
        )
        columns = {
            "image": [{"bytes": png(1), "path": "/etc/passwd"}] * 2,
            "label": [1, 0],
            "x": [1, 2],
        }
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table(columns, schema=features.arrow_schema), path)
        converted = convert_here(tmp_path, train=path)
        assert load_split(converted.paths["train"], split="train").features == features
        column = converted.profile.column("label")
        assert column is not None
        assert column.num_classes == 2
        assert [each.has_named_integers for each in converted.profile.columns] == [0, 1, 0]

    @pytest.mark.parametrize(
        "features",
        [
            7,
            [],
            {"text": 5, "label": []},
            {"text": {"_type": "Nonsense"}},
            {"label": {"_type": "ClassLabel"}},
            {"label": {"_type": "ClassLabel", "names": []}},
            {"text": {"_type": "Value", "dtype": "string", "id": "hifi.cells:int64"}},
            {"gone": {"_type": "ClassLabel", "names": ["a"]}},
        ],
    )
    def test_nonsense_is_left_out(self, features: Any, tmp_path: Path):
        path = features_file(tmp_path / "a.parquet", COLUMNS, features)
        read = load_split(convert_here(tmp_path, train=path).paths["train"], split="train")
        assert read.features == Features(text=Value("string"), label=Value("int64"))

    @pytest.mark.parametrize(
        "names", [["a", "a"], ["a", 5], ["a", ""], ["a\0", "b"], ["x" * 2**20] * 2]
    )
    def test_names_that_cannot_be_told_apart(self, names: list[Any], tmp_path: Path):
        features = {"label": {"_type": "ClassLabel", "names": names}}
        path = features_file(tmp_path / "a.parquet", COLUMNS, features)
        assert refusal_of(tmp_path, train=path).column == "label"


class TestBatches:
    def test_of_any_size_give_the_same(self, tmp_path: Path):
        rows = {"a": [f"text {row % 7}" for row in range(5000)], "b": list(range(5000))}
        contents = set()
        for options in ({}, {"row_group_size": 13}, {"use_dictionary": False}, {"version": "1.0"}):
            path = table_file(tmp_path / "a.parquet", rows, **options)
            limits = Limits(seconds=60, memory=1 << 30)
            converted = convert_here(tmp_path, train=path, limits=limits)
            read = load_split(converted.paths["train"], split="train")
            contents.add(json.dumps(read.to_dict()))
        assert contents == {json.dumps(rows)}
