"""hifi.tuning.task_record: what the caller records, completed by the model's configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as tf

from hifi import HeadBank, HeadDelta
from hifi.deltas.loading import load_backbone
from hifi.errors import InvalidArgumentError
from hifi.tuning.task_record import TaskFacts, complete_task
from hifi.tuning.tuner import HeadTuner
from tests.architectures import tiny_batch
from tests.tiny_tasks import save_text_model
from tests.tiny_tuning import selection

CLASSIFICATION, REGRESSION = {"type": "classification"}, {"type": "regression"}
SINGLE = "single_label_classification"
NAMED = {"id2label": {0: "no", 1: "yes"}}


def complete(task, labels=None, **config) -> TaskFacts:
    return complete_task(task, labels, config=tf.BertConfig(**config))


class TestCompleteTask:
    def test_adds_the_number_of_labels_and_the_problem_type(self):
        facts = complete(CLASSIFICATION, num_labels=3)
        assert facts.task == {"type": "classification", "num_labels": 3, "problem_type": SINGLE}
        assert facts.labels is None  # the configuration only numbers them

    def test_adds_real_names(self):
        assert complete(CLASSIFICATION, **NAMED).labels == ["no", "yes"]
        assert complete(None, **NAMED) == TaskFacts(None, ["no", "yes"])

    def test_the_callers_names_win(self):
        assert complete(CLASSIFICATION, ["bad", "good"], **NAMED).labels == ["bad", "good"]

    def test_a_regression_has_no_classes(self):
        facts = complete(REGRESSION, id2label={0: "similarity"})
        assert facts.labels is None
        assert facts.task == {"type": "regression", "num_labels": 1, "problem_type": "regression"}

    def test_a_problem_type_of_the_caller_wins(self):
        task = {**CLASSIFICATION, "problem_type": SINGLE}
        assert complete(task, problem_type="regression").task["problem_type"] == SINGLE

    def test_a_type_that_only_the_caller_knows_is_completed_too(self):
        facts = complete({"type": "tagging"}, problem_type="multi_label_classification", **NAMED)
        assert facts.labels == ["no", "yes"]
        assert facts.task["num_labels"] == 2
        assert facts.task["problem_type"] == "multi_label_classification"

    @pytest.mark.parametrize(
        ("task", "labels", "config", "match"),
        [
            ({**CLASSIFICATION, "num_labels": 3}, None, {}, "num_labels=3 .* 2, the model's"),
            ({**CLASSIFICATION, "num_labels": "2"}, None, {}, "num_labels='2'"),
            (CLASSIFICATION, ["a", "b", "c"], {}, r"labels=\['a', 'b', 'c'\] .* 2 labels"),
            (REGRESSION, None, {}, "task='regression' .* 1 for a regression task; .* has 2"),
            (REGRESSION, ["low"], {"num_labels": 1}, "labels=.*a regression task has no classes"),
            (CLASSIFICATION, None, {"problem_type": "regression"}, "problem_type='regression'"),
            ({**CLASSIFICATION, "problem_type": "regression"}, None, {}, f"limit|{SINGLE}"),
        ],
    )
    def test_contradictions_are_refused(self, task, labels, config, match):
        with pytest.raises(InvalidArgumentError, match=match):
            complete(task, labels, **config)


class TestDeltaWithoutLabels:
    """A stock model of three labels: the bank and ``hifi merge`` need their number only."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return save_text_model(tmp_path / "tiny", num_labels=3)

    @pytest.fixture
    def tuned(self, folder: Path) -> HeadTuner:
        model = tf.BertForSequenceClassification.from_pretrained(folder).eval()
        return HeadTuner(model, selection())

    def test_is_served_by_a_bank(self, folder: Path, tuned: HeadTuner):
        bank = HeadBank(tf.AutoModel.from_pretrained(folder).eval())
        bank.add("task", tuned.delta(task=CLASSIFICATION))
        batch = tiny_batch("bert")
        answers = torch.stack(bank.forward(batch, ["task"] * 4))
        with torch.no_grad():
            torch.testing.assert_close(answers, tuned.model(**batch).logits)

    def test_loads_its_backbone(self, folder: Path, tuned: HeadTuner, tmp_path: Path):
        tuned.delta(task=CLASSIFICATION).save(tmp_path / "delta")
        delta = HeadDelta.load(tmp_path / "delta")
        loaded = load_backbone(delta, model=str(folder), revision=None)
        assert loaded.model.config.num_labels == 3
        delta.merge(loaded.model)

    def test_of_a_model_without_a_task_head_is_recorded_as_given(self, folder: Path):
        tuner = HeadTuner(tf.AutoModel.from_pretrained(folder), selection())
        assert tuner.delta(task={"type": "embedding"}).metadata.task == {"type": "embedding"}
