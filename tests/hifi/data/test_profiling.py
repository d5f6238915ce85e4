"""hifi.data.profiling: what a profile records of columns, and how much data it keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hifi.data.inference import complete_task, count_labels
from hifi.data.profile import ColumnProfile, Problem
from hifi.data.spec import TaskSpec
from hifi.data.types import BLANKS
from tests.hifi.data.files import Converted, convert_here, jsonl, refusal_of, write
from tests.tiny_tasks import png


def column(converted: Converted, name: str) -> ColumnProfile:
    found = converted.profile.column(name)
    assert found is not None
    return found


def texts(folder: Path, **splits: list[Any]) -> Converted:
    files = {
        split: jsonl(folder / f"{split}.jsonl", [{"a": value} for value in values])
        for split, values in splits.items()
    }
    return convert_here(folder, **files)


class TestKinds:
    @pytest.mark.parametrize(
        ("values", "kind", "name"),
        [
            (["x"], "text", "string"),
            ([1], "integer", "int64"),
            ([True], "boolean", "bool"),
            ([0.5], "float", "float64"),
            ([1.0, None], "whole", "float64"),
            ([None], "null", "null"),
            ([[1]], "list", "list<int64>"),
            ([[0.5]], "other", "list<float64>"),
            ([{"x": 1}], "other", "struct<x: int64>"),
            ([{"bytes": "x"}], "image", "image"),
        ],
    )
    def test_of_json(self, values: list[Any], kind: str, name: str, tmp_path: Path):
        found = column(texts(tmp_path, train=values), "a")
        assert (found.kind, found.type, found.are_cells) == (kind, name, False)

    @pytest.mark.parametrize(
        ("cells", "kind"),
        [
            ("1 2", "integer"),
            ("1.0 2", "whole"),
            ("0.5 2", "float"),
            ("x 2", "text"),
            ("NA ''", "text"),
        ],
    )
    def test_of_cells(self, cells: str, kind: str, tmp_path: Path):
        path = write(tmp_path / "a.csv", "a\n" + cells.replace(" ", "\n") + "\n")
        found = column(convert_here(tmp_path, train=path), "a")
        assert (found.kind, found.are_cells) == (kind, True)

    @pytest.mark.parametrize("values", [[{"bytes": png(1), "path": None}], [png(1)]])
    def test_of_images(self, values: list[Any], tmp_path: Path):
        pq.write_table(pa.table({"a": values}), tmp_path / "a.parquet")
        found = column(convert_here(tmp_path, train=tmp_path / "a.parquet"), "a")
        assert (found.kind, found.type) == ("image", "image")
        assert "image" not in found.problems


class TestProblems:
    def test_name_the_first_row_of_every_split(self, tmp_path: Path):
        converted = texts(
            tmp_path, train=["x", "y", " ", None], validation=["x", None], test=["x", "z"]
        )
        assert column(converted, "a").problems["text"] == {
            "train": Problem(row=3, reason="the text is empty", line=3),
            "validation": Problem(row=2, reason="the text is missing", line=2),
        }
        assert column(converted, "a").problems["label"]["train"].row == 3

    @pytest.mark.parametrize("blank", ["", *BLANKS, BLANKS])
    def test_blank_is_what_python_strips(self, blank: str, tmp_path: Path):
        assert not blank.strip()
        converted = texts(tmp_path, train=["x", blank])
        assert column(converted, "a").problems["text"]["train"].row == 2

    def test_blanks_are_all_there_are(self):
        assert set(BLANKS) == {letter for letter in map(chr, range(0x110000)) if letter.isspace()}

    def test_of_labels_that_train_does_not_have(self, tmp_path: Path):
        converted = texts(tmp_path, train=["no", "yes"], validation=["no", "maybe" * 100, "x"])
        problem = column(converted, "a").problems["label"]["validation"]
        assert problem.row == 2
        assert "does not occur in train; known are 'no', 'yes'" in problem.reason
        assert len(problem.reason) < 150

    @pytest.mark.parametrize(
        "content",
        [
            b"text",
            # Pillow has readers for these, which raise NotImplementedError and RuntimeError.
            b"DDS " + (124).to_bytes(4, "little") + bytes(120),
            b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(200),
        ],
        ids=["text", "dds", "avif"],
    )
    def test_of_images_name_the_row(self, content: bytes, tmp_path: Path):
        values = [{"bytes": png(1), "path": None}] * 3 + [{"bytes": content, "path": "/x.png"}]
        pq.write_table(pa.table({"a": values}), tmp_path / "a.parquet")
        problem = column(convert_here(tmp_path, train=tmp_path / "a.parquet"), "a").problems[
            "image"
        ]
        assert problem["train"] == Problem(
            row=4, reason="these bytes are not an image of a known format"
        )

    def test_of_images_that_are_only_paths_say_so(self, tmp_path: Path):
        image = pa.struct([("bytes", pa.null()), ("path", pa.string())])
        values = pa.array([{"bytes": None, "path": "/x.png"}], type=image)
        pq.write_table(pa.table({"a": values}), tmp_path / "a.parquet")
        found = column(convert_here(tmp_path, train=tmp_path / "a.parquet"), "a")
        assert found.problems["image"]["train"] == Problem(
            row=1, reason="the image has no bytes (paths are not followed)"
        )

    def test_of_splits_that_do_not_go_together(self, tmp_path: Path):
        kinds: dict[str, list[Any]] = {
            "text": ["x"],
            "number": [1],
            "fraction": [0.5],
            "flag": [True],
            "list": [[1]],
            "nothing": [None],
        }
        fits = {frozenset({"number", "fraction"})}
        for first in kinds:
            for second in kinds:
                files = {
                    "train": jsonl(tmp_path / "a.jsonl", [{"a": kinds[first][0]}]),
                    "validation": jsonl(tmp_path / "b.jsonl", [{"a": kinds[second][0]}]),
                }
                if first == second or "nothing" in (first, second) or {first, second} in fits:
                    convert_here(tmp_path, **files)
                    continue
                refusal = refusal_of(tmp_path, **files)
                assert (refusal.split, refusal.column) == ("validation", "a")


class TestTests:
    @pytest.mark.parametrize(
        ("train", "test", "is_unlabelled"),
        [
            ([0, 1], [0, None], False),
            ([0, 1], [None, -1], True),
            (["a", "b"], ["", " "], True),
            (["a", "-1"], ["-1"], False),
            ([0, -1], [-1, -1], False),
            ([0, -1], [-1.0, -1.0], False),
            ([0.5, 1.5], [-1.0, -1.0], True),
            ([0.5, 1.5], [-1.0, 0.25], False),
            ([True, False], [False], False),
        ],
    )
    def test_without_labels_are_known_from_then_on(
        self, train: list, test: list, is_unlabelled: bool, tmp_path: Path
    ):
        found = column(texts(tmp_path, train=train, test=test), "a")
        assert found.test_unlabelled is is_unlabelled

    def test_without_the_column_have_no_labels(self, tmp_path: Path):
        test = jsonl(tmp_path / "b.jsonl", [{"b": 1}])
        found = convert_here(tmp_path, train=jsonl(tmp_path / "a.jsonl", [{"a": 1}]), test=test)
        assert column(found, "a").test_unlabelled
        assert not column(texts(tmp_path, train=[0, 1]), "a").test_unlabelled


class TestClasses:
    def test_are_counted(self, tmp_path: Path):
        assert column(texts(tmp_path, train=["b", "a", "b"]), "a").num_classes == 2

    def test_with_long_names_are_abbreviated(self, tmp_path: Path):
        names = [f"{number:02}{'x' * 48}" for number in range(20)]
        converted = texts(tmp_path, train=names, validation=["other"])
        reason = column(converted, "a").problems["label"]["validation"].reason
        assert reason.endswith(", ".join([*map(repr, names[:3]), "…"]))

    def test_that_are_many_are_counted_and_not_kept(self, tmp_path: Path):
        secrets = [f"secret {row}" for row in range(500)]
        converted = texts(tmp_path, train=secrets)
        assert column(converted, "a").num_classes == 500
        assert "secret" not in json.dumps(converted.profile.to_json())

    @pytest.mark.parametrize("values", [[f"c{row}" for row in range(12_000)], ["x" * 2000, "y"]])
    def test_that_are_too_many_are_left_to_the_library(self, values: list[str], tmp_path: Path):
        rows = [{"text": "x", "label": value} for value in values]
        converted = convert_here(
            tmp_path,
            train=jsonl(tmp_path / "a.jsonl", rows),
            validation=jsonl(tmp_path / "b.jsonl", [{"text": "x", "label": "new"}]),
        )
        task = complete_task(TaskSpec(), converted.profile)
        assert task.type == "classification"
        assert count_labels(task, converted.profile) is None

    def test_of_a_thousand_columns_take_little_room(self, tmp_path: Path):
        rows = [{f"c{column}": f"{row} {column}" for column in range(1000)} for row in range(300)]
        converted = convert_here(tmp_path, train=jsonl(tmp_path / "a.jsonl", rows))
        assert len(json.dumps(converted.profile.to_json())) < 500_000
