"""hifi.data.formats.indexes: a table's index is no column, unless a task names it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from hifi.data.formats.indexes import index_columns
from hifi.data.inference import complete_task
from hifi.data.spec import TaskSpec
from hifi.data.splits import load_split, read_split
from hifi.errors import AmbiguousTaskError, DataError, MissingColumnError
from hifi.tasks import infer, make_task
from tests.hifi.data.files import convert_here, jsonl, write

FRAME = pd.DataFrame({"text": [f"text {row}" for row in range(6)], "label": [0, 1] * 3})
DAYS = pd.date_range("2024-01-01", periods=6)
NAMES = [f"doc-{row}" for row in range(6)]


def with_index(index: Any, *, names: str | list[str] | None = None) -> pd.DataFrame:
    frame = FRAME.set_axis(index, axis="index")
    return frame if names is None else frame.rename_axis(names)


INDEXES = {
    "texts": (with_index(NAMES), ["__index_level_0__"]),
    "named texts": (with_index(NAMES, names="title"), ["title"]),
    "numbers with gaps": (with_index([1, 2, 3, 5, 8, 13]), ["__index_level_0__"]),
    "days": (with_index(DAYS, names="day"), ["day"]),
    "two levels": (
        with_index(pd.MultiIndex.from_arrays([NAMES, [5, 3, 8, 1, 9, 2]]), names=["title", "n"]),
        ["title", "n"],
    ),
    "two levels without names": (
        with_index(pd.MultiIndex.from_arrays([NAMES, [5, 3, 8, 1, 9, 2]])),
        ["__index_level_0__", "__index_level_1__"],
    ),
    "a range": (FRAME, []),
}


def check(path: Path, folder: Path, *, index: list[str]) -> None:
    """Read a file in the library and as an upload; neither reads the index."""
    loaded = read_split(path, split="train")
    task = make_task(TaskSpec(), loaded.dataset, profile=loaded.profile)
    assert (task.inputs, task.label) == (("text",), "label")
    converted = convert_here(folder, train=path)
    again = read_split(converted.paths["train"], split="train")
    assert list(loaded.profile.notes) == list(converted.profile.notes) == index
    for profile in (loaded.profile, converted.profile, again.profile):
        assert profile.names == ("text", "label")
        found = complete_task(TaskSpec(), profile)
        assert (found.text, found.label) == (("text",), "label")


class TestFiles:
    @pytest.mark.parametrize("kind", INDEXES)
    def test_of_parquet(self, kind: str, tmp_path: Path):
        frame, index = INDEXES[kind]
        frame.to_parquet(tmp_path / "a.parquet")
        check(tmp_path / "a.parquet", tmp_path, index=index)

    @pytest.mark.parametrize(("ending", "sign"), [(".csv", ","), (".tsv", "\t")])
    @pytest.mark.parametrize("frame", [FRAME, with_index(NAMES), with_index(DAYS)])
    def test_of_delimited(self, frame: pd.DataFrame, ending: str, sign: str, tmp_path: Path):
        path = tmp_path / f"a{ending}"
        frame.to_csv(path, sep=sign)
        check(path, tmp_path, index=["Unnamed: 0"])

    @pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
    def test_that_was_read_back_as_a_column(self, ending: str, tmp_path: Path):
        FRAME.to_csv(tmp_path / "first.csv")
        frame = pd.read_csv(tmp_path / "first.csv")
        path = tmp_path / f"a{ending}"
        if ending == ".csv":
            frame.to_csv(path)  # with an index of its own
        elif ending == ".jsonl":
            jsonl(path, frame.to_dict("records"))
        else:
            frame.to_parquet(path)
        extra = ["Unnamed: 0.1"] if ending == ".csv" else []
        check(path, tmp_path, index=["Unnamed: 0", *extra])

    def test_of_a_file_that_lost_the_metadata(self, tmp_path: Path):
        table = pa.Table.from_pandas(with_index(NAMES)).replace_schema_metadata(None)
        parquet.write_table(table, tmp_path / "a.parquet")
        check(tmp_path / "a.parquet", tmp_path, index=["__index_level_0__"])

    def test_beside_the_names_of_classes(self, tmp_path: Path):
        table = pa.Table.from_pandas(with_index(NAMES, names="title"))
        classes = {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}
        features = json.dumps({"info": {"features": classes}})
        metadata = {**table.schema.metadata, b"huggingface": features.encode()}
        parquet.write_table(table.replace_schema_metadata(metadata), tmp_path / "a.parquet")
        check(tmp_path / "a.parquet", tmp_path, index=["title"])
        converted = convert_here(tmp_path, train=tmp_path / "a.parquet").paths["train"]
        assert load_split(converted, split="train").features["label"].names == ["no", "yes"]

    def test_columns_without_a_name_anywhere(self, tmp_path: Path):
        rows = "".join(f"{row},text {row},,{row % 2}, \n" for row in range(6))
        path = write(tmp_path / "a.csv", f",text,,label, \n{rows}")
        check(path, tmp_path, index=["Unnamed: 0", "Unnamed: 2", "Unnamed: 4"])
        rows = [{"": row, "text": f"text {row}", "label": row % 2} for row in range(6)]
        check(jsonl(tmp_path / "a.jsonl", rows), tmp_path, index=["Unnamed: 0"])


class TestMemory:
    def test_of_a_data_set(self):
        dataset = datasets.Dataset.from_pandas(with_index(NAMES))
        assert "__index_level_0__" in dataset.column_names
        spec = infer(TaskSpec(), load_split(dataset, split="train"))
        assert (spec.text, spec.label) == (("text",), "label")


class TestNames:
    """A task may name an index, also one that is called as if it were the label."""

    def files(self, folder: Path) -> list[Path]:
        frame = FRAME.assign(n=range(6)).set_index("label")
        frame.to_parquet(folder / "a.parquet")
        return [
            folder / "a.parquet",
            convert_here(folder, train=folder / "a.parquet").paths["train"],
        ]

    def test_may_be_the_label(self, tmp_path: Path):
        for path in self.files(tmp_path):
            profile = read_split(path, split="train").profile
            task = complete_task(TaskSpec(label="label"), profile)
            assert (task.text, task.label) == (("text",), "label")
            loaded = read_split(path, split="train", columns=["text", "label"])
            spec = TaskSpec(text=("text",), label="label")
            task = make_task(spec, loaded.dataset, profile=loaded.profile)
            assert task.classes == (0, 1)

    def test_called_label_are_not_replaced_silently(self, tmp_path: Path):
        for path in self.files(tmp_path):
            with pytest.raises(AmbiguousTaskError, match="'label' is the table's index") as caught:
                complete_task(TaskSpec(), read_split(path, split="train").profile)
            assert caught.value.param == "label"

    def test_may_be_a_text(self, tmp_path: Path):
        with_index(NAMES).to_parquet(tmp_path / "a.parquet")
        profile = convert_here(tmp_path, train=tmp_path / "a.parquet").profile
        task = complete_task(TaskSpec(text=("text", "__index_level_0__")), profile)
        assert task.text == ("text", "__index_level_0__")

    def test_without_any_are_refused(self, tmp_path: Path):
        """With the same words in the library, the service and an upload's notes."""
        path = tmp_path / "a.csv"
        FRAME.to_csv(path)
        profiles = (
            read_split(path, split="train").profile,
            convert_here(tmp_path, train=path).profile,
        )
        words = "it has no name in the file.*; give it one in the file to use it$"
        for profile in profiles:
            with pytest.raises(DataError, match=f"^train, column 'Unnamed: 0': {words}"):
                complete_task(TaskSpec(text=("Unnamed: 0",)), profile)
            assert re.search(words, profile.notes["Unnamed: 0"])
        with pytest.raises(DataError, match=f"^train, column 'Unnamed: 0': {words}"):
            load_split(path, split="train", columns=["text", "Unnamed: 0"])

    @pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
    @pytest.mark.parametrize("name", ["", "none"])
    def test_without_any_are_not_listed(self, name: str, ending: str, tmp_path: Path):
        path = tmp_path / f"a{ending}"
        frame = FRAME.assign(**{"": 1})
        if ending == ".csv":
            frame.to_csv(path, index=False)
        elif ending == ".jsonl":
            jsonl(path, frame.to_dict("records"))
        else:
            frame.to_parquet(path)
        with pytest.raises(MissingColumnError, match=r"the columns are: 'text', 'label'$"):
            load_split(path, split="train", columns=["text", name])


class TestMetadata:
    @pytest.mark.parametrize(
        "pandas",
        [
            b"no json",
            b"7",
            b"[]",
            b"{}",
            b'{"index_columns": 5}',
            b'{"index_columns": [{"kind": "range"}, null, ["text"], "gone"]}',
            b"[" * 100_000,
        ],
    )
    def test_that_means_nothing_is_ignored(self, pandas: bytes):
        assert index_columns(["text"], metadata={b"pandas": pandas}) == frozenset()

    @pytest.mark.parametrize("name", ["Unnamed", "unnamed: 0", "Unnamed: x", "__index_level__"])
    def test_other_names_are_columns(self, name: str):
        assert index_columns([name]) == frozenset()
