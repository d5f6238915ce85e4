"""hifi.tasks.classification: targets, loss and metrics of classes."""

from __future__ import annotations

import math
from pathlib import Path

import datasets
import pytest
import torch
import transformers as tf

from hifi.data.splits import load_split
from hifi.errors import DataError, InvalidArgumentError
from hifi.tasks import TaskSpec, make_task
from hifi.tasks.classification import Classification
from hifi.tasks.image_classification import ImageClassification
from tests.measured import Measured
from tests.tiny_tasks import image_rows, text_rows


def make(labels) -> Classification:
    dataset = load_split(text_rows(12, labels=labels), split="train")
    task = make_task(TaskSpec(), dataset)
    assert isinstance(task, Classification)
    return task


class TestTargets:
    @pytest.mark.parametrize("labels", [(0, 1), ("no", "yes"), (False, True), (7, 3, 5), "abcd"])
    def test_are_places_among_the_classes(self, labels):
        task = make(labels)
        rows = text_rows(12, labels=labels)
        targets = task.targets(load_split(rows, split="train"), split="train")
        assert targets.dtype == torch.int64
        names = [str(row["label"]).lower() if len(labels) == 2 else row["label"] for row in rows]
        known = [str(name) for name in task.classes or ()]
        assert [known[target] for target in targets] == [str(name) for name in names]

    def test_an_unknown_label_in_validation_is_refused(self):
        validation = load_split(text_rows(3, labels=("no", "maybe")), split="validation")
        with pytest.raises(DataError, match=r"'maybe'.*'no', 'yes'") as caught:
            make(("no", "yes")).targets(validation, split="validation")
        assert (caught.value.split, caught.value.row) == ("validation", 2)

    @pytest.mark.parametrize(
        ("train", "validation", "targets"),
        [
            ("1 2 ?", "1 2", [0, 1]),  # alone these would be read as integers
            ("1 0", "0 1", [0, 1]),
            ("01 1", "1 01", [1, 0]),
            ("1 2", "2.0 1", [1, 0]),
            ("True False", "true FALSE", [1, 0]),
            ("True False maybe", "False False", [0, 0]),
        ],
    )
    def test_of_a_csv_file_are_read_as_in_train(
        self, train: str, validation: str, targets: list[int], tmp_path: Path
    ):
        splits = {}
        for split, labels in (("train", train), ("validation", validation)):
            path = tmp_path / f"{split}.csv"
            path.write_text("text,label\n" + "".join(f"a,{label}\n" for label in labels.split()))
            splits[split] = load_split(path, split=split)
        task = make_task(TaskSpec(), splits["train"])
        assert task.targets(splits["validation"], split="validation").tolist() == targets

    @pytest.mark.parametrize("labels", ["1 2 ?", "1 2 02", "1 2 2.5"])
    def test_of_a_csv_file_may_be_unknown(self, labels: str, tmp_path: Path):
        path = tmp_path / "validation.csv"
        path.write_text("text,label\n" + "".join(f"a,{label}\n" for label in labels.split()))
        with pytest.raises(DataError, match="known are 1, 2") as caught:
            make((1, 2)).targets(load_split(path, split="validation"), split="validation")
        assert caught.value.row == 3

    def test_validation_may_lack_a_class(self):
        validation = load_split(text_rows(1, labels=("no",)), split="validation")
        targets = make(("no", "yes")).targets(validation, split="validation")
        assert targets.tolist() == [0]


class TestLoss:
    def test_is_the_cross_entropy_in_float32(self):
        logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]], dtype=torch.bfloat16)
        loss = make((0, 1)).loss(logits, torch.tensor([0, 1]))
        expected = (math.log(1 + math.exp(-2)) + math.log(2)) / 2
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected, rel=1e-6)


