"""hifi.data.splits: one split out of any source, and errors that name the row."""

from __future__ import annotations

import io
import json
import os
import tempfile
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset
from huggingface_hub.errors import HfHubHTTPError
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import csv, parquet

from hifi.data.columns import profile_split, read_labels, read_targets, read_texts
from hifi.data.formats import ENDINGS
from hifi.data.splits import has_split, load_split, read_split
from hifi.errors import DataError
from tests.tiny_tasks import image_rows, png, write_jsonl

ROWS = [
    {"text": 'plain, with a comma and a "quote"', "label": 1, "score": 0.5},
    {"text": "two\nlines\tand a tab", "label": 0, "score": -1.0},
    {"text": "NA", "label": 1, "score": 2.0},
    {"text": "null", "label": 0, "score": 3.0},
    {"text": " ünïcode 🙂 ", "label": 1, "score": 1e-3},
    {"text": "2024-05-01", "label": 0, "score": 4.0},
]


def jsonl(folder: Path) -> Path:
    return write_jsonl(folder / "rows.jsonl", ROWS)


def delimited(folder: Path, *, suffix: str, delimiter: str) -> Path:
    path = folder / f"rows{suffix}"
    options = csv.WriteOptions(delimiter=delimiter)
    csv.write_csv(pa.Table.from_pylist(ROWS), path, write_options=options)
    return path


def parquet_file(folder: Path) -> Path:
    parquet.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet")
    return folder / "rows.parquet"


SOURCES = {
    "jsonl": jsonl,
    "json": lambda folder: write(folder / "rows.json", json.dumps(ROWS, indent=2)),
    "csv": lambda folder: delimited(folder, suffix=".csv", delimiter=","),
    "tsv": lambda folder: delimited(folder, suffix=".tsv", delimiter="\t"),
    "parquet": parquet_file,
    "text path": lambda folder: str(jsonl(folder)),
    "rows": lambda _: ROWS,
    "columns": lambda _: {name: [row[name] for row in ROWS] for name in ROWS[0]},
    "arrays": lambda _: {name: np.array([row[name] for row in ROWS]) for name in ROWS[0]},
    "DataFrame": lambda _: pd.DataFrame(ROWS, index=range(9, 3, -1)),
    "Dataset": lambda _: datasets.Dataset.from_list(ROWS),
}


READERS = {"text": read_texts, "label": read_labels, "score": read_targets}


