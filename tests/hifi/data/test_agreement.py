"""Upload and training agree: a job is refused exactly if its training would fail.

A job is admitted by the profile that was made when its data set was uploaded, and trained on the
Parquet file that was written then.
"""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from hifi.data.columns import profile_split, read_images, read_texts
from hifi.data.inference import complete_task, count_labels
from hifi.data.profiling import add_lines
from hifi.data.spec import IfLabelled, TaskSpec
from hifi.data.splits import load_split, read_split
from hifi.errors import (
    AmbiguousTaskError,
    DataError,
    HifiError,
    InvalidArgumentError,
    MissingColumnError,
)
from hifi.tasks import get_task, make_task
from hifi.training.preparation import load_test
from tests.hifi.data.files import convert_here, jsonl, refusal_of, write
from tests.tiny_tasks import png

Outcome = tuple[Any, ...]


def refused(error: HifiError) -> Outcome:
    """Describe a refusal: its kind, and the argument or place that it names."""
    kind: Any = type(error)
    if isinstance(error, AmbiguousTaskError | InvalidArgumentError):
        return (kind, error.param)
    if isinstance(error, DataError):
        if isinstance(error, MissingColumnError) and error.split != "train":
            kind = DataError
        return (kind, error.split, error.row, error.column)
    return (kind,)


def trained(
    train: Path, validation: Path | None, said: dict[str, Any], test: Path | None = None
) -> Outcome:
    """Read files as training does; return the task or the refusal."""
    try:
        spec = TaskSpec.of(said)
        if spec.type is not None:
            get_task(spec.type)  # the files are opened first, where all columns are named
        loaded = read_split(
            train, split="train", columns=spec.columns if spec.names_all_columns else None
        )
        task = make_task(spec, loaded.dataset, profile=loaded.profile)
        held_out = {} if validation is None else {"validation": validation}
        for split, path in {"train": train, **held_out, "test": test}.items():
            dataset: Dataset | None
            if split == "test":
                dataset, _ = load_test(None if path is None else IfLabelled(path), task)
            else:
                dataset = load_split(path, split=split, columns=task.columns)
            if dataset is None:
                continue
            task.targets(dataset, split=split)
            read = read_images if task.declaration.input_kind == "image" else read_texts
            for column in task.inputs:
                read(dataset, column, split=split)
    except HifiError as error:
        return refused(error)
    return (task.declaration.name, task.inputs, task.label, task.metric, task.num_labels)


def admitted(
    folder: Path,
    train: Path,
    validation: Path | None,
    said: dict[str, Any],
    test: Path | None = None,
) -> Outcome:
    """Upload the same files and complete a job's task; return the task or the refusal."""
    every = {"train": train, "validation": validation, "test": test}
    files = {split: path for split, path in every.items() if path is not None}
    try:
        profile = convert_here(folder, **files).profile
    except DataError as error:
        return ("not uploaded", error.split)
    try:
        task = complete_task(TaskSpec.of(said), profile)
    except HifiError as error:
        return refused(error)
    inputs = task.text if task.image is None else (task.image,)
    return (task.type, inputs, task.label, task.metric, count_labels(task, profile))


def outcomes(drawn: Any, suffix: str, write: Callable[..., Path]) -> tuple[Outcome, Outcome]:
    """Write a drawn data set to files; return the outcomes of training and of the upload."""
    train, validation, test, said = drawn
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = write(folder / f"a{suffix}", train)
        second = None if validation is None else write(folder / f"b{suffix}", validation)
        third = None if test is None else write(folder / f"c{suffix}", test)
        expected = trained(first, second, said, third)
        event(str(expected[0]))
        return expected, admitted(folder, first, second, said, third)


CELLS = (
    ["a", "b", "spam"],
    ["a", "b", "spam", "NA", "", " ", "007", "yes", "é", "x y", "null"],
    ["0", "1"],
    ["0", "1", "-3", " 1", "", "NA"],
    ["0", "-1", ""],
    ["1.0", "0.0", "2e0", "1.", "nan"],
    ["0.5", "1.0", "-2.5", "3"],
    ["0.5", "1", "01", "+1", "nan", "inf", "1e39", "1e999", "-Infinity"],
    ["true", "false"],
    ["true", "false", "True", "FALSE", ""],
    ["", "NA"],
)
NUMBER_CELLS = st.sampled_from(["0", "1", " 2", "0.5", "1e3", "NA", "", "true", "false", "007"])
VALUES = (
    ["a", "b", "spam"],
    ["a", "b", "", " ", "12", None],
    [0, 1],
    [0, 1, -3, 7, None],
    [0, -1, None],
    [0.5, -2.0, 3],
    [0.5, 1.0, 1e39, None, 3],
    [1.0, 2.0, None],
    [True, False],
    [True, False, None],
    [None],
    [[1], [2, 3], None],
    [{"x": 1}, {"x": None}],
    [{}, {"x": {}}, None],
    ["a", "b", 3],
    ["a", {"x": 1}, None],
    [1, 2, "c"],
)
NAMES = ("text", "label", "labels", "other", "score", "Unnamed: 0")
TYPES = ("classification", "regression", "image-classification", "causal-lm")


