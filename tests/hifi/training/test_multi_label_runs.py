"""Fine-tunes on labels that do not exclude each other: threshold, resume, kept head, warnings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from hifi.data.spec import IfLabelled
from hifi.errors import InvalidArgumentError, JobPaused
from hifi.tasks.multi_label import DEFAULT_THRESHOLD
from hifi.training.events import Control
from tests.task_types.cases import CASES
from tests.tiny_deltas import save_bare_backbone
from tests.tiny_runs import file_of, run, stop_at
from tests.tiny_tasks import save_text_model

if TYPE_CHECKING:
    from hifi import HeadDelta

CASE = next(case for case in CASES if case.type == "multi-label")
TRAIN, VALIDATION = CASE.rows(24, 1), CASE.rows(12, 2)
LISTS: dict[str, Any] = {"train": TRAIN, "validation": VALIDATION}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bare_backbone(tmp_path_factory.mktemp("models") / "tiny-bert")


def as_flags(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = ("bad", "good")
    return [
        {"text": row["text"], **{name: int(name in row["labels"]) for name in names}}
        for row in rows
    ]


def threshold_of(delta: HeadDelta) -> float:
    return (delta.metadata.task or {})["threshold"]


class TestThreshold:
    def test_is_stored_and_scores_the_test_split(self, bert: Path):
        """The test split has other best thresholds, and chooses nothing."""
        empty = [{**row, "labels": []} for row in VALIDATION]
        result = run(bert, **LISTS, test=empty, head_start="random", epochs=1)
        assert 0 < threshold_of(result.delta) < 1
        assert threshold_of(result.delta) != DEFAULT_THRESHOLD
        assert result.test["subset_accuracy"] < 1  # a threshold of its own would reject all labels
        again = run(bert, **LISTS, test=VALIDATION, head_start="random", epochs=1)
        assert dict(again.test) == dict(again.metrics)

    def test_without_validation_is_one_half(self, bert: Path):
        result = run(bert, train=TRAIN, validation=None)
        assert threshold_of(result.delta) == DEFAULT_THRESHOLD

    def test_that_is_set_is_used(self, bert: Path):
        result = run(bert, **LISTS, task={"type": "multi-label", "threshold": 0.9})
        assert threshold_of(result.delta) == 0.9


class TestFlags:
    def test_are_learnt_like_lists(self, bert: Path):
        flags = {name: as_flags(rows) for name, rows in LISTS.items()}
        task = {"type": "multi-label", "label": ["bad", "good"]}
        found, expected = run(bert, **flags, task=task), run(bert, **LISTS)
        assert dict(found.metrics) == dict(expected.metrics)
        assert (found.delta.metadata.task or {})["label"] == ["bad", "good"]
        assert list(found.delta.metadata.labels or ()) == ["bad", "good"]
        rows = zip(found.delta.task_head.values(), expected.delta.task_head.values(), strict=True)
        assert all(mine.equal(other) for mine, other in rows)

    def test_of_which_few_rows_have_one_are_told(self, bert: Path):
        rows = as_flags(TRAIN)
        for row in rows[1:]:
            row["bad"] = 0
        result = run(bert, train=rows, validation=None, task="multi-label", label=["bad", "good"])
        [warning] = [each for each in result.warnings if each.code == "few_rows_per_class"]
        assert "1 of the 2 label columns have fewer than 8 training rows: 'bad'" in warning.message

    def test_that_a_test_split_lacks_are_told(self, bert: Path):
        test = [{"text": row["text"]} for row in VALIDATION]
        task = {"type": "multi-label", "label": ["bad", "good"]}
        rows = as_flags(TRAIN)
        result = run(bert, train=rows, validation=None, task=task, test=IfLabelled(test))
        assert not result.test
        assert [each.code for each in result.warnings if each.param == "test"] == [
            "test_not_scored"
        ]


class TestResume:
    @pytest.mark.parametrize("stop", [("step", 2), ("evaluated", 3), ("step", 5)])
    def test_gives_the_same_bytes(self, stop: tuple[str, int], bert: Path, tmp_path: Path):
        expected = file_of(run(bert, **LISTS, test=VALIDATION), tmp_path)
        folder = tmp_path / "run"
        with pytest.raises(JobPaused):
            run(bert, **LISTS, checkpoint_dir=folder, on_event=stop_at(*stop, Control.PAUSE))
        assert file_of(run(bert, **LISTS, checkpoint_dir=folder), tmp_path) == expected


class TestKeptHead:
    @pytest.fixture
    def own_head(self, tmp_path: Path) -> Path:
        names = {0: "good", 1: "bad"}
        problem = {"problem_type": "multi_label_classification"}
        return save_text_model(tmp_path / "own", id2label=names, num_labels=2, **problem)

    def test_with_the_same_labels_is_kept(self, own_head: Path):
        result = run(own_head, **LISTS, head_start="keep")
        assert "untuned" in result.yardsticks

    def test_whose_labels_exclude_each_other_is_not(self, tmp_path: Path):
        folder = save_text_model(tmp_path / "own", id2label={0: "bad", 1: "good"}, num_labels=2)
        with pytest.raises(InvalidArgumentError, match="of the ones a row can have several"):
            run(folder, **LISTS, head_start="keep")
        [warning] = [
            each for each in run(folder, **LISTS).warnings if each.code == "task_head_replaced"
        ]
        assert "of the ones a row can have several" in warning.message


class TestWeights:
    def test_of_a_rare_label_find_more_of_its_rows(self, bert: Path):
        rare = [{**row, "labels": ["good"] if row["labels"] == ["good"] else []} for row in TRAIN]
        rare[0]["labels"] = ["bad"]
        shares = []
        for weights in (None, {"good": 50}):
            result = run(
                bert,
                train=rare,
                validation=None,
                class_weights=weights,
                head_start="random",
                learning_rate=0.01,
                epochs=1,
            )
            bias = result.delta.task_head["classifier.bias"]
            shares.append(bias[list(result.delta.metadata.labels or ()).index("good")].item())
        assert np.diff(shares)[0] > 0