def rows_of(dataset: Dataset) -> list[dict]:
    """Return the rows as a task reads them: the cells of a CSV file have no types."""
    columns = [READERS[name](dataset, name, split="train") for name in dataset.column_names]
    return [dict(zip(dataset.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def error_of(source: object, **arguments) -> DataError:
    with pytest.raises(DataError) as caught:
        load_split(source, split="train", **arguments)
    assert caught.value.split == "train"
    return caught.value


class TestSources:
    @pytest.mark.parametrize("kind", SOURCES)
    def test_every_source_gives_the_same_rows(self, kind: str, tmp_path: Path):
        dataset = load_split(SOURCES[kind](tmp_path), split="train")
        assert repr(rows_of(dataset)) == repr(ROWS)  # 1, and not True or 1.0
        if kind not in ("csv", "tsv"):
            assert dataset.to_list() == ROWS

    @pytest.mark.parametrize("kind", SOURCES)
    def test_only_the_wanted_columns_are_kept(self, kind: str, tmp_path: Path):
        source = SOURCES[kind](tmp_path)
        dataset = load_split(source, split="train", columns=["label", "text"])
        assert rows_of(dataset) == [{"label": r["label"], "text": r["text"]} for r in ROWS]

    @pytest.mark.parametrize("kind", SOURCES)
    def test_a_missing_column_is_named_with_those_there_are(self, kind: str, tmp_path: Path):
        error = error_of(SOURCES[kind](tmp_path), columns=["text", "labl"])
        assert (error.column, error.row) == ("labl", None)
        assert all(name in error.reason for name in ROWS[0])

    def test_unused_columns_may_be_anything(self, tmp_path: Path):
        rows = [{"text": "a", "meta": {"x": 1}}, {"text": "b", "meta": "none"}]
        path = write_jsonl(tmp_path / "rows.jsonl", rows)
        for source in (path, rows):
            assert load_split(source, split="train", columns=["text"])["text"][:] == ["a", "b"]
            loaded = read_split(source, split="train")
            assert loaded.dataset.column_names == ["text"]
            assert loaded.unfit["meta"].row == 2
            error = error_of(source, columns=["meta"])
            assert (error.row, error.column) == (2, "meta")

    @pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet"])
    def test_new_content_under_an_old_name_is_read(self, kind: str, tmp_path: Path):
        path = SOURCES[kind](tmp_path)
        stamp = path.stat()
        assert len(load_split(path, split="train")) == len(ROWS)
        half = tmp_path / f"half{path.suffix}"
        table = pa.Table.from_pylist(ROWS[:2])
        {
            "jsonl": lambda: write_jsonl(half, ROWS[:2]),
            "json": lambda: write(half, json.dumps(ROWS[:2])),
            "csv": lambda: csv.write_csv(table, half),
            "tsv": lambda: csv.write_csv(table, half, csv.WriteOptions(delimiter="\t")),
            "parquet": lambda: parquet.write_table(table, half),
        }[kind]()
        half.replace(path)
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        assert rows_of(load_split(path, split="train")) == ROWS[:2]

    @pytest.mark.parametrize(
        "name", ["a[1].jsonl", "b*.jsonl", "c::d.jsonl", "~e.jsonl", "F.JSONL"]
    )
    def test_odd_file_names_are_names(self, name: str, tmp_path: Path):
        assert len(load_split(write_jsonl(tmp_path / name, ROWS), split="train")) == len(ROWS)

    def test_the_folder_of_a_parquet_file_is_no_column(self, tmp_path: Path):
        folder = tmp_path / "label=7"
        folder.mkdir()
        assert load_split(parquet_file(folder), split="train").to_list() == ROWS

    def test_nothing_is_cached_on_disk(self, tmp_path: Path):
        dataset = load_split(jsonl(tmp_path), split="train")
        assert dataset.cache_files == []

    def test_a_byte_order_mark_is_no_part_of_the_data(self, tmp_path: Path):
        lines = b"\xef\xbb\xbf" + jsonl(tmp_path).read_bytes()
        assert load_split(write(tmp_path / "a.jsonl", lines), split="train").to_list() == ROWS
        table = write(tmp_path / "a.csv", b"\xef\xbb\xbftext,label\nx,1\n")
        assert rows_of(load_split(table, split="train")) == [{"text": "x", "label": 1}]

    def test_blank_lines_are_skipped(self, tmp_path: Path):
        path = write(tmp_path / "a.jsonl", '\n{"a": 1}\n\n  \n{"a": 2}\n\n')
        assert load_split(path, split="train")["a"][:] == [1, 2]

    def test_a_key_that_some_rows_lack_is_null_there(self):
        rows = [{"a": 1}, {"a": 2, "b": "x"}]
        assert load_split(rows, split="train")["b"][:] == [None, "x"]

    def test_missing_cells_of_a_data_frame_are_null(self):
        frame = pd.DataFrame({"text": ["a", None], "score": [1.0, float("nan")]})
        assert load_split(frame, split="train").to_list()[1] == {"text": None, "score": None}

    def test_parquet_keeps_the_names_of_labels(self, tmp_path: Path):
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
        )
        rows = {"text": ["a", "b"], "label": [1, 0]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
        dataset = load_split(tmp_path / "a.parquet", split="train")
        assert dataset.features["label"].names == ["no", "yes"]

    def test_real_images(self, test_data: Path):
        path = test_data / "data" / "mnist" / "validation.parquet"
        dataset = load_split(path, split="validation", columns=["image", "label"])
        assert len(dataset) == 2000
        assert isinstance(dataset.features["image"], datasets.Image)

    def test_images_in_memory(self):
        dataset = load_split(image_rows(3), split="train")
        assert dataset[0]["image"]["bytes"].startswith(b"\x89PNG")


class TestCells:
    """Columns of a CSV file, which has no types; test_columns has the details."""

    def test_that_look_like_numbers_stay_texts(self, tmp_path: Path):
        path = write(tmp_path / "a.csv", "text,label\n0012,01\n7,1\n")
        assert rows_of(load_split(path, split="train")) == [
            {"text": "0012", "label": "01"},
            {"text": "7", "label": "1"},
        ]
        path = write(tmp_path / "a.csv", "text,label\n12,1\n7,0\n")
        dataset = load_split(path, split="train")
        assert rows_of(dataset) == [{"text": "12", "label": 1}, {"text": "7", "label": 0}]

    @pytest.mark.parametrize(
        "content",
        [
            "text,label\n0012,01\n7,1\n",
            "text,label\n12, 1\n7,NA\n",
            "text,label\na,0.5\nb,1e3\n",
            "text,label\na,True\nb,False\n",
            "text,label\na,\nb,\n",
        ],
    )
    @pytest.mark.parametrize("columns", [None, ["label"]])
    def test_kept_in_parquet_are_the_same_cells(
        self, content: str, columns: list[str] | None, tmp_path: Path
    ):
        path = write(tmp_path / "a.csv", content)
        options = csv.ConvertOptions(column_types={"text": pa.string(), "label": pa.string()})
        table = csv.read_csv(path, convert_options=options)
        marked = table.replace_schema_metadata({"hifi.cells": "1"})
        parquet.write_table(marked, tmp_path / "a.parquet")
        first = load_split(path, split="train", columns=columns)
        second = load_split(tmp_path / "a.parquet", split="train", columns=columns)
        assert second.features == first.features
        assert [second.features[name].id for name in second.column_names] == [
            first.features[name].id for name in first.column_names
        ]
        assert second.to_list() == first.to_list()

    @pytest.mark.parametrize("metadata", [{}, {"hifi.cells": "0"}, {"cells": "1"}])
    def test_without_the_mark_are_texts(self, metadata: dict[str, str], tmp_path: Path):
        table = pa.table({"text": ["12"], "number": [1]}).replace_schema_metadata(metadata)
        parquet.write_table(table, tmp_path / "a.parquet")
        dataset = load_split(tmp_path / "a.parquet", split="train")
        assert dataset.features["text"] == datasets.Value("string")

    def test_in_parquet_leave_other_columns_alone(self, tmp_path: Path):
        table = pa.table({"text": ["12"], "number": [1.5]})
        marked = table.replace_schema_metadata({"hifi.cells": "1"})
        parquet.write_table(marked, tmp_path / "a.parquet")
        dataset = load_split(tmp_path / "a.parquet", split="train")
        assert dataset.features["text"].id == "hifi.cells"
        assert profile_split(dataset).columns[0].kind == "integer"
        assert dataset.features["number"] == datasets.Value("float64")

    @given(
        st.lists(
            st.fixed_dictionaries(
                {
                    "text": st.text(st.characters(codec="utf-8", exclude_characters="\0")).filter(
                        str.strip
                    ),
                    "label": st.integers(-(10**18) + 1, 10**18 - 1) | st.none(),
                    "score": st.floats(-1e38, 1e38),
                }
            ),
            min_size=1,
        )
    )
    def test_equal_the_same_rows_of_json(self, rows: list[dict]):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "rows.csv")
            csv.write_csv(pa.Table.from_pylist(rows), path)
            from_csv = load_split(path, split="train")
            from_json = load_split(write_jsonl(Path(folder, "rows.jsonl"), rows), split="train")
        for name, read in READERS.items():
            outcomes = []
            for dataset in (from_csv, from_json):
                try:
                    outcomes.append(read(dataset, name, split="train"))
                except DataError as error:
                    outcomes.append(str(error))
            assert repr(outcomes[0]) == repr(outcomes[1])


class TestBadFiles:
    def test_a_file_that_is_not_there(self, tmp_path: Path):
        assert "does not exist" in error_of(tmp_path / "none.csv").reason

    @pytest.mark.parametrize("name", ["~stranger/x.csv", "a\0b.jsonl", "~a\0b.csv", "\ud800.tsv"])
    def test_a_name_that_no_file_can_have(self, name: str):
        assert "does not exist" in error_of(name).reason

    def test_a_tilde_of_an_unknown_user_is_part_of_the_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "~stranger").mkdir()
        write_jsonl(tmp_path / "~stranger" / "rows.jsonl", ROWS)
        assert len(load_split("~stranger/rows.jsonl", split="train")) == len(ROWS)

    def test_a_folder(self, tmp_path: Path):
        (tmp_path / "folder.csv").mkdir()
        (tmp_path / "folder.jsonl").mkdir()
        for name in ("folder.csv", "folder.jsonl"):
            assert "cannot be read" in error_of(tmp_path / name).reason

    @pytest.mark.parametrize("name", ["rows.json.gz", "rows.txt", "rows", "owner/name"])
    def test_an_unknown_suffix_is_refused_with_the_known_ones(self, name: str):
        reason = error_of(name).reason
        assert all(ending in reason for ending in (*ENDINGS, "hub"))

    @pytest.mark.parametrize("suffix", ENDINGS)
    def test_an_empty_file(self, suffix: str, tmp_path: Path):
        error_of(write(tmp_path / f"a{suffix}", b""))

    @pytest.mark.parametrize(
        ("suffix", "sign", "words"),
        [
            (".csv", ";", "separated by commas, not by semicolons"),
            (".csv", "\t", "separated by commas, not by tabs"),
            (".tsv", ",", "separated by tabs, not by commas"),
        ],
    )
    def test_another_sign_between_the_fields(self, suffix, sign, words, tmp_path: Path):
        other = "," if suffix == ".csv" else "\t"
        path = write(tmp_path / f"a{suffix}", f"text{sign}label\na{other} b{sign}1\n")
        error = error_of(path)
        assert error.reason.startswith(f"the file has one column, {f'text{sign}label'!r}: fields")
        assert words in error.reason

    def test_a_header_with_blanks_is_quoted(self, tmp_path: Path):
        path = write(tmp_path / "a.csv", "text, label\na,1\n")
        with pytest.raises(DataError, match="the columns are: 'text', ' label'"):
            load_split(path, split="train", columns=("text", "label"))

    def test_a_csv_file_that_is_not_utf8_names_row_and_column(self, tmp_path: Path):
        path = write(tmp_path / "a.csv", "text,label\na,1\ncafé,0\n".encode("latin-1"))
        error = error_of(path)
        assert (error.row, error.column) == (2, "text")
        assert "not UTF-8" in error.reason

    def test_a_header_without_rows(self, tmp_path: Path):
        assert error_of(write(tmp_path / "a.csv", "text,label\n")).reason == "there are no rows"

    @pytest.mark.parametrize("content", ["text,label\nx,1\ny\nz,0\n", "text,label\nx,1\ny,0,0\n"])
    def test_a_ragged_csv_names_the_row_and_both_counts(self, content: str, tmp_path: Path):
        error = error_of(write(tmp_path / "a.csv", content))
        assert error.row == 2
        assert "the header has 2" in error.reason
        assert error_of(write(tmp_path / "a.tsv", content.replace(",", "\t"))).row == 2

    def test_a_quoted_line_break_is_no_row(self, tmp_path: Path):
        error = error_of(write(tmp_path / "a.csv", 'text,label\n"x\ny\nz",1\nb\n'))
        assert error.row == 2

    def test_a_quote_that_is_never_closed(self, tmp_path: Path):
        error = error_of(write(tmp_path / "a.csv", 'text,label\nx,1\n"y,2\nz,3\n'))
        assert error.row == 2

    def test_bytes_that_are_not_utf8(self, tmp_path: Path):
        error = error_of(write(tmp_path / "a.jsonl", b'{"text": "a"}\n{"text": "\xff\xfe"}\n'))
        assert error.row == 2
        assert "UTF-8" in error.reason
        error = error_of(write(tmp_path / "a.csv", b"text,label\na,1\n\xff\xfe,2\n"))
        assert "not UTF-8" in error.reason
        assert error.row == 2

    @pytest.mark.parametrize(
        "line", ['{"text": "a"', "[1, 2]", '"a"', "nothing", "{'text': 'a'}", "[" * 100_000]
    )
    def test_a_line_that_is_not_an_object(self, line: str, tmp_path: Path):
        path = write(tmp_path / "a.jsonl", f'{{"text": "a"}}\n\n{line}\n{{"text": "b"}}\n')
        assert error_of(path).row == 2

    @pytest.mark.parametrize(
        ("values", "row"),
        [
            (["a", "b", 3], 3),
            ([1, 2, "c", 4], 3),
            ([True, False, 2], 3),
            ([1, 10**30], 2),
            ([[1], 2], 2),
            (["a", "\ud800"], 2),
            ([{"x": 1}, {"x": "y"}], 2),
        ],
    )
    def test_a_value_that_fits_no_column_names_its_row(self, values, row: int, tmp_path: Path):
        rows = [{"a": value, "b": 0} for value in values]
        for source in (rows, write_jsonl(tmp_path / "a.jsonl", rows)):
            error = error_of(source, columns=["a"])
            assert (error.row, error.column) == (row, "a")

    def test_a_column_that_occurs_twice(self, tmp_path: Path):
        error = error_of(write(tmp_path / "a.csv", "text,label,text\na,1,b\n"), columns=["text"])
        assert error.column == "text"
        table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["x", "x"])
        parquet.write_table(table, tmp_path / "a.parquet")
        assert error_of(tmp_path / "a.parquet").column == "x"
        assert error_of(pd.DataFrame([[1, 2]], columns=["x", "x"])).column == "x"

    @pytest.mark.parametrize("keep", [0.2, 0.9])
    def test_a_truncated_parquet_file(self, keep: float, tmp_path: Path):
        whole = parquet_file(tmp_path).read_bytes()
        path = write(tmp_path / "cut.parquet", whole[: int(len(whole) * keep)])
        assert "Parquet" in error_of(path).reason

    def test_a_parquet_file_whose_features_are_nonsense(self, tmp_path: Path):
        table = pa.table({"text": ["a"]}).replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": {"text": {"_type": "Nonsense"}}}})}
        )
        parquet.write_table(table, tmp_path / "a.parquet")
        dataset = load_split(tmp_path / "a.parquet", split="train")
        assert dataset.features == datasets.Features({"text": datasets.Value("string")})


