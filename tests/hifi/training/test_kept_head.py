"""A fine-tune of a checkpoint that has a task head: kept if it fits, else replaced with a word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from datasets import ClassLabel, Dataset, Features, Value

from hifi import HeadDelta
from hifi.backbones.models import resolve_model
from hifi.data.settings import HeadStart, Hyperparameters
from hifi.deltas.loading import load_backbone
from hifi.errors import CheckpointError, InvalidArgumentError, JobPaused
from hifi.serving.prediction import TaskRecord
from hifi.tasks import TaskSpec
from hifi.training.events import Control, TrainingEvent
from hifi.training.preparation import Prepared, prepare
from tests.architectures import HIDDEN
from tests.tiny_deltas import save_bare_backbone
from tests.tiny_runs import file_of, record, run, stop_at
from tests.tiny_tasks import image_rows, save_image_model, save_text_model, text_rows

NAMES = {0: "dull", 1: "fine", 2: "odd"}
SETTINGS = Hyperparameters(max_length=16, batch_size=4, precision="float32")


def save(folder: Path, *, names: dict[int, str] | None = NAMES, **config: Any) -> Path:
    """Save a classifier with these labels."""
    labels = {} if names is None else {"id2label": names, "num_labels": len(names)}
    return save_text_model(folder, **labels, **config)


def ready_for(
    folder: Path,
    rows: Sequence[dict[str, Any]] | Dataset,
    *,
    start: HeadStart = "auto",
    **spec: Any,
) -> Prepared:
    return prepare(
        resolve_model(folder),
        spec=TaskSpec(**spec),
        train=rows if isinstance(rows, Dataset) else list(rows),
        validation=None,
        settings=replace(SETTINGS, head_start=start),
        device=torch.device("cpu"),
    )


def stored_head(folder: Path) -> tf.PreTrainedModel:
    return tf.AutoModelForSequenceClassification.from_pretrained(folder)


def codes(ready: Prepared) -> list[str]:
    return [warning.code for warning in ready.warnings]


class TestKept:
    def test_for_integers_with_the_models_names(self, tmp_path: Path):
        folder = save(tmp_path)
        ready = ready_for(folder, text_rows(24, labels=(0, 1, 2)))
        model = ready.loaded.model
        assert torch.equal(model.classifier.weight, stored_head(folder).classifier.weight)
        assert ready.data.task.classes == (0, 1, 2)
        assert ready.data.task.labels == ("dull", "fine", "odd")
        assert model.config.id2label == NAMES
        assert codes(ready) == ["labels_by_number"]
        assert "0 is 'dull', 1 is 'fine', 2 is 'odd'" in ready.warnings[0].message
        assert ready.summary().endswith(
            "(3 classes: dull, fine, odd); 24 rows; float32 on cpu; keeps the model's own task head"
        )

    def test_for_the_same_names_in_another_order_with_its_rows_moved(self, tmp_path: Path):
        folder = save(tmp_path, names={0: "odd", 1: "dull", 2: "fine"})
        ready = ready_for(folder, text_rows(24, labels=("fine", "odd", "dull")))
        assert ready.data.task.labels == ("dull", "fine", "odd")
        assert codes(ready) == []
        kept, stored = ready.loaded.model.classifier, stored_head(folder).classifier
        assert torch.equal(kept.weight, stored.weight[[1, 2, 0]])
        assert torch.equal(kept.bias, stored.bias[[1, 2, 0]])

    def test_a_hidden_size_equal_to_the_number_of_labels_is_not_moved(self, tmp_path: Path):
        names = [f"n{number:02}" for number in range(HIDDEN)]
        folder = save(tmp_path, names=dict(enumerate(names[::-1])), name="roberta")
        ready = ready_for(folder, text_rows(2 * HIDDEN, labels=names))
        kept, stored = ready.loaded.model.classifier, stored_head(folder).classifier
        assert kept.dense.weight.shape == kept.out_proj.weight.shape  # the sizes coincide
        assert torch.equal(kept.dense.weight, stored.dense.weight)
        assert torch.equal(kept.out_proj.weight, stored.out_proj.weight.flip(0))

    def test_for_integers_without_names(self, tmp_path: Path):
        ready = ready_for(save(tmp_path, names=None), text_rows(16))
        assert ready.kept_head is not None
        assert ready.data.task.labels == (0, 1)
        assert codes(ready) == []

    def test_for_integers_of_which_two_have_one_name(self, tmp_path: Path):
        """Answers with the names would not tell the two apart."""
        folder = save(tmp_path, names={0: "crane", 1: "heron", 2: "crane"})
        ready = ready_for(folder, text_rows(24, labels=(0, 1, 2)))
        assert ready.kept_head is not None
        assert ready.data.task.labels == (0, 1, 2)
        assert codes(ready) == []

    def test_for_a_regression_of_one_number(self, tmp_path: Path):
        folder = save(tmp_path, names=None, num_labels=1)
        rows = [{**row, "label": index / 7} for index, row in enumerate(text_rows(6))]
        ready = ready_for(folder, rows)
        head = ready.loaded.model.classifier.weight
        assert torch.equal(head, stored_head(folder).classifier.weight)
        assert codes(ready) == []

    def test_for_images(self, tmp_path: Path):
        folder = save_image_model(tmp_path, id2label={0: "dark", 1: "light"})
        ready = ready_for(folder, image_rows(8))
        assert ready.data.task.labels == ("dark", "light")
        assert ready.kept_head is not None

    def test_another_kept_head_is_another_job(self, bert: Path, tmp_path: Path):
        with pytest.raises(JobPaused):
            run(bert, checkpoint_dir=tmp_path / "c", on_event=stop_at("step", 1, Control.PAUSE))
        model = tf.AutoModelForSequenceClassification.from_pretrained(bert)
        with torch.no_grad():
            model.classifier.bias += 1
        model.save_pretrained(bert)  # the backbone is the same
        with pytest.raises(CheckpointError, match="another model"):
            run(bert, checkpoint_dir=tmp_path / "c")


class TestReplaced:
    @pytest.mark.parametrize("labels", [("a", "b", "c"), (0, 1), (1, 2, 3)])
    def test_with_a_warning_and_the_seeds_weights(self, labels: tuple[Any, ...], tmp_path: Path):
        folder = save(tmp_path / "named")
        ready = ready_for(folder, text_rows(24, labels=labels))
        bare = save_text_model(tmp_path / "bare")
        stored_head(bare).base_model.save_pretrained(bare)
        fresh = ready_for(bare, text_rows(24, labels=labels))
        assert torch.equal(
            ready.loaded.model.classifier.weight, fresh.loaded.model.classifier.weight
        )
        assert codes(ready) == ["task_head_replaced"]
        assert "the task head of named (3 labels: 'dull', 'fine', 'odd')" in (
            ready.warnings[0].message
        )
        assert "own task head" not in ready.summary()
        assert codes(fresh) == []

    @pytest.mark.parametrize("start", ["auto", "keep"])
    def test_for_integers_that_the_data_names_otherwise(self, start: Any, tmp_path: Path):
        folder = save(tmp_path)
        features = Features({"text": Value("string"), "label": ClassLabel(names=["0", "1", "2"])})
        data = Dataset.from_list(text_rows(24, labels=(0, 1, 2)), features=features)
        cause = "3 labels: '0', '1', '2'; names in the data, a ClassLabel, count as its labels"
        if start == "keep":
            with pytest.raises(InvalidArgumentError, match=cause):
                ready_for(folder, data, start=start)
        else:
            assert cause in ready_for(folder, data).warnings[0].message

    def test_of_another_class_of_model_is_none_of_its_own(self, tmp_path: Path):
        folder = save(tmp_path, names=None)
        config = tf.AutoConfig.from_pretrained(folder)
        tf.BertForTokenClassification(config).save_pretrained(folder)  # has a classifier, too
        ready = ready_for(folder, text_rows(16))
        assert (ready.kept_head, codes(ready)) == (None, [])


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return save(tmp_path / "bert", names={0: "good", 1: "bad"})


class TestDelta:
    def test_merges_and_predicts_with_the_models_names(self, bert: Path, tmp_path: Path):
        heard: list[TrainingEvent] = []
        result = run(bert, on_event=record(heard))
        loaded = next(each for each in heard if each.kind == "loaded")
        assert [warning.code for warning in loaded.warnings] == ["labels_by_number"]
        assert result.warnings[:1] == loaded.warnings
        assert "own task head" in loaded.message
        result.delta.save(tmp_path / "d.safetensors")
        delta = HeadDelta.load(tmp_path / "d.safetensors")
        assert delta.metadata.labels == ["good", "bad"]
        backbone = load_backbone(delta, model=str(bert), revision=None)
        delta.merge(backbone.model)
        head = dict(backbone.model.named_parameters())["classifier.weight"]
        assert torch.equal(head, delta.task_head["classifier.weight"])
        answer = TaskRecord.of(delta, backbone.model.config).task.answer(
            [torch.tensor([0.0, 1.0], dtype=torch.float64)],
            None,  # type: ignore[arg-type]
        )
        assert answer["label"] == "bad"

    def test_of_a_run_that_was_stopped_has_the_same_bytes(self, bert: Path, tmp_path: Path):
        whole = file_of(run(bert), tmp_path)
        with pytest.raises(JobPaused):
            run(bert, checkpoint_dir=tmp_path / "c", on_event=stop_at("step", 2, Control.PAUSE))
        assert file_of(run(bert, checkpoint_dir=tmp_path / "c"), tmp_path) == whole

    def test_starts_from_the_checkpoints_accuracy(self, tmp_path: Path):
        """A learning rate near zero leaves the model as good as it was."""
        folder = save(tmp_path, names=None)
        model, rows = stored_head(folder), text_rows(24, seed=5)
        tokenizer = tf.AutoTokenizer.from_pretrained(folder)
        texts = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(texts["input_ids"], texts["attention_mask"]).logits
            middle = (logits[:, 1] - logits[:, 0]).sort().values[11:13].mean()
            model.classifier.bias[0] += middle  # so that both answers occur
            logits[:, 0] += middle
        model.save_pretrained(folder)
        answers = logits.argmax(-1).tolist()
        labelled = [{**row, "label": label} for row, label in zip(rows, answers, strict=True)]
        result = run(folder, train=labelled, validation=labelled, learning_rate=1e-9, max_length=64)
        assert result.metrics["accuracy"] == 1.0

    def test_without_a_stored_head_knows_none(self, tmp_path: Path):
        result = run(save_bare_backbone(tmp_path))
        assert "task_head_replaced" not in [warning.code for warning in result.warnings]
        assert result.delta.metadata.labels == [0, 1]
