"""hifi.tasks.regression: targets, loss and metrics of numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as tf

from hifi.data.splits import load_split
from hifi.errors import DataError
from hifi.tasks import TaskSpec, make_task
from tests.measured import Measured
from tests.tiny_tasks import text_rows

ROWS = text_rows(4, labels=(0.5, 1.0, 2.5, -1.0))


@pytest.fixture
def task():
    return make_task(TaskSpec(), load_split(ROWS, split="train"))


class TestTargets:
    def test_are_the_numbers(self, task):
        targets = task.targets(load_split(ROWS, split="train"), split="train")
        assert targets.dtype == torch.float32
        assert targets.tolist() == [0.5, 1.0, 2.5, -1.0]

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
    def test_one_that_is_no_number_is_refused(self, task, bad):
        rows = [*ROWS, {"text": "a", "label": bad}]
        with pytest.raises(DataError) as caught:
            task.targets(load_split(rows, split="validation"), split="validation")
        assert (caught.value.split, caught.value.row) == ("validation", 5)

    def test_of_a_csv_file_are_read_in_any_notation(self, task, tmp_path: Path):
        path = tmp_path / "validation.csv"
        path.write_text("text,label\na,007\nb,+1\nc,.50\nd,1e-1\n")
        targets = task.targets(load_split(path, split="validation"), split="validation")
        assert targets.tolist() == pytest.approx([7.0, 1.0, 0.5, 0.1])

    def test_integers_are_numbers_for_regression(self):
        dataset = load_split(text_rows(4), split="train")
        task = make_task(TaskSpec(type="regression"), dataset)
        assert task.targets(dataset, split="train").tolist() == [0.0, 1.0, 0.0, 1.0]


class TestLoss:
    def test_is_the_squared_error_in_float32(self, task):
        logits = torch.tensor([[1.0], [3.0]], dtype=torch.bfloat16)
        loss = task.loss(logits, torch.tensor([0.0, 1.0]))
        assert loss.dtype == torch.float32
        assert loss.item() == 2.5


class TestEvaluate:
    def test_gives_both_correlations(self, task):
        metrics = task.evaluate(
            torch.tensor([[1.0], [2.0], [9.0]]), Measured(torch.tensor([1.0, 2.0, 3.0]))
        )
        assert metrics["spearman"] == pytest.approx(1)
        assert 0.9 < metrics["pearson"] < 0.95


class TestSettings:
    def test_give_a_model_one_output(self, task):
        config = tf.BertConfig()
        for name, value in task.settings().items():
            setattr(config, name, value)
        assert (config.num_labels, config.problem_type) == (1, "regression")
        assert task.classes is None
        assert task.describe()["type"] == "regression"