class TestBadMemory:
    @pytest.mark.parametrize("source", [[], {}, {"text": []}, pd.DataFrame({"text": []})])
    def test_no_rows(self, source):
        assert error_of(source).reason == "there are no rows"

    def test_columns_of_different_lengths(self):
        assert "different lengths" in error_of({"a": [1, 2], "b": [1]}).reason

    @pytest.mark.parametrize("source", [7, None, [1, 2], {"a": 1}, {"a": "text"}, b"rows.csv"])
    def test_an_object_that_is_no_data_set(self, source):
        error_of(source)

    def test_names_that_are_no_texts_become_texts(self):
        rows = [{1: "a", "label": 0}, {1: "b", "label": 1}]
        for source in (rows, {1: ["a", "b"], "label": [0, 1]}, pd.DataFrame(rows)):
            assert load_split(source, split="train").column_names == ["1", "label"]

    @pytest.mark.parametrize(
        "source", [[{1: "a", "1": "b"}], [{1: "a"}, {"1": "b"}], {1: [], "1": []}]
    )
    def test_names_that_become_the_same_text(self, source):
        error = error_of(source)
        assert (error.column, error.reason) == ("1", "the column occurs more than once")

    def test_an_image_that_does_not_fit_names_its_row(self):
        image = Image.new("L", (8, 8))
        broken = Image.open(io.BytesIO(png(1, size=(99, 99))[:-30]))
        for value, others in ((3, [image]), (broken, [image, image]), (broken, [])):
            error = error_of([{"image": each} for each in (*others, value, image)])
            assert (error.row, error.column) == (len(others) + 1, "image")

    def test_what_cannot_be_blamed_on_a_row(self):
        class Moody(Image.Image):
            refusals = iter([OSError("not now")])

            def save(self, *arguments, **settings) -> None:
                for refusal in self.refusals:
                    raise refusal
                Image.new("L", (8, 8)).save(*arguments, **settings)

        assert "not now" in error_of([{"image": Moody()}]).reason

    def test_several_splits(self):
        splits = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
        assert "pass one" in error_of(splits).reason


