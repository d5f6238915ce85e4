"""hifi.training.finetuning: from data to a head delta, the same bytes after any interruption."""

from __future__ import annotations

import math
import random
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf

import hifi
from hifi import finetune
from hifi.backbones import devices
from hifi.backbones.heads import HeadId, describe, task_head_names
from hifi.backbones.models import resolve_model
from hifi.data.settings import Hyperparameters
from hifi.data.splits import load_split
from hifi.data.training_defaults import LEAST_STEPS, choose_learning_rate
from hifi.deltas.delta import HeadDelta
from hifi.errors import (
    BackboneMismatchError,
    CheckpointError,
    DataError,
    InvalidArgumentError,
    JobPaused,
    ModelError,
    TaskNotSupportedError,
)
from hifi.selection.head_selection import HeadSelection
from hifi.selection.scoring import select_heads
from hifi.tasks import TaskSpec
from hifi.tasks.probe import TRIES
from hifi.training import finetuning, preparation
from hifi.training.events import Control, TrainingEvent
from hifi.training.finetuning import FinetuneResult
from hifi.training.preparation import calibration_batches, prepare
from hifi.training.schedule import MOST_EVALUATIONS
from tests.architectures import ARCHITECTURES, HIDDEN, NAMES, heads_per_layer
from tests.tiny_runs import STEPS, TRAIN, VALIDATION, file_of, record, run, stop_at
from tests.tiny_tasks import (
    SPECIAL,
    image_rows,
    save_image_model,
    save_text_model,
    text_rows,
    tiny_tokenizer,
    write_jsonl,
)


class TestResult:
    def test_holds_what_was_tuned(self, bert: Path):
        result = run(bert, metric="f1")
        assert result.delta.heads == result.selection.heads
        assert len(result.selection.heads) == 3
        assert set(result.delta.task_head) == {"classifier.weight", "classifier.bias"}
        assert set(result.metrics) == {"accuracy", "f1", "matthews", "loss"}
        assert result.best_step in (3, 6)
        assert min(result.train_seconds, result.selection_seconds, result.samples_per_second) > 0

    @pytest.mark.parametrize("name", ["gpt2", "qwen3"])
    def test_counts_the_trained_weights_and_their_share(self, name: str, tmp_path: Path):
        result = run(save_text_model(tmp_path, name))
        tensors = (*result.delta.rows.values(), *result.delta.task_head.values())
        assert result.trainable_parameters == sum(tensor.numel() for tensor in tensors)
        model = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert result.fraction == result.trainable_parameters / model.num_parameters()

    def test_learns(self, bert: Path):
        rows = [{"text": "w1 w2", "label": 0}, {"text": "w31 w32", "label": 1}] * 8
        losses = []

        def on_event(event: TrainingEvent) -> None:
            if event.kind == "evaluated":
                losses.append(event.metrics["loss"])

        settings = {"epochs": 20, "learning_rate": 3e-2, "on_event": on_event}
        result = run(bert, train=rows, validation=rows, **settings)
        assert result.metrics["accuracy"] == 1.0
        assert losses[-1] < losses[0] / 3

    def test_the_metrics_are_those_of_the_delta(self, bert: Path, tmp_path: Path):
        result = run(bert, epochs=4, learning_rate=3e-2)
        result.delta.save(tmp_path / "delta.safetensors")
        model = tf.AutoModelForSequenceClassification.from_pretrained(bert)
        HeadDelta.load(tmp_path / "delta.safetensors").merge(model)
        tokenizer = tiny_tokenizer(pad_token=SPECIAL[0])
        texts = [row["text"] for row in VALIDATION]
        batch = tokenizer(texts, padding=True, truncation=True, max_length=16, return_tensors="pt")
        with torch.no_grad():
            logits = model.eval()(**batch).logits
        targets = torch.tensor([row["label"] for row in VALIDATION])
        loss = torch.nn.functional.cross_entropy(logits, targets)
        accuracy = (logits.argmax(-1) == targets).double().mean()
        assert result.metrics["loss"] == pytest.approx(loss.item(), rel=1e-4)
        assert result.metrics["accuracy"] == pytest.approx(accuracy.item())

    def test_the_delta_says_what_a_prediction_needs(self, bert: Path):
        rows = text_rows(12, labels=("no", "yes"), pair=True)
        metadata = run(bert, train=rows, validation=rows, metric="matthews").delta.metadata
        assert metadata.model == "tiny-bert"
        assert (metadata.revision, metadata.architecture) == (None, "bert")
        assert metadata.compute_dtype == "float32"
        assert tuple(metadata.labels or ()) == ("no", "yes")
        assert dict(metadata.task or {}) == {
            "type": "classification",
            "text": ["first", "second"],
            "label": "label",
            "metric": "matthews",
            "num_labels": 2,
            "problem_type": "single_label_classification",
            "max_length": 16,
            "pad_token": "[PAD]",
            "pad_token_id": 0,
            "padding_side": "right",
        }
        assert metadata.training["learning_rate"] == 3e-4
        assert set(metadata.training) == {
            *("epochs", "learning_rate", "batch_size", "max_length", "warmup_ratio"),
            *("weight_decay", "seed", "precision", "early_stopping_patience", "head_start"),
            "class_weights",
        }

    def test_no_path_and_no_time_is_in_the_file(self, bert: Path, undisturbed: bytes):
        assert str(bert.parent).encode() not in undisturbed
        assert b"seconds" not in undisturbed

    def test_the_callers_random_state_is_left_alone(self, bert: Path):
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002 - the legacy state is what a caller may rely on
        torch.manual_seed(1)
        states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())  # noqa: NPY002
        run(bert)
        assert random.getstate() == states[0]
        assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
        assert torch.get_rng_state().equal(states[2])

    def test_is_exported(self):
        assert hifi.finetune is finetuning.finetune
        assert hifi.FinetuneResult is FinetuneResult
        assert hifi.Control is Control