class TestWeights:
    # -log softmax of the targets: ln(1 + e⁻²), ln 2, ln 2 and ln(1 + e²).
    LOGITS = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
    TARGETS = torch.tensor([0, 0, 0, 1])
    LOSSES = (math.log(1 + math.exp(-2)), math.log(2), math.log(2), math.log(1 + math.exp(2)))

    def test_balanced_are_n_over_classes_times_count(self):
        task = make(("no", "yes")).weighted("balanced", targets=self.TARGETS)
        assert task.class_weights == (4 / (2 * 3), 4 / (2 * 1))
        loss = task.training_loss(self.LOGITS, self.TARGETS)
        weights = (2 / 3, 2 / 3, 2 / 3, 2.0)
        expected = sum(w * each for w, each in zip(weights, self.LOSSES, strict=True)) / 4
        assert loss.item() == pytest.approx(expected, rel=1e-6)

    def test_given_ones_have_the_mean_1_over_the_rows(self):
        task = make(("no", "yes")).weighted({"yes": 5.0}, targets=self.TARGETS)
        assert task.class_weights == pytest.approx((0.5, 2.5))  # 1 and 5, whose mean is 2
        scaled = make(("no", "yes")).weighted({"no": 3e307, "yes": 1.5e308}, targets=self.TARGETS)
        assert scaled.class_weights == pytest.approx(task.class_weights)

    def test_a_batch_of_one_class_keeps_its_weight(self):
        task = make((0, 1)).weighted({"1": 5.0}, targets=self.TARGETS)
        alone = task.training_loss(self.LOGITS[3:], self.TARGETS[3:])
        assert alone.item() == pytest.approx(2.5 * self.LOSSES[3])

    def test_a_class_without_rows_changes_no_other(self):
        dataset = load_split(text_rows(12, labels="ab"), split="train")
        names = datasets.ClassLabel(names=["a", "b", "c"])
        task = make_task(TaskSpec(), dataset.cast_column("label", names))
        weighted = task.weighted("balanced", targets=torch.tensor([0, 0, 0, 1]))
        assert isinstance(weighted, Classification)
        assert weighted.class_weights == (2 / 3, 2.0, 1.0)

    def test_do_not_reach_the_loss_of_an_evaluation(self):
        task = make((0, 1))
        weighted = task.weighted("balanced", targets=self.TARGETS)
        assert weighted.loss(self.LOGITS, self.TARGETS) == task.loss(self.LOGITS, self.TARGETS)
        assert task.training_loss(self.LOGITS, self.TARGETS) == task.loss(self.LOGITS, self.TARGETS)

    def test_are_float32_whatever_the_logits_are(self):
        task = make((0, 1)).weighted({"1": 3.0}, targets=self.TARGETS)
        assert task.training_loss(self.LOGITS.bfloat16(), self.TARGETS).dtype == torch.float32

    def test_of_an_unknown_label_are_refused(self):
        with pytest.raises(InvalidArgumentError, match="known are 'no', 'yes'"):
            make(("no", "yes")).weighted({"maybe": 2.0}, targets=self.TARGETS)


class TestEvaluate:
    def test_gives_every_metric(self):
        logits = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
        metrics = make((0, 1)).evaluate(logits, Measured(torch.tensor([1, 0, 0, 0])))
        assert metrics == pytest.approx(
            {"accuracy": 0.75, "f1": 2 / 3, "matthews": 2 / math.sqrt(12)}
        )


class TestSettings:
    def test_give_a_model_this_head(self):
        task = make(("no", "yes", "maybe"))
        config = tf.BertConfig()
        for name, value in task.settings().items():
            setattr(config, name, value)
        assert config.num_labels == 3
        assert config.id2label == {0: "maybe", 1: "no", 2: "yes"}
        assert config.label2id == {"maybe": 0, "no": 1, "yes": 2}
        assert config.problem_type == "single_label_classification"

    def test_are_described_in_json(self):
        assert make((0, 1)).describe() == {
            "type": "classification",
            "label": "label",
            "metric": "accuracy",
            "num_labels": 2,
            "problem_type": "single_label_classification",
        }


class TestImages:
    def test_are_classified_alike(self):
        dataset = load_split(image_rows(4), split="train")
        task = make_task(TaskSpec(metric="matthews"), dataset)
        assert isinstance(task, ImageClassification)
        assert (task.inputs, task.metric) == (("image",), "matthews")
        assert task.targets(dataset, split="train").tolist() == [0, 1, 0, 1]