class TestHub:
    def test_is_requested_with_the_split(self, monkeypatch: pytest.MonkeyPatch):
        asked = []

        def load_dataset(*arguments, **named):
            asked.append((arguments, named))
            return datasets.Dataset.from_list(ROWS)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        source = {"hub": "nyu-mll/glue", "config": "mrpc", "revision": None}
        assert load_split(source, split="validation").to_list() == ROWS
        load_split({"hub": "glue", "split": "validation_matched"}, split="validation")
        assert asked == [
            (("nyu-mll/glue", "mrpc"), {"split": "validation", "revision": None}),
            (("glue", None), {"split": "validation_matched", "revision": None}),
        ]

    def test_may_lack_a_split(self, monkeypatch: pytest.MonkeyPatch):
        asked = []

        def load_dataset(*arguments, **named):
            asked.append((arguments, named))
            return datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        source = {"hub": "nyu-mll/glue", "config": "mrpc", "revision": "abc"}
        assert has_split(source, split="train")
        assert not has_split(source, split="test")
        assert has_split({**source, "split": "train"}, split="test")
        assert asked[0] == (("nyu-mll/glue", "mrpc"), {"split": None, "revision": "abc"})
        assert all(has_split(other, split="test") for other in ("a.csv", ROWS, {"hub": ["a"]}))
        assert len(asked) == 3

    def test_that_cannot_be_loaded_has_no_known_splits(self, monkeypatch: pytest.MonkeyPatch):
        def load_dataset(*_, **__) -> None:
            raise ValueError("no such thing")

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        with pytest.raises(DataError, match=r"test: 'x/y' .*split 'test'.*no such thing"):
            has_split({"hub": "x/y"}, split="test")

    def test_one_that_cannot_be_reached_is_named(self):
        reason = error_of({"hub": "nyu-mll/glue", "config": "mrpc"}).reason
        assert "nyu-mll/glue" in reason
        assert "mrpc" in reason

    def test_a_network_that_fails_half_way_is_no_traceback(self, monkeypatch: pytest.MonkeyPatch):
        (root,) = (base for base in HfHubHTTPError.__bases__ if base.__name__ == "HTTPError")
        assert not issubclass(root, OSError | ValueError | RuntimeError)

        def load_dataset(*_, **__) -> None:
            raise root("connection reset by peer")

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        assert "connection reset by peer" in error_of({"hub": "nyu-mll/glue"}).reason

    def test_an_unknown_entry_is_refused(self):
        assert "name" in error_of({"hub": "nyu-mll/glue", "name": "mrpc"}).reason
        assert "['5', 'name']" in error_of({"hub": "nyu-mll/glue", "name": "mrpc", 5: 5}).reason

    def test_a_column_may_be_called_hub(self):
        assert load_split({"hub": ["a", "b"]}, split="train")["hub"][:] == ["a", "b"]