class TestArchitectures:
    @pytest.mark.parametrize("name", NAMES)
    def test_each_is_tuned(self, name: str, tmp_path: Path):
        image = ARCHITECTURES[name].image
        folder = tmp_path / name
        rows = image_rows(8) if image else text_rows(8)
        save_image_model(folder, name) if image else save_text_model(folder, name)
        settings = {"epochs": 1, "batch_size": 4, "k": heads_per_layer(name), "n_samples": None}
        result = run(folder, train=rows, validation=None, **settings)
        assert len(result.delta.heads) == 3 * heads_per_layer(name)
        kind = (
            tf.AutoModelForImageClassification if image else tf.AutoModelForSequenceClassification
        )
        model = kind.from_pretrained(folder)
        assert set(result.delta.task_head) == set(task_head_names(model))
        rows_before = result.delta.base or {}
        moved = [key for key, row in result.delta.rows.items() if not row.equal(rows_before[key])]
        assert any(".value." in key for key in moved)
        assert result.delta.metadata.architecture == describe(model).architecture

    def test_a_missing_pooler_is_trained_and_stored(self, tmp_path: Path):
        folder = save_text_model(tmp_path / "model")
        model = tf.BertModel.from_pretrained(folder, add_pooling_layer=False)
        model.save_pretrained(folder)
        head = run(folder).delta.task_head
        assert {"bert.pooler.dense.weight", "bert.pooler.dense.bias"} < set(head)


class TestTasks:
    def test_regression(self, bert: Path):
        words = {"w1 w2": 0.0, "w31 w32": 1.0, "w51 w52": 0.2}
        rows = [{"text": text, "label": value} for text, value in words.items()] * 8
        settings = {"epochs": 20, "learning_rate": 3e-2, "metric": "spearman"}
        result = run(bert, train=rows, validation=rows, **settings)
        assert set(result.metrics) == {"pearson", "spearman", "loss"}
        assert result.metrics["spearman"] > 0.9
        assert result.delta.metadata.labels is None
        assert result.delta.task_head["classifier.weight"].shape[0] == 1

    def test_three_classes(self, bert: Path):
        result = run(bert, train=text_rows(12, labels="abc"), validation=text_rows(6, labels="abc"))
        assert result.delta.task_head["classifier.weight"].shape[0] == 3

    def test_images(self, tmp_path: Path):
        folder = save_image_model(tmp_path / "vit")
        rows = image_rows(16)
        result = run(folder, train=rows, validation=rows, epochs=5, learning_rate=3e-2)
        assert result.metrics["accuracy"] == 1.0
        assert result.delta.metadata.task is not None
        assert result.delta.metadata.task["image"] == "image"

    def test_a_file_and_rows_in_memory_are_the_same(
        self, bert: Path, undisturbed: bytes, tmp_path: Path
    ):
        train = write_jsonl(tmp_path / "train.jsonl", TRAIN)
        validation = write_jsonl(tmp_path / "validation.jsonl", VALIDATION)
        task = {"type": "classification", "text": ["text"], "label": "label", "metric": "accuracy"}
        result = run(bert, train=str(train), validation=validation, task=task)
        assert file_of(result, tmp_path) == undisturbed

    def test_without_validation_the_last_step_is_kept(self, bert: Path):
        result = run(bert, validation=None)
        assert (result.metrics, result.best_step) == ({}, STEPS)