@st.composite
def data_sets(
    draw: st.DrawFn, pools: tuple[list[Any], ...]
) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Draw rows for training, validation and test (or None), and the task's arguments."""
    few = st.lists(st.sampled_from(NAMES), unique=True, min_size=1, max_size=4)
    names = draw(st.just(["text", "label"]) | few)
    pool_of = {
        name: draw(st.sampled_from(pools[:2] if name == "text" else pools)) for name in names
    }

    def rows(columns: list[str]) -> st.SearchStrategy[list[dict[str, Any]]]:
        cells = {name: st.sampled_from(pool_of[name]) for name in columns}
        return st.lists(st.fixed_dictionaries(cells), min_size=1, max_size=6)

    train = draw(rows(names))
    validation = draw(st.none() | rows(names) | rows(names[:1]))
    test = draw(st.none() | rows(names) | rows(names[:1]))
    column = st.sampled_from([*names, *names, *names, "missing"])
    said = st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(TYPES),
            "text": column | st.lists(column, min_size=1, max_size=2),
            "label": column,
            "image": column,
            "metric": st.sampled_from(["accuracy", "f1", "pearson"]),
        },
    )
    kind = st.sampled_from(TYPES)
    return train, validation, test, draw(st.just({}) | st.fixed_dictionaries({"type": kind}) | said)


def csv_file(path: Path, rows: list[dict[str, str]]) -> Path:
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    return write(path, "".join(",".join(f'"{cell}"' for cell in line) + "\n" for line in lines))


class TestOutcomes:
    """Both give the same task, or a refusal of the same kind at the same place."""

    @settings(max_examples=100)
    @given(data_sets(CELLS))
    def test_of_delimited_files(self, drawn):
        expected, found = outcomes(drawn, ".csv", csv_file)
        assert found == expected

    @settings(max_examples=100)
    @given(data_sets(VALUES))
    @example(([{"text": "a", "label": [1]}], None, None, {"type": "classification"}))
    def test_of_json_lines(self, drawn):
        expected, found = outcomes(drawn, ".jsonl", jsonl)
        # Columns of other types are refused at once, whether the task uses them or not, and a file
        # of which no column can be used.
        is_refused = isinstance(expected[0], type) and issubclass(expected[0], HifiError)
        others = (("not uploaded", "validation"), ("not uploaded", "test"))
        assert found in (expected, *others) or (is_refused and found == ("not uploaded", "train"))

    def test_of_a_file_without_a_column_that_can_be_used(self, tmp_path: Path):
        path = jsonl(tmp_path / "a.jsonl", [{"label": {}}])
        with pytest.raises(DataError, match="its objects have no entries") as caught:
            load_split(path, split="train")
        refusal = refusal_of(tmp_path, train=path)
        assert str(refusal) == str(caught.value)

    def test_of_images(self, tmp_path: Path):
        icon, pixmap = io.BytesIO(), io.BytesIO()
        Image.new("RGB", (4, 4)).save(icon, format="ICO")  # decoded on opening, so not read
        Image.new("RGB", (4, 4)).save(pixmap, format="PPM")
        content = {"good": png(1), "bad": b"no image", "none": None, "cut": png(2)[:30]}
        content |= {"icon": icon.getvalue(), "pixmap": pixmap.getvalue()}
        lists = [["good", "good"], ["good", "bad"], ["none", "good"], ["good", "icon"]]
        for names in (*lists, ["pixmap", "good"]):
            rows = [
                {"image": {"bytes": content[name], "path": "/x.png"}, "label": index % 2}
                for index, name in enumerate(names)
            ]
            path = tmp_path / "a.parquet"
            parquet.write_table(pa.Table.from_pylist(rows), path)
            for said in (
                {},
                {"type": "image-classification"},
                {"image": "image", "label": "label"},
            ):
                expected = trained(path, path, said)
                assert admitted(tmp_path, path, path, said) == expected

    @pytest.mark.parametrize("labels", [[0, 1, 1], [1, 1, 1], [0, 1, 2], [0, None, 1]])
    def test_of_named_classes(self, labels: list[int | None], tmp_path: Path):
        features = {"text": Value("string"), "label": ClassLabel(names=["zebra", "ape"])}
        path = tmp_path / "a.parquet"
        rows = {"text": ["a", "b", "c"], "label": labels}
        table = pa.table(rows, schema=Features(features).arrow_schema)
        parquet.write_table(table, path)
        assert load_split(path, split="train").features["label"].names == ["zebra", "ape"]
        assert admitted(tmp_path, path, path, {}) == trained(path, path, {})


