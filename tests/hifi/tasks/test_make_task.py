"""hifi.tasks: the task inferred from a training split."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import pytest

from hifi.backbones.models import load_config, resolve_model
from hifi.data.splits import load_split
from hifi.errors import AmbiguousTaskError, DataError, InvalidArgumentError, TaskNotSupportedError
from hifi.tasks import TaskSpec, infer, make_task
from tests.tiny_tasks import image_rows, png, save_text_model, text_rows, write_jsonl

IMAGE = {"bytes": png(1), "path": None}
PAIR = {"sentence1": "a", "sentence2": "b", "label": 0, "idx": 7}


def split(*rows: dict[str, Any]):
    return load_split(list(rows), split="train")


class TestInfer:
    @pytest.mark.parametrize(
        ("row", "expected"),
        [
            (PAIR, ("classification", ("sentence1", "sentence2"), "label", None)),
            ({**PAIR, "label": 2.5}, ("regression", ("sentence1", "sentence2"), "label", None)),
            ({"review": "a", "spam": True}, ("classification", ("review",), "spam", None)),
            ({"text": "a", "label": [1, 2]}, ("multi-label", ("text",), "label", None)),
            ({"pic": IMAGE, "animal": "cat"}, ("image-classification", (), "animal", "pic")),
        ],
    )
    def test_reads_the_columns_of_a_split(self, row: dict[str, Any], expected: tuple):
        spec = infer(TaskSpec(), split(row))
        assert (spec.type, spec.text, spec.label, spec.image) == expected

    @pytest.mark.parametrize("label", [[0.5, 2.0], {"answer_start": 1}])
    def test_a_column_that_cannot_be_a_label_is_not_ambiguous(self, label):
        expected = r"column 'label': a column of .* cannot be the label"
        with pytest.raises(DataError, match=expected) as caught:
            infer(TaskSpec(), split({"text": "x", "label": label}))
        assert not isinstance(caught.value, AmbiguousTaskError)

    def test_takes_well_below_a_second_for_many_rows(self):
        rows = {
            "text": [f"the film {n} is good" * 9 for n in range(20_000)],
            "label": [0, 1] * 10_000,
        }
        dataset = load_split(rows, split="train")
        started = time.process_time()
        assert infer(TaskSpec(), dataset).type == "classification"
        assert time.process_time() - started < 0.5


class TestMakeTask:
    @pytest.mark.parametrize(
        ("labels", "kind", "classes"),
        [
            ((0, 1), "classification", (0, 1)),
            ((10, 9, -1), "classification", (-1, 9, 10)),
            (("no", "yes"), "classification", ("no", "yes")),
            ((True, False), "classification", ("false", "true")),
            ((0.5, 1.0, -2.25e-7), "regression", None),
        ],
    )
    def test_csv_and_json_give_the_same_task(
        self, labels: tuple, kind: str, classes: tuple | None, tmp_path: Path
    ):
        rows = [{**row, "text": row["text"] + ", 1"} for row in text_rows(9, labels=labels)]
        paths = [write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "rows.csv"]
        with paths[1].open("w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "label"])
            writer.writeheader()
            writer.writerows(rows)
        source = resolve_model(save_text_model(tmp_path / "model"))
        told = []
        for path in paths:
            dataset = load_split(path, split="train")
            task = make_task(TaskSpec(), dataset)
            encoder = task.load_encoder(source, load_config(source), max_length=16)
            targets = task.targets(dataset, split="train")
            told.append((task, encoder.encode(dataset, split="train", targets=targets).digest()))
        assert told[0] == told[1]
        assert (told[0][0].type, told[0][0].classes) == (kind, classes)

    def test_a_csv_column_of_numbers_is_text_if_requested(self, tmp_path: Path):
        (tmp_path / "rows.csv").write_text("code,label\n12,1\n7,0\n")
        dataset = load_split(tmp_path / "rows.csv", split="train")
        with pytest.raises(AmbiguousTaskError, match="text="):
            make_task(TaskSpec(), dataset)
        assert make_task(TaskSpec(text=("code",)), dataset).inputs == ("code",)

    @pytest.mark.parametrize(
        "values", [("1.0", "0.0"), (" 1", "0.00"), ("1.", "0"), (1.0, 0.0), (1.0, None, 0.0)]
    )
    def test_whole_numbers_of_a_float_type_are_ambiguous(self, values, tmp_path: Path):
        if isinstance(values[0], str):
            lines = "".join(f"a,{value}\n" for value in values)
            (tmp_path / "rows.csv").write_text(f"text,label\n{lines}")
            dataset = load_split(tmp_path / "rows.csv", split="train")
        else:
            dataset = split(*({"text": "a", "label": value} for value in values))
        with pytest.raises(AmbiguousTaskError, match="may be classes or regression") as caught:
            make_task(TaskSpec(), dataset)
        assert caught.value.param == "task"
        assert make_task(TaskSpec(type="regression"), dataset).classes is None
        if None in values:
            with pytest.raises(DataError, match="row 2, column 'label': the label is missing"):
                make_task(TaskSpec(type="classification"), dataset)
            return
        task = make_task(TaskSpec(type="classification"), dataset)
        assert task.classes == (0, 1)
        for name in ("train", "validation"):
            assert task.targets(dataset, split=name).tolist() == [1, 0]

    def test_numbers_in_csv_of_which_one_is_not_whole_are_regressed_on(self, tmp_path: Path):
        (tmp_path / "rows.csv").write_text("text,label\na,1.0\nb,0.5\n")
        dataset = load_split(tmp_path / "rows.csv", split="train")
        assert make_task(TaskSpec(), dataset).type == "regression"

    def test_an_empty_csv_column_is_no_label(self, tmp_path: Path):
        (tmp_path / "rows.csv").write_text("text,label\na,\nb,\n")
        with pytest.raises(DataError, match="column 'label': a column of null cannot be the label"):
            make_task(TaskSpec(), load_split(tmp_path / "rows.csv", split="train"))

    @pytest.mark.parametrize(
        ("name", "kind", "metric", "classes"),
        [
            ("mrpc", "classification", "accuracy", (0, 1)),
            ("rte", "classification", "accuracy", (0, 1)),
            ("cola", "classification", "accuracy", (0, 1)),
            ("sst2", "classification", "accuracy", (0, 1)),
            ("mnli", "classification", "accuracy", (0, 1, 2)),
            ("stsb", "regression", "pearson", None),
        ],
    )
    def test_real_texts(self, name: str, kind: str, metric: str, classes, test_data: Path):
        path = test_data / "data" / "glue" / name / "validation.jsonl"
        task = make_task(TaskSpec(), load_split(path, split="train"))
        assert (task.type, task.metric, task.classes) == (kind, metric, classes)
        assert task.num_labels == len(classes or [0])
        assert task.inputs in (("sentence",), ("sentence1", "sentence2"))
        assert task.label == "label"

    def test_real_images(self, test_data: Path):
        path = test_data / "data" / "mnist" / "validation.parquet"
        task = make_task(TaskSpec(), load_split(path, split="train"))
        assert task.type == "image-classification"
        assert task.classes == tuple("0123456789")

    @pytest.mark.parametrize("name", ["causal-lm"])
    def test_a_type_that_is_not_built_yet(self, name: str):
        with pytest.raises(
            TaskNotSupportedError, match=f"'{name}' is not supported yet.*regression"
        ):
            make_task(TaskSpec(type=name), split(PAIR))

    @pytest.mark.parametrize(
        ("spec", "param"),
        [
            (TaskSpec(type="regression", image="image", label="label"), "image"),
            (TaskSpec(type="classification", image="image"), "image"),
            (TaskSpec(type="image-classification", text=("image",), label="label"), "text"),
        ],
    )
    def test_inputs_of_another_type_are_refused(self, spec: TaskSpec, param: str):
        with pytest.raises(InvalidArgumentError) as caught:
            make_task(spec, split(*image_rows(2)))
        assert caught.value.param == param

    @pytest.mark.parametrize("metric", ["pearson", "loss", "Accuracy"])
    def test_a_metric_of_another_task_is_refused_with_those_there_are(self, metric: str):
        rows = split(PAIR, {**PAIR, "label": 1})
        with pytest.raises(InvalidArgumentError, match=r"accuracy, f1, matthews"):
            make_task(TaskSpec(metric=metric), rows)

    def test_one_class_is_not_enough(self):
        with pytest.raises(DataError, match="at least two classes"):
            make_task(TaskSpec(), split(PAIR, PAIR))