class TestSelection:
    def test_given_heads_are_tuned_and_nothing_is_scored(self, bert: Path):
        heard: list[TrainingEvent] = []
        chosen = HeadSelection.from_heads([HeadId(0, 3), HeadId(2, 1)], num_layers=3)
        result = run(bert, selection=chosen, on_event=record(heard))
        assert result.delta.heads == (HeadId(0, 3), HeadId(2, 1))
        assert "selecting" not in {event.kind for event in heard}

    def test_records_its_backbone_and_suits_no_other(self, bert: Path, tmp_path: Path):
        selection = run(bert, epochs=1).selection
        assert selection.fingerprint == run(bert, selection=selection).delta.metadata.fingerprint
        other = save_text_model(tmp_path / "other", seed=1)
        with pytest.raises(BackboneMismatchError, match=r"that of other is sha256:"):
            run(other, selection=selection)
        run(other, selection=replace(selection, fingerprint=None), epochs=1)

    def test_settings_reach_the_scores(self, bert: Path):
        settings = {"k": 2, "xi": 0.5, "damping": 0.7, "strategy": "mid-top"}
        selection = run(bert, **settings).selection
        assert (selection.k, selection.xi, selection.damping) == (2, 0.5, 0.7)
        assert (selection.strategy, selection.teleport) == ("mid-top", "information")
        assert {head.layer for head in selection.heads} == {2}
        assert selection.n_samples == 10

    @pytest.mark.parametrize("name", ["bert", "modernbert", "gpt2", "llama", "deberta-v3"])
    def test_a_gradient_is_that_of_the_tasks_loss(self, name: str, tmp_path: Path):
        path = save_text_model(tmp_path, name)
        settings = {"score": "gradient", "k": None, "strategy": "budget", "budget": 3}
        result = run(path, **settings, epochs=1)
        selection = result.selection
        assert (selection.score, selection.budget, selection.k) == ("gradient", 3, None)
        values = torch.stack([layer.values for layer in selection.layers])
        assert len(result.delta.heads) == 3
        assert sorted(values[head.layer, head.head] for head in selection.heads) == sorted(
            values.flatten().topk(3).values
        )
        ready = prepare(
            resolve_model(path),
            spec=TaskSpec.of(None),
            train=TRAIN,
            validation=None,
            settings=Hyperparameters(batch_size=8, max_length=16, precision="float32"),
            device=torch.device("cpu"),
        )
        drawn = calibration_batches(ready, n=10, settings=Hyperparameters(batch_size=8))
        labelled = [
            {("labels" if key == "targets" else key): value for key, value in batch.items()}
            for batch in drawn
        ]
        own = select_heads(ready.loaded.model, labelled, k=1, score="gradient")
        for layer, expected in zip(selection.layers, own.layers, strict=True):
            torch.testing.assert_close(layer.values, expected.values, rtol=1e-4, atol=1e-12)

    def test_a_regression_has_a_gradient_too(self, bert: Path):
        rows = [{"text": row["text"], "label": 0.25 * n} for n, row in enumerate(TRAIN)]
        selection = run(
            bert, train=rows, validation=None, task="regression", score="gradient-ratio", epochs=1
        ).selection
        assert all(bool((layer.values > 0).any()) for layer in selection.layers)

    def test_random_heads_follow_the_seed_of_the_run(self, bert: Path):
        draws = [run(bert, score="random", seed=seed, epochs=1).selection for seed in (0, 0, 1)]
        values = [draw.layers[0].values for draw in draws]
        assert values[0].equal(values[1])
        assert not values[0].equal(values[2])

    @pytest.mark.parametrize("precision", ["bfloat16", "auto"])
    def test_a_gradient_of_a_narrow_run_is_computed_in_float32(
        self, precision: str, bert: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(devices, "_has_native_bfloat16", lambda _: True)
        seen: list[torch.dtype] = []

        def select(model, *arguments, **named):
            seen.append(model.dtype)
            return select_heads(model, *arguments, **named)

        monkeypatch.setattr(finetuning, "select_heads", select)
        result = run(bert, score="gradient", precision=precision, epochs=1)
        metadata = result.delta.metadata
        assert (result.selection.score, metadata.compute_dtype) == ("gradient", "bfloat16")
        assert metadata.training["precision"] == precision
        run(bert, precision=precision, epochs=1)
        assert seen == [torch.float32, torch.bfloat16]  # the paper's numbers need no gradient

    def test_a_gradient_of_images_is_computed_in_a_narrow_run(self, tmp_path: Path):
        settings = {"score": "gradient", "precision": "bfloat16", "epochs": 1, "validation": None}
        result = run(save_image_model(tmp_path), train=image_rows(16), **settings)
        assert all(bool((layer.values > 0).any()) for layer in result.selection.layers)

    def test_the_calibration_samples_depend_on_the_seed(self, bert: Path):
        scores = [run(bert, seed=seed, epochs=1).selection.layers[0] for seed in (0, 0, 1)]
        richness = [layer.correlation for layer in scores]
        assert richness[0].equal(richness[1])
        assert not richness[0].equal(richness[2])

    def test_by_default_all_rows_of_a_small_split_are_scored(self, bert: Path):
        assert run(bert, n_samples=None, epochs=1).selection.n_samples == len(TRAIN)

    def test_more_samples_than_there_are_are_refused(self, bert: Path):
        with pytest.raises(InvalidArgumentError, match=r"n_samples=25.*24 rows of train"):
            run(bert, n_samples=25)

    def test_a_budget_of_more_heads_than_there_are_is_refused(self, bert: Path):
        with pytest.raises(InvalidArgumentError, match=r"budget=13.*12 heads of the model"):
            run(bert, k=None, strategy="budget", budget=13)

    def test_a_model_of_one_layer_has_no_upper_half(self, tmp_path: Path):
        model = save_text_model(tmp_path / "one", num_hidden_layers=1)
        with pytest.raises(InvalidArgumentError, match=r"strategy='mid-top'.*two layers or more"):
            run(model, strategy="mid-top")

    def test_more_heads_than_a_layer_has_are_refused(self, bert: Path):
        with pytest.raises(InvalidArgumentError, match=r"k=5.*4 heads of a layer"):
            run(bert, k=5)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *(("k", value) for value in (0, 1.5)),
            *(("n_samples", value) for value in (0, -1, 2.5, True)),
            *(("xi", value) for value in (1.0, math.nan, "0.9")),
            *(("damping", value) for value in (1.0, math.nan, None)),
            *(("strategy", value) for value in ("top", {"mid-top"})),
            *(("score", value) for value in ("best", {"gradient"}, None)),
            *(("budget", value) for value in (0, 2.5, 3)),  # with k=1
            *(("teleport", value) for value in ("x", {"uniform"})),
            *(("preset", value) for value in ("papers", {"paper"})),
            *(("learning_rate", value) for value in ("fast", 0, None)),
            ("selection", {}),
            ("checkpoint_seconds", "60"),
            ("checkpoint_dir", 5),
            *(("class_weights", value) for value in ("even", {}, {"0": 0}, {0: 1, "0": 1})),
        ],
    )
    def test_invalid_settings_are_refused_before_a_model_is_loaded(
        self, bert: Path, name: str, value
    ):
        heard: list[TrainingEvent] = []
        with pytest.raises(InvalidArgumentError) as caught:
            run(bert, **{name: value, "on_event": record(heard)})
        assert caught.value.param == name
        assert heard == []

    def test_xi_without_influence_is_warned_of_only_if_given(self, bert: Path):
        with pytest.warns(UserWarning, match=r"xi=0.9 has no influence"):
            run(bert, teleport="uniform", xi=0.9, epochs=1)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="xi=")
            run(bert, teleport="uniform", epochs=1)


