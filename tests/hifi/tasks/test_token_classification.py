"""hifi.tasks.token_classification: loss, metrics, answers, kept heads, and whole fine-tunes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers as tf
from sklearn.utils.class_weight import compute_class_weight

from hifi import HeadDelta, HeadTuner, finetune
from hifi.backbones.heads import HeadId
from hifi.backbones.models import resolve_model
from hifi.data.settings import Hyperparameters
from hifi.data.splits import load_split
from hifi.deltas.loading import load_bare_backbone
from hifi.errors import InvalidArgumentError, JobPaused
from hifi.selection.head_selection import HeadSelection
from hifi.serving.prediction import TaskRecord
from hifi.tasks import Sample, TaskSpec, make_task
from hifi.tasks.token_classification import TokenClassification
from hifi.tasks.words.encoder import WindowedText
from hifi.tasks.words.units import WordUnits
from hifi.training.events import Control
from hifi.training.preparation import Prepared, prepare
from tests.architectures import LAYERS, tiny_model
from tests.measured import Measured
from tests.task_types.cases import CASES
from tests.tiny_deltas import save_bare_backbone
from tests.tiny_runs import SMALL, file_of, stop_at
from tests.tiny_tasks import END, UNKNOWN, tiny_tokenizer

Row = dict[str, Any]
NONE = -1
CPU = torch.device("cpu")
TAGS = ("O", "B-bad", "I-bad", "B-good", "I-good")
_CASE = next(case for case in CASES if case.type == "token-classification")
TRAIN, VALIDATION = _CASE.rows(48, 1), _CASE.rows(24, 2)
PARTS = {"w1": "noun", "w2": "verb", "w3": "noun"}  # of speech


def make(rows: Sequence[Row] | datasets.Dataset = TRAIN) -> TokenClassification:
    dataset = load_split(rows if isinstance(rows, datasets.Dataset) else list(rows), split="train")
    task = make_task(TaskSpec(type="token-classification"), dataset)
    assert isinstance(task, TokenClassification)
    return task


def targets_of(*rows: Sequence[int], number: Sequence[int] | None = None) -> torch.Tensor:
    """Return the targets of windows of equal lengths; ``number`` is the row of each."""
    labels = torch.tensor(rows)
    own = torch.tensor(range(len(rows)) if number is None else number)
    return torch.stack([labels, own[:, None].expand_as(labels)], dim=-1).int()


def logits_for(*rows: Sequence[int], size: float = 5.0) -> torch.Tensor:
    """Return logits that are largest for these labels."""
    return size * torch.nn.functional.one_hot(torch.tensor(rows), len(TAGS)).float()


def parts_of_speech(count: int) -> list[Row]:
    """Make sentences in which every word has a part of speech."""
    words = [[("w1", "w2", "w3")[(row + place) % 3] for place in range(3)] for row in range(count)]
    return [{"tokens": each, "tags": [PARTS[word] for word in each]} for each in words]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bare_backbone(tmp_path_factory.mktemp("models") / "tiny-bert")


def run(backbone: Path, /, **arguments: Any) -> Any:
    defaults = {"model": backbone, "train": TRAIN, "validation": VALIDATION, "precision": "float32"}
    return finetune(**{**defaults, **SMALL, **arguments})


class TestTargets:
    def test_are_the_spans_of_all_rows(self):
        rows = [
            {"tokens": ["w1", "w22", "w3"], "tags": ["B-bad", "I-bad", "O"]},
            {"tokens": ["w1"], "tags": ["O"]},
            {"tokens": ["w1", "w2"], "tags": ["B-bad", "B-good"]},
        ]
        found = make(rows).targets(load_split(rows, split="train"), split="train")
        assert found.tolist() == [[0, 0, 6, 1, 2], [2, 0, 2, 1, 2], [2, 3, 5, 3, 4]]

    def test_of_rows_without_a_span_are_none(self):
        rows = load_split([{"tokens": ["w1"], "tags": ["O"]}], split="validation")
        assert make().targets(rows, split="validation").shape == (0, 5)

    def test_one_row_of_many_spans_takes_no_space_in_others(self):
        many = {"tokens": ["w"] * 20_000, "tags": ["B-bad"] * 20_000}
        rows = [many, *({"tokens": ["w"], "tags": ["O"]},) * 20_000]  # 13 GB as a table of rows
        found = make(rows).targets(load_split(rows, split="train"), split="train")
        assert found.shape == (20_000, 5)


class TestLoss:
    def test_is_the_mean_over_words_whatever_the_windows(self):
        task, generator = make(), torch.Generator().manual_seed(1)
        logits = torch.randn(1, 6, len(TAGS), generator=generator)
        whole = targets_of([NONE, 0, 1, 2, 0, NONE])
        expected = torch.nn.functional.cross_entropy(logits[0, 1:5], torch.tensor([0, 1, 2, 0]))
        assert task.loss(logits, whole).item() == pytest.approx(expected.item())
        windows = logits[0][
            torch.tensor([[0, 1, 2, 3], [2, 3, 4, 5]])
        ]  # both read the middle tokens
        halves = targets_of([NONE, 0, 1, NONE], [NONE, 2, 0, NONE], number=[0, 0])
        assert task.loss(windows, halves).item() == pytest.approx(expected.item())

    def test_targets_may_be_padded_further_than_a_batch(self):
        task, logits = make(), logits_for([0, 1, 2])
        short, long = targets_of([NONE, 1, 0]), targets_of([NONE, 1, 0, NONE, NONE])
        assert task.loss(logits, long).equal(task.loss(logits, short))

    def test_of_windows_without_a_word_is_zero(self):
        loss = make().loss(logits_for([0, 1]).requires_grad_(), targets_of([NONE, NONE]))
        loss.backward()
        assert loss.item() == 0

    def test_of_half_precision_is_float32(self):
        assert make().loss(logits_for([0, 1]).bfloat16(), targets_of([0, 1])).dtype == torch.float32


class TestClassWeights:
    def test_balanced_ones_are_those_of_the_words(self):
        labels = [0, 0, 0, 0, 0, 1, 2, 0, 1]
        task = make().weighted("balanced", targets=targets_of([*labels, NONE]))
        present = np.unique(labels)
        expected = compute_class_weight("balanced", classes=present, y=labels)
        assert task.class_weights is not None
        assert np.array(task.class_weights)[present] == pytest.approx(expected)

    def test_count_in_the_training_loss_alone(self):
        targets, logits = targets_of([0, 0, 1, NONE]), logits_for([1, 0, 0, 0], size=1.0)
        plain = make()
        task = plain.weighted({"O": 1.0, "B-bad": 4.0}, targets=targets)
        single = torch.nn.functional.cross_entropy(
            logits[0, :3], torch.tensor([0, 0, 1]), reduction="none"
        )
        weights = torch.tensor([1.0, 1.0, 4.0]) / 2  # of mean 1 over the words
        expected = (single * weights).mean().item()
        assert task.training_loss(logits, targets).item() == pytest.approx(expected)
        assert task.loss(logits, targets).equal(plain.loss(logits, targets))

    def test_of_an_unknown_tag_are_refused(self):
        with pytest.raises(InvalidArgumentError, match="bad"):
            make().weighted({"bad": 2.0}, targets=targets_of([0, 1]))

    def test_of_entities_find_more_of_them(self, backbone: Path):
        weights = dict.fromkeys(TAGS[1:], 50.0)
        settings = {"head_start": "random", "learning_rate": 3e-3, "epochs": 3}
        plain, weighted = (
            run(backbone, class_weights=each, **settings) for each in (None, weights)
        )
        assert weighted.metrics["recall"] > plain.metrics["recall"]


class TestMetrics:
    def test_by_hand(self):
        wanted = targets_of([NONE, 1, 2, 0, 3], [3, 4, 1, 0, NONE])
        found = logits_for([4, 1, 2, 0, 0], [3, 0, 1, 3, 0])
        # Of bad 0-1, good 3, good 0-1 and bad 2, two are found, and two others.
        metrics = make().evaluate(found, Measured(wanted))
        assert metrics == {"f1": 0.5, "precision": 0.5, "recall": 0.5, "accuracy": 5 / 8}

    def test_an_entity_over_two_windows_of_a_row_is_one(self):
        wanted = targets_of([NONE, 0, 1], [2, 2, NONE], number=[0, 0])
        task = make()
        assert task.count_rows(wanted) == {"bad": 1, "good": 0}
        assert task.count_answers(wanted) == 1
        assert task.evaluate(logits_for([0, 0, 1], [2, 2, 0]), Measured(wanted))["f1"] == 1.0

    def test_an_entity_does_not_reach_into_the_next_row(self):
        wanted = targets_of([0, 1], [2, 0])
        assert make().count_rows(wanted) == {"bad": 2, "good": 0}

    def test_of_no_entity_are_zero(self):
        metrics = make().evaluate(logits_for([0, 0]), Measured(targets_of([0, 0])))
        assert metrics == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "accuracy": 1.0}
        assert make().count_answers(targets_of([0, 0])) == 1  # of which a share is taken

    def test_report_of_each_type(self):
        wanted = targets_of([NONE, 1, 2, 0, 3], [3, 4, 1, 0, NONE])
        found = logits_for([4, 1, 2, 0, 0], [3, 0, 1, 3, 0])
        bad, good = make().report(found, Measured(wanted), split="test").per_class
        assert vars(bad) == {
            "label": "bad",
            "precision": 1.0,
            "recall": 1.0,
            "f1": 1.0,
            "support": 2,
        }
        assert (good.label, good.precision, good.recall, good.support) == ("good", 0, 0, 2)

    def test_the_only_answer_is_named(self):
        wanted, outside = targets_of([NONE, 0, 1]), logits_for([3, 0, 0])
        assert make().only_answer(outside, Measured(wanted)) == "O"
        assert make().only_answer(logits_for([3, 0, 1]), Measured(wanted)) is None
        assert make().only_answer(outside, Measured(targets_of([NONE, 0, 0]))) is None


class TestAnswers:
    def test_of_an_unfinished_pair_of_tags_are_entities(self, backbone: Path):
        """A model may answer I- without B-, as seqeval reads it."""
        result = run(backbone, epochs=1)
        reader = record_of(result.delta, backbone)
        given = read(reader, backbone, {"tokens": ["w1", "w2", "w3"]})
        logits = logits_for([0, 2, 2, 4, 0])[0].double()
        answer = reader.task.read_answer([logits], given)
        assert answer["tags"] == ["B-bad", "I-bad", "B-good"]
        score = float(logits[1].softmax(-1).max())
        expected = [(0, 5, "bad", "w1 w2"), (6, 8, "good", "w3")]
        for found, (start, end, label, text) in zip(answer["entities"], expected, strict=True):
            assert found == {
                "start": start,
                "end": end,
                "label": label,
                "score": pytest.approx(score),
                "text": text,
            }

    def test_the_score_is_the_mean_over_the_words(self, backbone: Path):
        reader = record_of(run(backbone, epochs=1).delta, backbone)
        given = read(reader, backbone, {"text": "w1 w2"})
        logits = logits_for([0, 1, 2, 0])[0].double()
        logits[2] /= 5
        first, second = (float(each.softmax(-1).max()) for each in logits[1:3])
        answer = reader.task.read_answer([logits], given)
        assert answer["entities"][0]["score"] == pytest.approx((first + second) / 2)
        assert answer["tags"] is None


def record_of(delta: HeadDelta, backbone: Path) -> TaskRecord:
    return TaskRecord.of(delta, tf.AutoConfig.from_pretrained(backbone))


def read(record: TaskRecord, backbone: Path, given: Row) -> Any:
    source = resolve_model(backbone)
    bare = load_bare_backbone(source, device=CPU).model
    (encoded,) = record.load_encoder(source, bare).read([given], truncate=True)
    return encoded


class TestOwnLoop:
    @pytest.mark.parametrize(
        ("labels", "best", "tags", "entities"),
        [
            (["O", "bad", "good"], [1, 1, 2], ["B-bad", "I-bad", "B-good"], ["bad", "good"]),
            (["I-bad", "O"], [0, 0, 1], ["B-bad", "I-bad", "O"], ["bad"]),
            (["B-bad", "O"], [0, 0, 1], ["B-bad", "B-bad", "O"], ["bad", "bad"]),
            (
                ["U-bad", "L-bad", "B-bad", "O", "I-bad"],
                [0, 2, 1],
                ["B-bad", "B-bad", "I-bad"],
                ["bad", "bad"],
            ),
            (["noun", "verb"], [1, 0, 0], ["verb", "noun", "noun"], ["verb", "noun", "noun"]),
        ],
    )
    def test_a_delta_answers_with_labels_that_are_no_pairs(
        self,
        labels: list[str],
        best: list[int],
        tags: list[str],
        entities: list[str],
        backbone: Path,
    ):
        model = tf.AutoModelForTokenClassification.from_pretrained(
            backbone, id2label=dict(enumerate(labels))
        )
        selection = HeadSelection.from_heads([HeadId(0, 1)], num_layers=LAYERS)
        delta = HeadTuner(model.eval(), selection).delta(
            task={"type": "token-classification", "tokens": "tokens", "label": "tags"},
            labels=labels,
        )
        record = record_of(delta, backbone)
        logits = torch.nn.functional.one_hot(torch.tensor([0, *best, 0]), len(labels)) * 9.0
        answer = record.task.read_answer(
            [logits], read(record, backbone, {"tokens": ["w1", "w2", "w3"]})
        )
        assert answer["tags"] == tags
        assert [each["label"] for each in answer["entities"]] == entities


def ready_for(folder: Path, rows: Sequence[Row] = TRAIN, **settings: Any) -> Prepared:
    return prepare(
        resolve_model(folder),
        spec=TaskSpec(type="token-classification"),
        train=list(rows),
        validation=None,
        settings=replace(Hyperparameters(max_length=16, precision="float32"), **settings),
        device=CPU,
    )


def save_tagger(folder: Path, tags: Sequence[str]) -> Path:
    """Save a checkpoint with a task head for these tags."""
    model = tiny_model("bert", num_labels=len(tags), id2label=dict(enumerate(tags)))
    tf.BertForTokenClassification(model.config).save_pretrained(folder)
    special = {"pad_token": "[PAD]", "unk_token": UNKNOWN, "eos_token": END}
    tiny_tokenizer(**special).save_pretrained(folder)
    return folder


class TestKeptHead:
    def test_of_the_same_tags_in_another_order_has_its_rows_moved(self, tmp_path: Path):
        order = ["I-good", "B-bad", "O", "I-bad", "B-good"]
        folder = save_tagger(tmp_path, order)
        ready = ready_for(folder)
        stored = tf.BertForTokenClassification.from_pretrained(folder).classifier
        kept = ready.loaded.model.classifier
        rows = [order.index(tag) for tag in TAGS]
        assert ready.data.task.labels == TAGS
        assert kept.weight.equal(stored.weight[rows])
        assert kept.bias.equal(stored.bias[rows])
        assert ready.warnings == ()

    def test_of_other_tags_is_replaced_with_a_warning(self, tmp_path: Path):
        ready = ready_for(save_tagger(tmp_path, ["O", "B-bad", "I-bad", "B-ugly", "I-ugly"]))
        assert ready.kept_head is None
        assert [warning.code for warning in ready.warnings] == ["task_head_replaced"]

    def test_is_compared_untuned(self, tmp_path: Path):
        result = run(save_tagger(tmp_path, TAGS[::-1]), epochs=1)
        assert result.yardsticks.keys() == {"majority", "probe", "untuned"}


class TestFinetune:
    def test_windows_of_long_rows_learn_as_well(self, backbone: Path):
        """Rows of more tokens than a window: entities are counted once, and all are found."""
        rows = [
            {
                name: [entry for row in TRAIN[place : place + 4] for entry in row[name]]
                for name in row
            }
            for place, row in enumerate(TRAIN)
        ]
        settings = {"max_length": 10, "epochs": 8, "learning_rate": 5e-3}
        result = run(backbone, train=rows[:24], validation=rows[24:], **settings)
        assert result.metrics["f1"] > 0.9
        task = make(rows)
        dataset = load_split(rows[24:], split="validation")
        spans = task.targets(dataset, split="validation")
        assert sum(scores.support for scores in result.report.per_class) == len(spans)

    def test_stopped_and_resumed_has_the_same_bytes(self, backbone: Path, tmp_path: Path):
        whole, checkpoints = file_of(run(backbone), tmp_path), tmp_path / "checkpoints"
        for step in (1, 5):
            with pytest.raises(JobPaused):
                run(
                    backbone,
                    checkpoint_dir=checkpoints,
                    on_event=stop_at("step", step, Control.PAUSE),
                )
        assert file_of(run(backbone, checkpoint_dir=checkpoints), tmp_path) == whole

    def test_in_bfloat16(self, backbone: Path):
        result = run(backbone, precision="bfloat16", epochs=6, learning_rate=5e-3)
        assert result.delta.metadata.compute_dtype == "bfloat16"
        assert result.metrics["f1"] > 0.8

    def test_words_with_a_class_each(self, backbone: Path):
        rows = parts_of_speech(24)
        settings = {"epochs": 8, "learning_rate": 5e-3}
        result = run(backbone, train=rows, validation=rows[:9], **settings)
        assert result.metrics["accuracy"] == result.metrics["f1"] == 1.0
        assert result.delta.metadata.labels == ["noun", "verb"]
        record = record_of(result.delta, backbone)
        given = read(record, backbone, {"tokens": ["w1", "w2"]})
        logits = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [0.0, 0.0]])
        assert record.task.read_answer([logits], given)["tags"] == ["noun", "verb"]

    def test_a_word_that_is_not_read_has_no_class_of_its_own(self):
        task = TokenClassification(
            inputs=("tokens",), label="tags", classes=("noun", "verb"), metric="accuracy"
        )
        units = WordUnits(np.array([0, 1]), np.array([0, 4]), np.array([1, 5]))
        words, places = ["a", "b", "c"], np.array([0, 1])
        given = WindowedText(
            windows=(Sample({}, {}, 2),), text="a b c", words=words, units=units, places=(places,)
        )
        answer = task.read_answer([torch.tensor([[9.0, 0.0], [0.0, 9.0]])], given)
        assert answer["tags"] == ["noun", None, "verb"]

    @pytest.mark.parametrize("name", ["modernbert", "deberta-v3", "gpt2"])
    def test_models_with_other_task_heads(self, name: str, tmp_path: Path):
        """ModernBERT's has a hidden layer, which reads every token."""
        tiny_model(name).base_model.save_pretrained(tmp_path)
        pad = {} if name == "gpt2" else {"pad_token": "[PAD]"}
        tiny_tokenizer(unk_token=UNKNOWN, eos_token=END, **pad).save_pretrained(tmp_path)
        result = run(tmp_path, epochs=1, max_length=6)
        assert result.yardsticks["probe"]["f1"] > 0.6