class TestContent:
    """The library reads the same features and rows from the Parquet file as from the upload."""

    @pytest.mark.parametrize(
        "content",
        [
            "text,label\na,1\nb,0\n",
            "text,label\na,0.5\nb,1\nc,-2e-3\n",
            "text,label\na,1.0\nb,2.0\n",
            "text,label\na,true\nb,false\n",
            "text,label\na,TRUE\nb,False\n",
            "text,label\na,NA\nb,1\nc,\n",
            "text,label\na,NA\nb,\n",
            "text,label\n a , 1\nb  ,0 \n",
            "code,label\n007,1\n7,01\n",
            "code,label\n12,1\n34,0\n",
            'text,label\n"a, ""b""\nc",1\n"",0\n',
            "text\na\n\nb\n",
            "text,label\r\na,1\r\nb,0",
            "\ufefftext,label\né,🙂\nü,x\n",
            'x"y,label\na"b,1\n"c"d,0\n',
        ],
    )
    @pytest.mark.parametrize("ending", [".csv", ".tsv"])
    def test_of_cells(self, content: str, ending: str, tmp_path: Path):
        path = tmp_path / f"a{ending}"
        write(path, content.replace(",", "\t") if ending == ".tsv" else content)
        self.check(path, tmp_path)

    @given(
        st.lists(
            st.lists(
                st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
                | NUMBER_CELLS,
                min_size=2,
                max_size=2,
            ),
            min_size=1,
            max_size=8,
        ),
        st.sampled_from(["minimal", "all"]),
        st.sampled_from(["\n", "\r\n"]),
    )
    def test_of_any_cells(self, rows: list[list[str]], quoting: str, newline: str):
        with tempfile.TemporaryDirectory() as name:
            path = Path(name, "a.csv")
            with path.open("w", encoding="utf-8", newline="") as file:
                rule = {"minimal": csv.QUOTE_MINIMAL, "all": csv.QUOTE_ALL}[quoting]
                csv.writer(file, quoting=rule, lineterminator=newline).writerows(
                    [["x", "y"], *rows]
                )
            self.check(path, Path(name))

    @pytest.mark.parametrize(
        "rows",
        [
            [{"a": 1, "b": "x"}, {"a": 2.5, "b": None}, {"b": "ü"}],
            [{"a": [1, 2], "b": {"x": ["y"], "z": 1}}, {"a": [], "b": {"x": []}}, {"a": [2.5]}],
            [{"a": None}, {"a": None}],
            [{"a": True}, {"a": None}, {"c": "new"}],
            [{"a": {"bytes": "x"}}],
            [{"a": -(2**63)}, {"a": 2**63 - 1}],
        ],
    )
    def test_of_json_lines(self, rows: list[dict[str, Any]], tmp_path: Path):
        self.check(jsonl(tmp_path / "a.jsonl", rows), tmp_path)

    def test_of_json_lines_over_many_batches(self, tmp_path: Path):
        rows: list[dict[str, Any]] = [{"a": None, "l": []} for _ in range(20_000)]
        rows += [{"a": row, "l": [row], "late": "x"} for row in range(20_000)]
        rows += [{"a": row / 2, "l": [0.5]} for row in range(20_000)]
        self.check(jsonl(tmp_path / "a.jsonl", rows), tmp_path)

    def test_of_parquet_files(self, tmp_path: Path, test_data: Path):
        self.check(test_data / "data" / "mnist" / "validation.parquet", tmp_path)

    @pytest.mark.parametrize("name", ["glue/mrpc", "glue/stsb", "squad"])
    def test_of_real_data(self, name: str, tmp_path: Path, test_data: Path):
        self.check(test_data / "data" / name / "validation.jsonl", tmp_path)

    @staticmethod
    def check(path: Path, folder: Path) -> None:
        refusal: DataError | None = None
        try:
            expected = load_split(path, split="train")
        except DataError as error:
            refusal = error
        if refusal is not None:
            assert str(refusal_of(folder, train=path)) == str(refusal)
            return
        converted = convert_here(folder, train=path)
        found = load_split(converted.paths["train"], split="train")
        assert found.features == expected.features
        assert found.column_names == expected.column_names
        assert found.to_list() == expected.to_list()
        for name, feature in expected.features.items():
            assert getattr(found.features[name], "id", None) == getattr(feature, "id", None)
        found_profile = add_lines(converted.profile, {"train": {}})  # the library adds lines later
        assert profile_split(expected).to_json() == found_profile.to_json()