class TestDefaults:
    def test_few_rows_are_trained_for_enough_steps(self, bert: Path):
        heard: list[TrainingEvent] = []
        named = {"model": bert, "train": TRAIN, "validation": VALIDATION, "max_length": 16}
        result = finetune(**named, precision="float32", on_event=record(heard))
        training = result.delta.metadata.training
        assert training["epochs"] == LEAST_STEPS  # of one step each
        assert training["learning_rate"] == choose_learning_rate(hidden_size=HIDDEN)
        steps = [event for event in heard if event.kind == "step"]
        assert len(steps) == LEAST_STEPS
        peak = max(event.learning_rate or 0 for event in steps)
        assert peak == pytest.approx(training["learning_rate"])
        evaluated = [event.step for event in heard if event.kind == "evaluated"]
        assert len(evaluated) == 1 + MOST_EVALUATIONS  # the start, too
        assert (evaluated[0], evaluated[-1]) == (0, LEAST_STEPS)

    def test_the_preset_of_the_paper_is_its_settings(self, bert: Path, tmp_path: Path):
        left_open = {"k": None, "epochs": None, "learning_rate": "auto", "n_samples": None}
        preset = run(bert, **left_open, preset="paper")
        paper = {"score": "pagerank", "strategy": "layer-wise", "k": 3, "xi": 0.9, "damping": 0.85}
        paper |= {"head_start": "random", "epochs": 3, "learning_rate": 2e-4, "n_samples": 24}
        assert file_of(preset, tmp_path) == file_of(run(bert, **paper), tmp_path)

    def test_what_is_given_stands_beside_a_preset(self, bert: Path):
        result = run(bert, preset="paper", k=2)
        training = result.delta.metadata.training
        assert (result.selection.k, training["epochs"], training["learning_rate"]) == (2, 2, 3e-4)
        assert training["head_start"] == "random"


