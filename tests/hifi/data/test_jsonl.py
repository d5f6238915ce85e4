"""hifi.data.jsonl: JSON lines that cannot be used, and the place that the error names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hifi.data.splits import load_split
from hifi.errors import DataError
from tests.hifi.data.files import LIMITS, convert_here, jsonl, refusal_of, write
from tests.waiting import within


class TestRefusals:
    @pytest.mark.parametrize(
        ("line", "words"),
        [
            (b'{"a": 1', "not JSON"),
            (b"[1, 2]", "must be a JSON object, not a list"),
            (b'"a"', "must be a JSON object, not a text"),
            (b"1", "must be a JSON object, not a whole number"),
            (b"null", "must be a JSON object, not null"),
            (b"nothing", "not JSON"),
            (b"{'a': 1}", "not JSON"),
            (b'{"a": 1} {"a": 2}', "not JSON: Extra data"),
            (b'{"a": NaN}', "NaN is not a JSON number"),
            (b'{"a": Infinity}', "Infinity is not a JSON number"),
            (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
            (b'{"a": [NaN]}', "NaN is not a JSON number"),
            (b'{"a": "\xff"}', "not UTF-8"),
            (b'{"a": "b\x00"}', "NUL bytes"),
            (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
            (b'{"a": ' + b'{"a":' * 100_000, "nested too deeply"),
            (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        ],
    )
    def test_of_lines_name_the_row(self, line: bytes, words: str, tmp_path: Path):
        path = write(tmp_path / "a.jsonl", b'{"a": 1}\n\n  \n' + line + b'\n{"a": 2}\n')
        refusal = refusal_of(tmp_path, train=path)
        assert (refusal.split, refusal.row, refusal.column) == ("train", 2, None)
        assert words in refusal.reason

    @pytest.mark.parametrize(
        ("values", "row", "words"),
        [
            (["a", "\ud800"], 2, "surrogate"),
            (["a", "b\0c"], 2, "NUL"),
            ([["a"], ["b", "\0"]], 2, "NUL"),
            ([{"x": "a"}, {"x": "\0"}], 2, "NUL"),
        ],
    )
    def test_of_texts_name_row_and_column(self, values, row: int, words: str, tmp_path: Path):
        path = jsonl(tmp_path / "a.jsonl", [{"a": value, "b": 0} for value in values])
        refusal = refusal_of(tmp_path, train=path)
        assert (refusal.row, refusal.column) == (row, "a")
        assert words in refusal.reason

    @pytest.mark.parametrize(
        ("values", "row", "words"),
        [
            (["a", "b", 3], 3, "3 is a whole number, the rows above hold string"),
            ([1, 2, "c", 4], 3, "'c' is a text, the rows above hold int64"),
            ([True, False, 2], 3, "2 is a whole number, the rows above hold bool"),
            ([1, True], 2, "True is a boolean, the rows above hold int64"),
            ([1, 10**30], 2, "64-bit"),
            ([2**63], 1, "64-bit"),
            ([0.5, 10**400], 2, "64-bit"),
            ([[1], 2], 2, "2 is a whole number, the rows above hold list<int64>"),
            ([[1], ["a"]], 2, "a list does not fit the rows above, which hold"),
            ([[1, "a"]], 1, "mixes types"),
            ([{"x": 1}, {"x": "y"}], 2, "an object does not fit the rows above, which hold"),
            ([[[1]]], 1, "no task reads"),
            ([[{"x": 1}]], 1, "no task reads"),
            ([{"x": {"y": 1}}], 1, "no task reads"),
            ([{}], 1, "no entries"),
            ([0.5, 2**53 + 1], 2, "round"),
            ([2**53 + 1, 0.5], 2, "round"),
        ],
    )
    def test_of_values_leave_the_column_out(self, values, row: int, words: str, tmp_path: Path):
        path = jsonl(tmp_path / "a.jsonl", [{"a": value, "b": 0} for value in values])
        converted = convert_here(tmp_path, train=path)
        column = converted.profile.column("a")
        assert column is not None
        assert column.unfit is not None
        assert (column.unfit.row, column.unfit.line) == (row, row)
        assert words in column.unfit.reason
        assert load_split(path, split="train").column_names == ["b"]
        with pytest.raises(DataError) as caught:
            load_split(path, split="train", columns=["a"])
        assert (caught.value.row, caught.value.line, caught.value.column) == (row, row, "a")
        assert caught.value.reason == column.unfit.reason

    def test_of_a_number_out_of_range(self, tmp_path: Path):
        path = write(tmp_path / "a.jsonl", '{"a": 1.5}\n{"a": 1e999}\n')
        refusal = refusal_of(tmp_path, train=path)
        assert (refusal.row, refusal.column) == (2, "a")

    def test_far_down_the_file_name_the_row_too(self, tmp_path: Path):
        rows = "".join(json.dumps({"a": row}) + "\n" for row in range(50_000))
        for line, words in (
            ('{"a": 1', "not JSON"),
            ('{"b": "\\u0000"}', "NUL"),
        ):
            path = write(tmp_path / "a.jsonl", f"{rows}{line}\n{rows}")
            refusal = refusal_of(tmp_path, train=path)
            assert (refusal.row, words in refusal.reason) == (50_001, True)

    @pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf\n"])
    def test_of_files_without_rows(self, content: bytes, tmp_path: Path):
        path = write(tmp_path / "a.jsonl", content)
        assert refusal_of(tmp_path, train=path).reason == "there are no rows"

    def test_of_rows_without_any_column(self, tmp_path: Path):
        path = jsonl(tmp_path / "a.jsonl", [{}, {}])
        assert refusal_of(tmp_path, train=path).reason == "there are no columns"

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("x" * 300, "300 characters"),
            ("a\0", "is not valid text"),
            ("\ud800", "text"),
        ],
    )
    def test_of_invalid_names(self, name: str, words: str, tmp_path: Path):
        path = jsonl(tmp_path / "a.jsonl", [{"a": 1}, {name: 1}])
        refusal = refusal_of(tmp_path, train=path)
        assert (refusal.row, words in refusal.reason) == (2, True)

    def test_quote_short_values_at_most(self, tmp_path: Path):
        path = jsonl(tmp_path / "a.jsonl", [{"a": 1}, {"a": "secret" * 1000}])
        assert len(refusal_of(tmp_path, train=path).reason) < 150  # no column is left

    def test_of_a_row_without_end(self, tmp_path: Path):
        path = write(tmp_path / "a.jsonl", b'{"a": 1}\n{"a": "' + b"x" * 5_000_000 + b'"}\n')
        refusal = refusal_of(tmp_path, train=path)
        assert (refusal.row, refusal.reason) == (2, "the row has more than 2 MiB")


class TestLimits:
    def test_of_columns(self, tmp_path: Path):
        rows = [{f"c{row}": row} for row in range(1001)]
        refusal = refusal_of(tmp_path, train=jsonl(tmp_path / "a.jsonl", rows))
        assert (refusal.row, "1001 columns" in refusal.reason) == (1001, True)

    def test_of_entries_of_objects(self, tmp_path: Path):
        rows = [{"a": {f"c{row}": row}} for row in range(1001)]
        refusal = refusal_of(tmp_path, train=jsonl(tmp_path / "a.jsonl", rows))
        assert "1001" in refusal.reason

    def test_of_a_million_keys_in_a_row(self, tmp_path: Path):
        row = {f"{key:x}": 0 for key in range(300_000)}
        path = jsonl(tmp_path / "a.jsonl", [{"a": 1}, row])
        with within(3):
            assert refusal_of(tmp_path, train=path).row == 2

    def test_of_bytes_count_what_rows_lack(self, tmp_path: Path):
        wide = {f"c{column}": "x" for column in range(1000)}
        path = jsonl(tmp_path / "a.jsonl", [{}, wide, *({} for _ in range(20_000))])
        limits = replace(LIMITS, max_bytes=1 << 26)
        refusal = refusal_of(tmp_path, train=path, limits=limits)
        assert "bytes, the most allowed" in refusal.reason

    def test_of_rows(self, tmp_path: Path):
        path = jsonl(tmp_path / "a.jsonl", [{"a": 1}] * 11)
        limits = replace(LIMITS, max_rows=10)
        assert "more than 10 rows" in refusal_of(tmp_path, train=path, limits=limits).reason


class TestContent:
    def test_the_spool_is_gone_afterwards(self, tmp_path: Path):
        folder = tmp_path / "folder"
        folder.mkdir()
        convert_here(folder, train=jsonl(tmp_path / "a.jsonl", [{"a": 1}]))
        assert [path.name for path in folder.iterdir()] == ["train.parquet"]

    def test_a_whole_number_that_would_be_rounded_later_is_found(self, tmp_path: Path):
        rows = [{"a": 2**53 + 1}, *({"a": 1} for _ in range(20_000)), {"a": 0.5}]
        refusal = refusal_of(tmp_path, train=jsonl(tmp_path / "a.jsonl", rows))
        assert (refusal.row, refusal.column, "round" in refusal.reason) == (1, "a", True)

    def test_rows_without_a_key_are_rows(self, tmp_path: Path):
        rows = [*({} for _ in range(20_000)), {"a": 1}, {}]
        converted = convert_here(tmp_path, train=jsonl(tmp_path / "a.jsonl", rows))
        assert converted.rows == {"train": 20_002}
        assert load_split(converted.paths["train"], split="train")["a"][-2:] == [1, None]

    def test_types_are_those_of_the_whole_column(self, tmp_path: Path):
        rows: list[dict[str, Any]] = [
            {"int": None, "float": 1, "list": []},
            {"int": 3, "float": 0.5, "list": [1]},
            {"text": "x", "flag": True, "list": [0.5], "object": {"a": [1], "b": "c"}},
        ]
        converted = convert_here(tmp_path, train=jsonl(tmp_path / "a.jsonl", rows))
        assert converted.columns == {
            "int": "int64",
            "float": "float64",
            "list": "list<float64>",
            "text": "string",
            "flag": "bool",
            "object": "struct<a: list<int64>, b: string>",
        }
        read = load_split(converted.paths["train"], split="train").to_list()
        assert read[0]["float"] == 1.0
        assert [row["list"] for row in read] == [[], [1.0], [0.5]]

    def test_equal_files_give_equal_bytes(self, tmp_path: Path):
        path = jsonl(tmp_path / "a.jsonl", [{"a": row, "b": str(row)} for row in range(1000)])
        first, second = (
            convert_here(tmp_path, train=path).paths["train"].read_bytes() for _ in range(2)
        )
        assert first == second
