"""hifi.training.trainer: results of a plain loop, frozen bits, modules in training mode."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hifi.backbones.heads import HeadId
from hifi.backbones.models import resolve_model
from hifi.data.settings import Hyperparameters
from hifi.errors import HifiError, InvalidArgumentError, JobPaused, TrainingDivergedError
from hifi.selection.head_selection import HeadSelection
from hifi.tasks import TaskSpec
from hifi.training.batching import TrainingBatches
from hifi.training.checkpoint import Checkpoint
from hifi.training.events import Emitter, OnEvent, TrainingEvent
from hifi.training.preparation import Prepared, prepare
from hifi.training.trainer import CheckpointPlan, Outcome, Trainer
from hifi.tuning.tuner import HeadTuner
from tests.tiny_tasks import save_text_model, text_rows

SETTINGS = Hyperparameters(
    epochs=2, batch_size=8, max_length=16, learning_rate=1e-2, precision="float32"
)
CHOSEN = HeadSelection.from_heads([HeadId(0, 1), HeadId(1, 3), HeadId(2, 0)], num_layers=3)
UNEVEN = text_rows(24, seed=1, labels=(0, 0, 1))  # 16 and 8
START = Checkpoint(job={}, selection=CHOSEN, step=0, head_origin="random", parameters={})


def ready(folder: Path, *, rows=None, settings: Hyperparameters = SETTINGS, **config) -> Prepared:
    save_text_model(folder, config.pop("name", "bert"), **config)
    return prepare(
        resolve_model(folder),
        spec=TaskSpec(),
        train=rows or text_rows(24, seed=1),
        validation=rows or text_rows(12, seed=2),
        settings=settings,
        device=torch.device("cpu"),
    )


def trainer(
    prepared: Prepared,
    tuner: HeadTuner,
    *,
    settings: Hyperparameters = SETTINGS,
    validate: bool = True,
    on_event: OnEvent | None = None,
    plan: CheckpointPlan | None = None,
) -> Trainer:
    return Trainer(
        tuner,
        data=prepared.data if validate else replace(prepared.data, validation=None),
        settings=settings,
        start=START,
        plan=plan or CheckpointPlan(),
        emitter=Emitter(on_event),
    )


def train(prepared: Prepared, **arguments) -> tuple[HeadTuner, Outcome]:
    tuner = HeadTuner(prepared.loaded.model, CHOSEN)
    return tuner, trainer(prepared, tuner, **arguments).run()


def values(parameters) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in parameters}


class TestSteps:
    @pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2"])
    def test_are_those_of_a_plain_loop(self, name: str, tmp_path: Path):
        config = {"seq_classif_dropout": 0.0} if name == "distilbert" else {}
        config |= {"classifier_dropout": 0.0} if name == "bert" else {}
        prepared = ready(tmp_path / "one", name=name, **config)
        tuner, outcome = train(prepared, validate=False)
        reference = ready(tmp_path / "two", name=name, **config)
        expected = plain_loop(reference)
        assert outcome.best_step == 6
        for key, value in values(tuner.named_parameters()).items():
            # Adam makes whole steps of small gradients: a key's bias has none but rounding, and
            # another processor's rounding moves a weight by a thousandth of a step.
            if not key.endswith("tuned_bias"):
                torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-4, msg=key)

    def test_weigh_the_classes(self, tmp_path: Path):
        settings = replace(SETTINGS, class_weights={"0": 1.0, "1": 4.0})
        prepared = ready(tmp_path / "one", rows=UNEVEN, settings=settings, name="gpt2")
        tuner, _ = train(prepared, settings=settings, validate=False)
        reference = ready(tmp_path / "two", rows=UNEVEN, name="gpt2")
        expected = plain_loop(reference, weights=(0.5, 2.0))  # their mean over the rows is 1
        for key, value in values(tuner.named_parameters()).items():
            if not key.endswith("tuned_bias"):
                torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5, msg=key)

    def test_of_weighted_classes_are_evaluated_without_weights(self, tmp_path: Path):
        settings = replace(SETTINGS, class_weights={"0": 1.0, "1": 4.0}, epochs=1)
        prepared = ready(tmp_path, rows=UNEVEN, settings=settings)
        tuner, outcome = train(prepared, settings=settings)
        batch = prepared.data.train.batch(np.arange(24))
        with torch.no_grad():
            logits = tuner.model.eval()(**batch.inputs).logits
        loss = nn.functional.cross_entropy(logits, batch.targets)
        assert outcome.metrics["loss"] == pytest.approx(loss.item(), rel=1e-4)

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_leave_every_frozen_bit_alone(self, precision, tmp_path: Path):
        settings = replace(SETTINGS, precision=precision, weight_decay=0.5)
        prepared = ready(tmp_path, settings=settings)
        before = values(prepared.loaded.model.named_parameters())
        tuner, _ = train(prepared, settings=settings)
        tuned = {key.removesuffix(".weight") for key in before if key.endswith(".weight")}
        trained = {key.rpartition(".")[0] for key, _ in tuner.named_parameters()}
        after = values(tuner.detach().named_parameters())
        frozen = [key for key in before if key.rpartition(".")[0] in tuned - trained]
        assert len(frozen) > 20
        assert all(after[key].equal(before[key]) for key in frozen)

    def test_decay_matrices_alone(self, tmp_path: Path):
        moved = {}
        for decay in (0.0, 0.9):
            settings = replace(SETTINGS, weight_decay=decay, epochs=1, batch_size=24)
            tuner, _ = train(ready(tmp_path / str(decay), settings=settings), settings=settings)
            moved[decay] = values(tuner.named_parameters())
        for name, value in moved[0.0].items():
            assert value.equal(moved[0.9][name]) == (value.dim() == 1), name

    def test_a_loss_that_is_not_finite_is_named_with_its_step(self, tmp_path: Path):
        settings = replace(SETTINGS, learning_rate=1e30)
        with pytest.raises(TrainingDivergedError, match=r"loss at step \d is (nan|inf).*lower"):
            train(ready(tmp_path, settings=settings), settings=settings)
        assert issubclass(TrainingDivergedError, HifiError)

    def test_a_validation_loss_that_is_not_finite_is_named_too(self, tmp_path: Path):
        settings = replace(SETTINGS, learning_rate=1e39, epochs=1, batch_size=24)  # one step
        with pytest.raises(TrainingDivergedError, match=r"the validation loss at step 1 is nan"):
            train(ready(tmp_path, settings=settings), settings=settings)

    def test_a_last_step_that_ruins_the_weights_is_seen_without_validation(self, tmp_path: Path):
        settings = replace(SETTINGS, learning_rate=1e39, epochs=1, batch_size=24)
        with pytest.raises(TrainingDivergedError, match=r"after step 1 .*query\S* is not finite"):
            train(ready(tmp_path, settings=settings), settings=settings, validate=False)


def plain_loop(prepared: Prepared, *, weights: tuple[float, ...] = (1.0, 1.0)) -> dict[str, Tensor]:
    """Train as a textbook would: no fused optimizer, nothing skipped."""
    model = prepared.loaded.model.eval()
    tuner = HeadTuner(model, CHOSEN)
    parameters = tuner.parameters()
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.01},
            {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
        ],
        fused=False,
        foreach=False,
    )
    data = prepared.data.train
    plan = TrainingBatches(lengths=data.lengths, batch_size=8, seed=0)
    batches = [batch for epoch in range(2) for batch in plan.epoch(epoch)]
    assert len(batches) == 6
    for rate, indices in zip((1.0, 1.0, 0.8, 0.6, 0.4, 0.2), batches, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * rate
        batch = data.batch(indices)
        logits = model(**batch.inputs).logits
        losses = nn.functional.cross_entropy(logits, batch.targets, reduction="none")
        loss = (losses * torch.tensor(weights)[batch.targets]).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad *= min(1.0, 1 / (norm.item() + 1e-6))
        optimizer.step()
    return values(tuner.named_parameters())


class TestTrainingMode:
    def test_dropout_works_in_the_task_head_alone(self, tmp_path: Path):
        prepared = ready(tmp_path, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
        model = prepared.loaded.model
        seen: dict[str, set[bool]] = {}

        def see(module: nn.Module, *_: object) -> None:
            seen.setdefault(names[module], set()).add(module.training)

        names = {m: name for name, m in model.named_modules() if isinstance(m, nn.Dropout)}
        for module in names:
            module.register_forward_pre_hook(see)
        train(prepared, validate=False)
        assert seen.pop("dropout") == {True}
        assert len(seen) > 6
        assert set.union(*seen.values()) == {False}
        assert not model.training

    def test_evaluation_has_no_dropout_and_training_has_it_again(self, tmp_path: Path):
        prepared = ready(tmp_path)
        dropout = prepared.loaded.model.dropout
        modes: list[tuple[str, bool]] = []
        dropout.register_forward_pre_hook(lambda module, _: modes.append(("", module.training)))
        kinds: list[str] = []
        train(prepared, on_event=lambda event: kinds.append(event.kind))
        steps = ["step"] * 3 + ["evaluating"] * 2
        assert [kind for kind in kinds if kind != "evaluated"] == [*steps * 2, "finished"]
        assert [mode for _, mode in modes] == [kind == "step" for kind in steps * 2]

    def test_the_last_layer_computes_its_first_token_alone(self, tmp_path: Path):
        prepared = ready(tmp_path)
        block = prepared.loaded.model.bert.encoder.layer[-1].output.dense
        tokens: list[int] = []
        block.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].shape[1]))
        train(prepared)
        evaluated = [count for count in tokens if count > 1]
        assert tokens.count(1) == 6
        assert len(evaluated) == 4


class TestPause:
    def test_requested_before_training_saves_the_start_and_stops(self, tmp_path: Path):
        prepared = ready(tmp_path / "model")
        tuner = HeadTuner(prepared.loaded.model, CHOSEN)
        before = values(tuner.named_parameters())
        asked = trainer(prepared, tuner, plan=CheckpointPlan(directory=tmp_path / "checkpoints"))
        asked._emitter.is_pause_wanted = True
        with pytest.raises(JobPaused, match="after step 0") as caught:
            asked.run()
        assert caught.value.checkpoint == tmp_path / "checkpoints" / "step-00000000"
        assert all(value.equal(before[n]) for n, value in values(tuner.named_parameters()).items())


class TestCheckpointPlan:
    @pytest.mark.parametrize("seconds", [-1, math.nan, math.inf, "60", None, True])
    def test_seconds_that_are_no_such_number_are_refused(self, seconds):
        with pytest.raises(InvalidArgumentError, match="a finite number of at least 0") as caught:
            CheckpointPlan.of("checkpoints", seconds=seconds)
        assert caught.value.param == "checkpoint_seconds"

    @pytest.mark.parametrize("seconds", [0, np.int64(0), np.float32(0)])
    def test_any_number_is_a_float(self, seconds):
        plan = CheckpointPlan.of("checkpoints", seconds=seconds)
        assert plan == CheckpointPlan(directory=Path("checkpoints"), seconds=0.0)
        assert type(plan.seconds) is float

    def test_what_is_no_path_is_refused(self):
        with pytest.raises(InvalidArgumentError, match="None to save none") as caught:
            CheckpointPlan.of(5, seconds=60.0)  # type: ignore[arg-type]
        assert caught.value.param == "checkpoint_dir"

    def test_without_a_folder_nothing_is_kept(self):
        assert CheckpointPlan.of(None, seconds=60.0).directory is None


class TestBest:
    def test_the_best_step_is_kept(self, tmp_path: Path):
        settings = replace(SETTINGS, epochs=20, learning_rate=3e-2)
        rows = [{"text": "w1 w2", "label": 0}, {"text": "w31 w32", "label": 1}] * 8
        rows += [{"text": "w1 w2", "label": 1}]  # so the loss does not fall for ever
        prepared = ready(tmp_path, rows=rows, settings=settings)
        tuner = HeadTuner(prepared.loaded.model, CHOSEN)
        history: list[tuple[int, float, float, dict[str, Tensor]]] = []
        events: list[TrainingEvent] = []

        def on_event(event) -> None:
            events.append(event)
            if event.kind == "evaluated":
                copy = values(tuner.named_parameters())
                metrics = event.metrics
                history.append((event.step, metrics["accuracy"], metrics["loss"], copy))

        outcome = trainer(prepared, tuner, settings=settings, on_event=on_event).run()
        best = max(history, key=lambda entry: (entry[1], -entry[2]))
        assert history[0][1] < best[1]
        assert [entry[1] for entry in history].count(best[1]) > 1  # the loss decides
        assert best[0] < history[-1][0]
        assert (outcome.best_step, outcome.metrics["accuracy"]) == best[:2]
        assert (events[-1].step, events[-1].total_steps) == (60, 60)
        assert all(value.equal(best[3][n]) for n, value in values(tuner.named_parameters()).items())

    def test_training_stops_without_improvement(self, tmp_path: Path):
        settings = replace(SETTINGS, epochs=20, learning_rate=1e-12, early_stopping_patience=2)
        events: list[TrainingEvent] = []
        _, outcome = train(
            ready(tmp_path, settings=settings), settings=settings, on_event=events.append
        )
        assert [event.kind for event in events].count("evaluated") == 3
        last = events[-1]
        assert (outcome.best_step, last.step, last.epoch) == (3, 9, 3.0)
        assert last.total_steps == 60

    def test_many_epochs_are_evaluated_at_most_twenty_times(self, tmp_path: Path):
        settings = replace(SETTINGS, epochs=25, batch_size=24)
        events: list[TrainingEvent] = []
        train(ready(tmp_path, settings=settings), settings=settings, on_event=events.append)
        evaluated = [event.step for event in events if event.kind == "evaluated"]
        assert evaluated == [*range(2, 25, 2), 25]

    def test_patience_counts_evaluations_and_not_epochs(self, tmp_path: Path):
        settings = replace(SETTINGS, epochs=25, batch_size=24)
        settings = replace(settings, learning_rate=1e-12, early_stopping_patience=2)
        events: list[TrainingEvent] = []
        train(ready(tmp_path, settings=settings), settings=settings, on_event=events.append)
        assert (events[-1].kind, events[-1].step) == ("finished", 6)

    def test_without_a_validation_split_patience_has_no_effect(self, tmp_path: Path):
        settings = replace(SETTINGS, early_stopping_patience=1)
        prepared = ready(tmp_path, settings=settings)
        _, outcome = train(prepared, settings=settings, validate=False)
        assert (outcome.best_step, outcome.metrics) == (6, {})