class TestReproducible:
    def test_equal_calls_give_equal_bytes(self, bert: Path, undisturbed: bytes, tmp_path: Path):
        torch.manual_seed(99)
        assert file_of(run(bert), tmp_path) == undisturbed

    def test_numbers_of_numpy_are_numbers(self, bert: Path, undisturbed: bytes, tmp_path: Path):
        counts = {"k": 1, "epochs": 2, "batch_size": 8, "max_length": 16, "n_samples": 10}
        arguments = {name: np.int64(count) for name, count in counts.items()}
        arguments |= {"seed": np.int32(0), "weight_decay": np.float64(0.01), "xi": np.float64(0.9)}
        assert file_of(run(bert, **arguments), tmp_path) == undisturbed

    @pytest.mark.parametrize(
        "change", [{"seed": 1}, {"learning_rate": 1e-3}, {"weight_decay": 0.5}, {"warmup_ratio": 1}]
    )
    def test_every_setting_counts(
        self, bert: Path, undisturbed: bytes, change: dict, tmp_path: Path
    ):
        assert file_of(run(bert, **change), tmp_path) != undisturbed

    def test_class_weights_count_by_label(self, bert: Path, undisturbed: bytes, tmp_path: Path):
        given = run(bert, class_weights={1: 3, 0: 0.5})
        assert given.delta.metadata.training["class_weights"] == {"0": 0.5, "1": 3.0}
        again = run(bert, class_weights={"0": 0.5, "1": np.float32(3)})
        assert file_of(given, tmp_path) == file_of(again, tmp_path) != undisturbed
        balanced = run(bert, class_weights="balanced").delta
        assert balanced.metadata.training["class_weights"] == "balanced"
        plain = HeadDelta.load(_written(undisturbed, tmp_path))
        # Both classes have as many rows, so their balanced weights are 1.
        for key, row in balanced.rows.items():
            torch.testing.assert_close(row, plain.rows[key], rtol=1e-4, atol=1e-6)

    def test_a_resumed_run_with_class_weights_is_exact(self, bert: Path, tmp_path: Path):
        settings = {"class_weights": {0: 1, 1: 3}, "checkpoint_dir": tmp_path / "c"}
        with pytest.raises(JobPaused):
            run(bert, **settings, on_event=stop_at("step", 2, Control.PAUSE))
        with pytest.raises(CheckpointError, match=r'class_weights \{"0":1.0,"1":3.0\}, not null'):
            run(bert, **{**settings, "class_weights": None})
        with pytest.raises(CheckpointError, match=r'"1":3.0\}, not \{"1":2.0\}'):
            run(bert, **{**settings, "class_weights": {1: 2}})
        resumed = run(bert, **settings)
        whole = run(bert, class_weights={0: 1, 1: 3})
        assert file_of(resumed, tmp_path) == file_of(whole, tmp_path)

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_in_each_precision(self, bert: Path, precision: str, tmp_path: Path):
        first, second = (run(bert, precision=precision) for _ in range(2))
        assert first.delta.metadata.compute_dtype == precision
        assert file_of(first, tmp_path) == file_of(second, tmp_path)
        assert all(row.dtype == torch.float32 for row in first.delta.rows.values())
        fingerprint = first.delta.metadata.fingerprint
        assert fingerprint == run(bert, precision="float32").delta.metadata.fingerprint


def _written(content: bytes, folder: Path) -> Path:
    path = folder / "written.safetensors"
    path.write_bytes(content)
    return path


class TestEvents:
    def test_come_in_order(self, bert: Path):
        heard: list[TrainingEvent] = []
        probing_steps = 3 + TRIES + 2  # batches of train, tries of the fit, batches of validation
        result = run(bert, on_event=record(heard))
        assert [event.number for event in heard] == list(range(1, len(heard) + 1))
        kinds = [event.kind for event in heard]
        assert kinds == [
            "loading",
            "loaded",
            *["probing"] * probing_steps,
            "yardsticks",
            *["selecting"] * 2,
            "selected",
            *["evaluating", "evaluating", "evaluated"],
            *(["step"] * 3 + ["evaluating"] * 2 + ["evaluated"]) * 2,
            "finished",
        ]
        steps = [event for event in heard if event.kind == "step"]
        assert [event.step for event in steps] == list(range(1, 7))
        assert {event.total_steps for event in steps} == {6}
        assert [event.epoch for event in steps] == pytest.approx([step / 3 for step in range(1, 7)])
        assert all(event.loss and event.learning_rate and event.message for event in steps)
        assert steps[-1].eta_seconds == 0
        assert [event.step for event in heard if event.kind == "selecting"] == [8, 10]
        probing = [event for event in heard if event.kind == "probing"]
        assert [(event.step, event.total_steps) for event in probing] == [
            (step, probing_steps) for step in range(1, probing_steps + 1)
        ]
        compared = next(event for event in heard if event.kind == "yardsticks")
        assert compared.yardsticks == result.yardsticks
        assert compared.message.startswith("the task head starts from the model's own weights; ")
        chosen = next(event for event in heard if event.kind == "selected")
        assert chosen.selection is not None
        assert chosen.selection.heads == result.selection.heads
        assert chosen.trainable_parameters == result.trainable_parameters
        assert chosen.fraction == result.fraction
        assert chosen.head_dim == describe(tf.AutoModel.from_pretrained(bert)).head_dim
        assert heard[-1].metrics == result.metrics

    def test_an_unknown_answer_is_refused(self, bert: Path):
        with pytest.raises(InvalidArgumentError, match="Control"):
            run(bert, on_event=lambda _: "pause")


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "error", "named"),
        [
            ({"label": "lable"}, DataError, "no such column; the columns are: 'text', 'label'"),
            ({"train": [*TRAIN, {"text": "", "label": 0}]}, DataError, "row 25, column 'text'"),
            ({"train": [*TRAIN, {"text": "a", "label": None}]}, DataError, "row 25.*missing"),
            ({"train": [r for r in TRAIN if r["label"]]}, DataError, "at least two classes"),
            ({"train": [{"text": 5, "label": 1}]}, DataError, "text"),
            ({"train": "nowhere.csv"}, DataError, "does not exist"),
            (
                {"validation": [{"text": "a", "label": 2}]},
                DataError,
                "validation, row 1, column 'label': the label 2 does not occur",
            ),
            ({"validation": [{"words": "a", "label": 1}]}, DataError, "validation, column 'text'"),
            ({"validation": []}, DataError, "validation: there are no rows"),
            (
                {"train": [{"text": "a", "label": 0.5}, {"text": "b", "label": float("nan")}]},
                DataError,
                "row 2, column 'label'",
            ),
            ({"task": "causal-lm"}, TaskNotSupportedError, "not supported yet"),
            ({"metric": "bleu"}, InvalidArgumentError, "accuracy, f1, matthews"),
            ({"max_length": 65}, InvalidArgumentError, "tiny-bert reads 64 tokens"),
            ({"epochs": 0}, InvalidArgumentError, "epochs=0"),
            (
                {"early_stopping_patience": 1, "validation": None},
                InvalidArgumentError,
                "early_stopping_patience=1 .*only with a validation split",
            ),
            ({"checkpoint_seconds": -1}, InvalidArgumentError, "checkpoint_seconds=-1"),
            ({"device": "tpu"}, InvalidArgumentError, "device='tpu'"),
            ({"precision": "int8"}, InvalidArgumentError, "precision='int8'"),
            ({"model": "no/such-model"}, ModelError, "no/such-model"),
        ],
    )
    def test_is_refused_by_name(self, change: dict, error: type, named: str, bert: Path):
        with pytest.raises(error, match=named):
            run(bert, **change)

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"class_weights": {2: 1.0}}, r"class_weights=\{'2': 1.0\} .* known are '0', '1'"),
            (
                {"class_weights": "balanced", "task": "regression"},
                "class_weights='balanced' .* and regression does not",
            ),
        ],
    )
    def test_class_weights_are_refused_before_a_model_is_loaded(
        self, change: dict, named: str, bert: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(preparation, "load_for_task", None)
        with pytest.raises(InvalidArgumentError, match=named) as caught:
            run(bert, **change)
        assert caught.value.param == "class_weights"

    def test_nothing_is_written_for_it(self, bert: Path, tmp_path: Path):
        with pytest.raises(DataError):
            run(bert, validation=[], checkpoint_dir=tmp_path / "checkpoints")
        assert list(tmp_path.iterdir()) == []

    def test_a_ragged_csv_names_its_row(self, bert: Path, tmp_path: Path):
        path = tmp_path / "train.csv"
        path.write_text("text,label\nw1,1\nw2\n", encoding="utf-8")
        with pytest.raises(DataError, match=r"train, row 2 \(line 3\): 1 fields, the header has 2"):
            run(bert, train=path)


class TestRealData:
    def test_digits_are_learnt_by_a_model_of_other_pictures(self, test_data: Path):
        splits = {
            name: load_split(test_data / "data" / "mnist" / f"{name}.parquet", split=name)
            for name in ("train", "validation")
        }
        result = finetune(
            model=test_data / "models" / "vit-cifar10-4L4H64",
            train=splits["train"].select(range(800)),
            validation=splits["validation"].select(range(300)),
            k=2,
            epochs=2,
            learning_rate=5e-3,
            n_samples=64,
        )
        assert result.metrics["accuracy"] > 0.6
        assert result.delta.metadata.labels is not None
        assert "".join(map(str, result.delta.metadata.labels)) == "0123456789"


@pytest.mark.gpu
class TestCuda:
    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_equal_calls_and_resumed_ones_give_equal_bytes(
        self, precision: str, bert: Path, tmp_path: Path
    ):
        settings = {"device": "cuda", "precision": precision}
        whole = file_of(run(bert, **settings), tmp_path)
        assert file_of(run(bert, **settings), tmp_path) == whole
        with pytest.raises(JobPaused):
            run(
                bert,
                **settings,
                checkpoint_dir=tmp_path / "c",
                on_event=stop_at("step", 4, Control.PAUSE),
            )
        assert file_of(run(bert, **settings, checkpoint_dir=tmp_path / "c"), tmp_path) == whole

    def test_the_callers_random_state_is_left_alone(self, bert: Path):
        before = torch.cuda.get_rng_state()
        run(bert, device="cuda")
        assert torch.cuda.get_rng_state().equal(before)
        assert not torch.are_deterministic_algorithms_enabled()
