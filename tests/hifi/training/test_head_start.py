"""hifi.training.head_start: the start from the probe in every head shape, and the yardsticks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers as tf
from sklearn import metrics as sklearn_metrics
from torch import Tensor

from hifi.backbones.heads import task_head_layers, task_head_names
from hifi.backbones.models import resolve_model
from hifi.data.settings import HeadStart, Hyperparameters
from hifi.errors import CheckpointError, InvalidArgumentError, JobPaused, JobStopped
from hifi.tasks import Task, TaskSpec, probe
from hifi.tasks.classification import ClassTask
from hifi.training import batching, head_start, trainer
from hifi.training.checkpoint import load_checkpoint
from hifi.training.events import Control, TrainingEvent
from hifi.training.forward import Forward, Scored
from hifi.training.head_start import start_head
from hifi.training.preparation import Prepared, prepare
from tests.architectures import ARCHITECTURES, NAMES, tiny_model
from tests.tiny_deltas import save_bare_backbone
from tests.tiny_runs import file_of, record, run, stop_at
from tests.tiny_tasks import image_rows, save_image_model, save_text_model, text_rows

if TYPE_CHECKING:
    from hifi.training.finetuning import FinetuneResult

Scripted = Callable[..., "FinetuneResult"]
LABELS = ("a", "b", "c")
SETTINGS = Hyperparameters(max_length=16, batch_size=4, precision="float32")
TEXTS, HELD_OUT = text_rows(48, seed=1, labels=LABELS), text_rows(21, seed=2, labels=LABELS)
HIDDEN = {
    "roberta": "classifier.dense",
    "xlm-roberta": "classifier.dense",
    "electra": "classifier.dense",
    "distilbert": "pre_classifier",
    "modernbert": "head.dense",
    "deberta-v2": "pooler.dense",
    "deberta-v3": "pooler.dense",
    "mpnet": "classifier.dense",
}


def ready_for(
    folder: Path,
    train: list[dict[str, Any]] = TEXTS,
    validation: list[dict[str, Any]] | None = HELD_OUT,
    *,
    settings: Hyperparameters = SETTINGS,
) -> Prepared:
    return prepare(
        resolve_model(folder),
        spec=TaskSpec(),
        train=train,
        validation=validation,
        settings=settings,
        device=torch.device("cpu"),
    )


def ready_of(name: str, folder: Path, *, settings: Hyperparameters = SETTINGS) -> Prepared:
    """Prepare a tiny model of an architecture, whose own task head does not fit."""
    if ARCHITECTURES[name].image:
        save_image_model(folder, name, num_labels=5)
        return ready_for(folder, image_rows(48), image_rows(20), settings=settings)
    return ready_for(save_text_model(folder, name), settings=settings)


def numbered(count: int, *, seed: int) -> list[dict[str, Any]]:
    return [{**row, "label": row["label"] + 0.5} for row in text_rows(count, seed=seed)]


def parameters_of(ready: Prepared) -> dict[str, Tensor]:
    named = ready.loaded.model.named_parameters()
    return {name: value.detach().clone() for name, value in named}


def look_at(ready: Prepared, module: str, split: str) -> tuple[Tensor, Tensor]:
    """Return what a module reads and the logits, of all samples, seen from outside."""
    examples = getattr(ready.data, split)
    seen: list[Tensor] = []
    hook = ready.loaded.model.get_submodule(module).register_forward_pre_hook(
        lambda _, arguments: seen.append(arguments[0])
    )
    forward = Forward(ready.loaded.model, task=ready.data.task)
    with torch.no_grad():
        logits = [
            forward.logits(forward.batch(examples, np.array([index]))).float()
            for index in range(len(examples))
        ]
    hook.remove()
    read = [each[:, -1] if each.dim() == 3 else each for each in seen]  # decoders: the last token
    return torch.cat(read).float(), torch.cat(logits)


class TestProbeStart:
    @pytest.mark.parametrize("name", NAMES)
    def test_the_first_logits_are_the_probes_own(self, name: str, tmp_path: Path):
        ready = ready_of(name, tmp_path)
        before = parameters_of(ready)
        started = start_head(ready, settings=SETTINGS)
        model, task = ready.loaded.model, ready.data.task
        layers = task_head_layers(model)
        assert layers is not None
        states, logits = look_at(ready, layers.last, "train")
        own = probe.ClassProbe().fit(
            states,
            ready.data.train.targets,
            num_labels=task.num_labels,
            has_bias=f"{layers.last}.bias" in before,
            seed=SETTINGS.seed,
        )
        assert own.logits(states).numpy() == pytest.approx(logits.numpy(), abs=2e-2)
        validation = ready.data.validation
        assert validation is not None
        measured = task.evaluate(look_at(ready, layers.last, "validation")[1], validation)
        known = dict(started.yardsticks["probe"])
        known.pop("loss")
        assert known == pytest.approx(measured)
        after = parameters_of(ready)
        head = set(task_head_names(model))
        assert all(before[part].equal(after[part]) for part in before.keys() - head)
        assert {part for part in head if not before[part].equal(after[part])} == set(
            started.parameters
        )
        assert all(value.equal(after[part]) for part, value in started.parameters.items())

    @pytest.mark.parametrize(("name", "hidden"), HIDDEN.items())
    def test_a_fresh_hidden_layer_passes_on_each_state(
        self, name: str, hidden: str, tmp_path: Path
    ):
        ready = ready_of(name, tmp_path)
        start_head(ready, settings=SETTINGS)
        layers = task_head_layers(ready.loaded.model)
        assert layers is not None
        assert layers.hidden is not None
        assert layers.hidden.name == hidden
        states, _ = look_at(ready, hidden, "validation")
        passed, _ = look_at(ready, layers.last, "validation")
        assert least_correlation(states, passed) > 0.9

    def test_a_pooler_that_the_checkpoint_lacked_does_too(self, tmp_path: Path):
        tf.BertModel.from_pretrained(
            save_text_model(tmp_path), add_pooling_layer=False
        ).save_pretrained(tmp_path)
        ready = ready_for(tmp_path)
        assert ready.loaded.task_head_modules == ("bert.pooler",)
        started = start_head(ready, settings=SETTINGS)
        assert {"bert.pooler.dense.weight", "bert.pooler.dense.bias"} < set(started.parameters)
        states, _ = look_at(ready, "bert.pooler.dense", "validation")
        passed, _ = look_at(ready, "classifier", "validation")
        assert least_correlation(states, passed) > 0.95

    def test_states_that_never_vary_get_no_large_weights(self, tmp_path: Path):
        """They would dwarf all gradients: the task head would never move."""
        model = tf.BertModel.from_pretrained(save_text_model(tmp_path), add_pooling_layer=False)
        with torch.no_grad():
            model.encoder.layer[-1].output.LayerNorm.weight[:9] = 1e-20
        model.save_pretrained(tmp_path)
        heard: list[TrainingEvent] = []
        data: dict[str, Any] = {"train": TEXTS, "validation": HELD_OUT}
        result = run(tmp_path, **data, learning_rate=1e-2, epochs=4, on_event=record(heard))
        for name in ("classifier.weight", "bert.pooler.dense.weight"):
            assert result.delta.task_head[name].abs().max() < 100
        losses = [event.metrics["loss"] for event in heard if event.kind == "evaluated"]
        assert abs(losses[-1] - result.yardsticks["probe"]["loss"]) > 1e-3

    def test_the_checkpoints_own_pooler_is_left_alone(self, tmp_path: Path):
        started = start_head(ready_for(save_bare_backbone(tmp_path)), settings=SETTINGS)
        assert set(started.parameters) == {"classifier.weight", "classifier.bias"}

    def test_of_numbers(self, tmp_path: Path):
        ready = ready_for(save_text_model(tmp_path), numbered(48, seed=1), numbered(20, seed=2))
        started = start_head(ready, settings=SETTINGS)
        _, logits = look_at(ready, "classifier", "validation")
        loss = ((logits[:, 0] - held_out(ready)) ** 2).mean().item()
        assert started.yardsticks["probe"]["loss"] == pytest.approx(loss, rel=1e-3)
        assert loss < started.yardsticks["majority"]["loss"]

    def test_in_bfloat16_the_run_starts_from_float32_values(self, tmp_path: Path):
        settings = replace(SETTINGS, precision="bfloat16")
        ready = ready_of("roberta", tmp_path, settings=settings)
        started = start_head(ready, settings=settings)
        assert {value.dtype for value in started.parameters.values()} == {torch.float32}
        rounded = parameters_of(ready)
        for part, value in started.parameters.items():
            assert value.bfloat16().equal(rounded[part])
        assert not started.parameters["classifier.out_proj.weight"].equal(
            rounded["classifier.out_proj.weight"].float()
        )

    def test_without_validation_there_is_a_start_but_nothing_to_compare(self, tmp_path: Path):
        started = start_head(
            ready_for(save_text_model(tmp_path), validation=None), settings=SETTINGS
        )
        assert started.yardsticks == {}
        assert started.parameters

    def test_few_rows_are_read_of_a_large_split(self, tmp_path: Path, monkeypatch):
        monkeypatch.setattr(probe, "_MOST_ROWS", 24)
        heard: list[tuple[int, int]] = []
        ready = ready_for(save_text_model(tmp_path))
        start_head(ready, settings=SETTINGS, on_batch=lambda *batch: heard.append(batch))
        total = 6 + probe.TRIES + 6  # of 24 and 21 rows, in fours
        assert heard == [(number, total) for number in range(1, total + 1)]


class TestOtherStarts:
    def test_random_leaves_the_seeds_weights_and_has_the_same_yardsticks(self, tmp_path: Path):
        settings = replace(SETTINGS, head_start="random")
        ready = ready_of("roberta", tmp_path / "a", settings=settings)
        before = parameters_of(ready)
        started = start_head(ready, settings=settings)
        after = parameters_of(ready)
        assert all(before[part].equal(after[part]) for part in before)
        probed = start_head(ready_of("roberta", tmp_path / "b"), settings=SETTINGS)
        assert (started.parameters, started.yardsticks) == ({}, probed.yardsticks)

    def test_random_without_validation_computes_nothing(self, tmp_path: Path, monkeypatch):
        settings = replace(SETTINGS, head_start="random")
        ready = ready_for(save_text_model(tmp_path), validation=None, settings=settings)
        monkeypatch.setattr(Forward, "over", None)
        started = start_head(ready, settings=settings)
        assert (started.parameters, started.yardsticks, started.warnings) == ({}, {}, ())

    def test_a_kept_head_is_untouched_and_measured_untuned(self, tmp_path: Path):
        folder = save_text_model(tmp_path, "roberta", num_labels=3)
        train = [{**row, "label": LABELS.index(row["label"])} for row in TEXTS]
        validation = [{**row, "label": LABELS.index(row["label"])} for row in HELD_OUT]
        ready = ready_for(folder, train, validation)
        started = start_head(ready, settings=SETTINGS)
        assert started.parameters == {}
        model = tf.AutoModelForSequenceClassification.from_pretrained(folder).eval()
        after = parameters_of(ready)
        assert all(value.equal(after[part]) for part, value in model.named_parameters())
        ready.loaded.model.load_state_dict(model.state_dict())
        _, logits = look_at(ready, "classifier.out_proj", "validation")
        loss = torch.nn.functional.cross_entropy(logits, held_out(ready)).item()
        untuned = started.yardsticks["untuned"]
        assert untuned["loss"] == pytest.approx(loss, rel=1e-4)
        accuracy = sklearn_metrics.accuracy_score(held_out(ready), logits.argmax(-1))
        assert untuned["accuracy"] == pytest.approx(accuracy)

    @pytest.mark.parametrize("start", ["probe", "random"])
    def test_a_fitting_head_is_not_kept_if_another_start_is_wanted(
        self, start: HeadStart, tmp_path: Path
    ):
        folder = save_text_model(tmp_path, id2label={0: "no", 1: "yes"})
        settings = replace(SETTINGS, head_start=start)
        ready = ready_for(folder, text_rows(24), text_rows(12), settings=settings)
        assert (ready.kept_head, ready.warnings) == (None, ())
        assert ready.data.task.labels == (0, 1)
        started = start_head(ready, settings=settings)
        assert ("untuned" in started.yardsticks, bool(started.parameters)) == (
            False,
            start == "probe",
        )

    def test_keep_takes_a_fitting_head(self, tmp_path: Path):
        settings = replace(SETTINGS, head_start="keep")
        ready = ready_for(save_text_model(tmp_path), text_rows(24), None, settings=settings)
        assert ready.kept_head is not None

    @pytest.mark.parametrize(
        ("save", "reason"),
        [
            (lambda folder: save_text_model(folder, num_labels=2), r"the task head of .*2 labels"),
            (
                lambda folder: save_text_model(
                    folder, id2label=dict(enumerate("xyz")), num_labels=3
                ),
                r"3 labels: 'x', 'y', 'z'\) does not fit the task \(3 labels: 'a', 'b', 'c'\)",
            ),
            (save_bare_backbone, "has no task head of this kind"),
        ],
    )
    def test_keep_without_a_fitting_head_is_refused(
        self, save: Callable[[Path], Path], reason: str, tmp_path: Path
    ):
        settings = replace(SETTINGS, head_start="keep")
        with pytest.raises(InvalidArgumentError, match=reason) as caught:
            ready_for(save(tmp_path), settings=settings)
        assert (caught.value.param, caught.value.value) == ("head_start", "keep")

    @pytest.mark.parametrize("start", ["auto", "probe"])
    def test_of_a_task_without_a_probe(self, start: HeadStart, tmp_path: Path, monkeypatch):
        settings = replace(SETTINGS, head_start=start)
        ready = ready_for(save_text_model(tmp_path), settings=settings)
        monkeypatch.setattr(ClassTask, "probe", None)
        if start == "auto":
            started = start_head(ready, settings=settings)
            assert (started.parameters, started.yardsticks, started.warnings) == ({}, {}, ())
            return
        with pytest.raises(InvalidArgumentError, match="no linear probe"):
            start_head(ready, settings=settings)


class TestStepZero:
    @pytest.mark.parametrize(
        ("start", "fits", "steps"),
        [("auto", True, [0, 3, 6]), ("probe", False, [0, 3, 6]), ("random", True, [3, 6])],
    )
    def test_is_evaluated_unless_it_is_random(
        self, start: HeadStart, fits: bool, steps: list[int], bert: Path, tmp_path: Path
    ):
        heard: list[TrainingEvent] = []
        folder = bert if fits else save_bare_backbone(tmp_path)
        run(folder, head_start=start, on_event=record(heard))
        assert [event.step for event in heard if event.kind == "evaluated"] == steps

    def test_of_a_kept_head_needs_no_probe(self, bert: Path, monkeypatch):
        monkeypatch.setattr(ClassTask, "probe", None)
        heard: list[TrainingEvent] = []
        run(bert, on_event=record(heard))
        assert [event.step for event in heard if event.kind == "evaluated"] == [0, 3, 6]

    def test_is_the_result_if_nothing_was_better(self, bert: Path):
        result = run(bert, learning_rate=1e-30)
        assert result.best_step == 0
        assert "no_gain" in [warning.code for warning in result.warnings]
        assert dict(result.metrics) == pytest.approx(dict(result.yardsticks["untuned"]))
        assert all(
            row.equal((result.delta.base or {})[key]) for key, row in result.delta.rows.items()
        )


class TestAboveStart:
    """12 validation rows: by chance two accuracies differ by 0.144."""

    @pytest.fixture(params=["kept", "probe"])
    def scripted(
        self,
        bert: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        request: pytest.FixtureRequest,
    ) -> Scripted:
        """Return a run whose evaluations after the first, 0.5 and loss 1, are given."""
        folder = bert if request.param == "kept" else save_bare_backbone(tmp_path)

        def tune(
            *evaluations: tuple[float, float], metric: str = "accuracy", **arguments: Any
        ) -> FinetuneResult:
            pairs = [(0.5, 1.0), *evaluations]
            script = iter([{metric: value, "loss": loss} for value, loss in pairs])

            class Told(Scored):
                def metrics(self, task: Task) -> dict[str, float]:  # noqa: ARG002 - told, not measured
                    return next(script)

            monkeypatch.setattr(trainer, "Scored", Told)
            return run(folder, metric=metric, **arguments)

        return tune

    @pytest.mark.parametrize(
        ("accuracy", "loss", "step"),
        [
            (0.64, 1.1, 0),  # by chance, and worse in loss
            (0.65, 1.1, 3),
            (0.51, 0.9, 3),
            (0.5, 0.9, 3),
            (0.5, 1.1, 0),
            (0.49, 0.9, 0),
        ],
    )
    def test_a_step_counts_by_more_than_chance_or_with_a_lower_loss(
        self, scripted: Scripted, accuracy: float, loss: float, step: int
    ):
        result = scripted((accuracy, loss), (0.1, 2.0))
        assert result.best_step == step
        assert ("no_gain" in [each.code for each in result.warnings]) == (step == 0)

    def test_of_a_regression_too(self, scripted: Scripted):
        rows = [{"text": f"w{row}", "label": row / 7} for row in range(24)]
        data = {"train": rows, "validation": rows[:12], "task": "regression", "metric": "pearson"}
        data["head_start"] = "probe"
        assert scripted((0.64, 1.1), (0.1, 2.0), **data).best_step == 0
        assert scripted((0.65, 1.1), (0.1, 2.0), **data).best_step == 3

    def test_a_step_that_may_be_chance_does_not_follow_a_better_one(self, scripted: Scripted):
        assert scripted((0.52, 0.9), (0.6, 1.2)).best_step == 3
        assert scripted((0.52, 0.9), (0.66, 1.2)).best_step == 6

    def test_a_resumed_run_knows_its_start(self, scripted: Scripted, tmp_path: Path):
        place = tmp_path / "checkpoints"
        with pytest.raises(JobPaused):
            scripted((0.52, 0.9), checkpoint_dir=place, on_event=stop_at("step", 4, Control.PAUSE))
        # What is scripted first is the evaluation of step 6.
        assert scripted(checkpoint_dir=place).best_step == 3
        checkpoint = load_checkpoint(place)
        assert checkpoint is not None
        assert dict(checkpoint[1].start or {}) == {"accuracy": 0.5, "loss": 1.0}

    def test_a_gain_by_chance_is_one_for_the_patience(self, scripted: Scripted):
        heard: list[TrainingEvent] = []
        patient = {"early_stopping_patience": 1, "on_event": record(heard)}
        assert scripted((0.6, 1.1), (0.6, 1.1), **patient).best_step == 0
        assert heard[-1].message == "finished; the best step is 0"
        scripted((0.5, 1.1), **patient)
        assert heard[-1].message.startswith("stopped early, after step 3")

    def test_of_a_random_start_every_step_counts(self, scripted: Scripted):
        assert scripted((0.51, 1.5), head_start="random").best_step == 6


class TestBadStates:
    @pytest.mark.parametrize("name", ["bert", "roberta"])
    def test_that_are_not_finite_leave_a_random_head_and_a_warning(self, name: str, tmp_path: Path):
        ready = ready_of(name, tmp_path)
        before = parameters_of(ready)
        with torch.no_grad():
            norms = [
                m for m in ready.loaded.model.base_model.modules() if "LayerNorm" in str(type(m))
            ]
            norms[-1].weight[3] = torch.nan
        started = start_head(ready, settings=SETTINGS)
        assert [warning.code for warning in started.warnings] == ["probe_failed"]
        assert started.parameters == {}
        assert set(started.yardsticks) == {"majority"}
        head = task_head_names(ready.loaded.model)
        after = parameters_of(ready)
        assert all(before[part].equal(after[part]) for part in head)

    def test_that_never_converge_too(self, tmp_path: Path, monkeypatch):
        monkeypatch.setattr(probe, "_MOST_ITERATIONS", 1)
        result = run(save_bare_backbone(tmp_path), epochs=1)
        assert "probe_failed" in [warning.code for warning in result.warnings]
        assert set(result.yardsticks) == {"majority"}

    def test_that_are_all_equal_give_the_majority(self, tmp_path: Path):
        folder = save_text_model(tmp_path, "roberta")
        same = [{"text": "w1", "label": label} for label in "aaab" * 6]
        ready = ready_for(folder, same, same)
        started = start_head(ready, settings=SETTINGS)
        assert started.yardsticks["probe"]["accuracy"] == 0.75
        assert all(value.isfinite().all() for value in started.parameters.values())

    def test_of_too_many_classes_leave_a_random_head_and_a_warning(
        self, tmp_path: Path, monkeypatch
    ):
        monkeypatch.setattr(probe, "_MOST_ROWS", 2)
        ready = ready_of("roberta", tmp_path)
        before = parameters_of(ready)
        started = start_head(ready, settings=SETTINGS)
        (warning,) = started.warnings
        assert warning.code == "probe_failed"
        assert "too many classes: 3 occur" in warning.message
        assert (started.parameters, set(started.yardsticks)) == ({}, {"majority"})
        after = parameters_of(ready)
        assert all(before[part].equal(after[part]) for part in before)

    def test_a_kept_head_is_measured_without_a_probe(self, tmp_path: Path, monkeypatch):
        monkeypatch.setattr(probe, "_MOST_ROWS", 1)
        heard: list[tuple[int, int]] = []
        ready = ready_for(save_text_model(tmp_path), text_rows(24), text_rows(12))
        assert ready.kept_head is not None
        started = start_head(ready, settings=SETTINGS, on_batch=lambda *batch: heard.append(batch))
        assert set(started.yardsticks) == {"majority", "untuned"}
        assert heard == [(1, 3), (2, 3), (3, 3)]


class TestYardsticks:
    def test_that_are_not_finite_are_left_out(self, tmp_path: Path):
        """The squares of such numbers exceed float32."""
        rows = [{**row, "label": 1e20 * (-1) ** number} for number, row in enumerate(TEXTS)]
        rows[0]["label"] = 0.5  # numbers, not classes
        started = start_head(ready_for(save_text_model(tmp_path), rows, rows), settings=SETTINGS)
        assert started.yardsticks == {}

    def test_no_states_of_the_validation_split_are_kept(self, tmp_path: Path, monkeypatch):
        shapes: list[tuple[int, ...]] = []
        gather = batching.gather

        def look(*arguments: Any) -> Tensor:
            found = gather(*arguments)
            shapes.append(tuple(found.shape))
            return found

        monkeypatch.setattr(head_start, "gather", look)
        start_head(ready_for(save_bare_backbone(tmp_path)), settings=SETTINGS)
        assert shapes[-1] == (21, 3)

    def test_are_the_numbers_of_scikit_learn(self, tmp_path: Path):
        heard: list[TrainingEvent] = []
        folder = save_bare_backbone(tmp_path)
        skewed = [{**row, "label": label} for row, label in zip(TEXTS, "aaab" * 12, strict=True)]
        result = run(folder, train=skewed, validation=skewed[:21], on_event=record(heard))
        truth = ["ab".index(row["label"]) for row in skewed[:21]]
        majority = result.yardsticks["majority"]
        assert majority["accuracy"] == pytest.approx(truth.count(0) / 21)
        shares = [[0.75, 0.25]] * 21
        assert majority["loss"] == pytest.approx(sklearn_metrics.log_loss(truth, shares), rel=1e-5)
        assert (majority["f1"], majority["matthews"]) == (0.0, 0.0)
        assert set(result.yardsticks) == {"majority", "probe"}
        assert all(set(each) == set(result.metrics) for each in result.yardsticks.values())
        (event,) = [each for each in heard if each.kind == "yardsticks"]
        assert event.yardsticks == result.yardsticks
        assert event.message.startswith(
            "the task head starts from the linear probe; accuracy to compare with: majority 0.7"
        )

    def test_of_numbers_are_the_mean_and_the_probe(self, tmp_path: Path):
        rows = numbered(24, seed=3)
        result = run(save_bare_backbone(tmp_path), train=rows, validation=rows)
        values = np.array([row["label"] for row in rows])
        majority = result.yardsticks["majority"]
        assert majority["loss"] == pytest.approx(values.var())
        assert (majority["pearson"], majority["spearman"]) == (0.0, 0.0)

    def test_a_learning_rate_near_zero_stays_at_the_probe(self, tmp_path: Path):
        result = run(save_bare_backbone(tmp_path), learning_rate=1e-9)
        assert result.metrics == pytest.approx(result.yardsticks["probe"], rel=1e-4)

    def test_there_are_none_without_validation(self, tmp_path: Path):
        assert run(save_bare_backbone(tmp_path), validation=None).yardsticks == {}


class TestResume:
    @pytest.mark.parametrize(
        ("kind", "step"), [("selected", 0), ("checkpoint", 0), ("step", 2), ("evaluated", 6)]
    )
    @pytest.mark.parametrize("name", ["bert", "distilbert"])
    def test_keeps_bytes_yardsticks_and_warnings(
        self, name: str, kind: str, step: int, tmp_path: Path
    ):
        folder = save_text_model(tmp_path / "model", name)
        data: dict[str, Any] = {"train": TEXTS[:24], "validation": HELD_OUT[:12]}
        whole = run(folder, **data)
        checkpoints = tmp_path / "c"
        with pytest.raises(JobPaused):
            run(
                folder,
                **data,
                checkpoint_dir=checkpoints,
                on_event=stop_at(kind, step, Control.PAUSE),
            )
        heard: list[TrainingEvent] = []
        again = run(folder, **data, checkpoint_dir=checkpoints, on_event=record(heard))
        assert file_of(again, tmp_path) == file_of(whole, tmp_path)
        assert again.yardsticks == whole.yardsticks
        assert again.warnings == whole.warnings
        assert not {event.kind for event in heard} & {"probing", "yardsticks"}

    def test_the_checkpoint_of_step_0_has_the_start(self, tmp_path: Path):
        folder, checkpoints = save_bare_backbone(tmp_path / "model"), tmp_path / "c"
        with pytest.raises(JobPaused):
            run(
                folder, checkpoint_dir=checkpoints, on_event=stop_at("checkpoint", 0, Control.PAUSE)
            )
        found = load_checkpoint(checkpoints)
        assert found is not None
        random = run(folder, epochs=1, head_start="random", learning_rate=1e-12)
        start = found[1].parameters["classifier.weight"]
        assert (start - random.delta.task_head["classifier.weight"]).norm() > 0.1

    def test_has_the_probes_warnings_from_the_start(self, tmp_path: Path, monkeypatch):
        monkeypatch.setattr(probe, "_MOST_ITERATIONS", 1)
        folder, checkpoints = save_bare_backbone(tmp_path / "model"), tmp_path / "c"
        with pytest.raises(JobPaused):
            run(folder, checkpoint_dir=checkpoints, on_event=stop_at("step", 1, Control.PAUSE))
        heard: list[TrainingEvent] = []
        stop = stop_at("step", 2, Control.PAUSE)
        with pytest.raises(JobPaused):
            run(
                folder,
                checkpoint_dir=checkpoints,
                on_event=lambda event: heard.append(event) or stop(event),
            )
        (loaded,) = [event for event in heard if event.kind == "loaded"]
        assert "probe_failed" in [warning.code for warning in loaded.warnings]

    @pytest.mark.parametrize("place", ["pass", "fit"])
    def test_a_stop_during_the_probe_saves_nothing(self, place: str, tmp_path: Path):
        folder = save_bare_backbone(tmp_path / "model")
        heard: list[TrainingEvent] = []
        run(folder, on_event=record(heard), epochs=1, validation=None)
        probing = [event for event in heard if event.kind == "probing"]
        assert len(probing) == probing[-1].step == probing[-1].total_steps > probe.TRIES
        step = 1 if place == "pass" else len(probing) - 2
        for answer in (Control.PAUSE, Control.CANCEL):
            stop = stop_at("probing", step, answer)
            with pytest.raises(JobStopped) as caught:
                run(folder, checkpoint_dir=tmp_path / "c", on_event=stop, validation=None)
            assert caught.value.checkpoint is None

    def test_another_start_is_another_job(self, tmp_path: Path):
        folder, checkpoints = save_bare_backbone(tmp_path / "model"), tmp_path / "c"
        with pytest.raises(JobPaused):
            run(folder, checkpoint_dir=checkpoints, on_event=stop_at("step", 1, Control.PAUSE))
        with pytest.raises(CheckpointError, match='head_start "auto", not "random"'):
            run(folder, checkpoint_dir=checkpoints, head_start="random")


class TestWarnings:
    def test_come_with_the_end_and_the_result(self, tmp_path: Path):
        """A learning rate near zero never leaves the class that a constant head prefers."""
        heard: list[TrainingEvent] = []
        result = run(
            save_bare_backbone(tmp_path),
            head_start="random",
            learning_rate=1e-12,
            train=text_rows(48, seed=1),
            validation=[{**row, "text": "w1"} for row in text_rows(12, seed=2)],
            on_event=record(heard),
        )
        codes = [warning.code for warning in result.warnings]
        assert "one_class" in codes
        assert heard[-1].warnings == result.warnings
        assert next(each for each in heard if each.kind == "loaded").warnings == ()

    def test_below_the_probe(self, tmp_path: Path):
        rows = text_rows(96, seed=1)
        arguments: dict[str, Any] = {"train": rows, "validation": rows, "learning_rate": 1e-12}
        worse = run(save_bare_backbone(tmp_path), head_start="random", epochs=1, **arguments)
        assert worse.yardsticks["probe"]["accuracy"] > worse.metrics["accuracy"] + 0.1
        assert "below_probe" in [warning.code for warning in worse.warnings]
        equal = run(save_bare_backbone(tmp_path), epochs=1, **arguments)
        assert "below_probe" not in [warning.code for warning in equal.warnings]

    def test_not_converged(self, tmp_path: Path):
        rows = [{"text": "w1 w2", "label": 0}, {"text": "w31 w32", "label": 1}] * 40
        arguments: dict[str, Any] = {"train": rows, "validation": rows, "head_start": "random"}
        folder = save_bare_backbone(tmp_path)
        falling = run(folder, epochs=2, learning_rate=1e-2, **arguments)
        assert falling.best_step == 20
        assert "not_converged" in [warning.code for warning in falling.warnings]
        wrong = [{"text": "w1 w2", "label": 1}] * 40  # whose loss rises once all else is learnt
        noisy = {**arguments, "validation": [*rows, *wrong]}
        past_its_best = run(folder, epochs=2, learning_rate=3e-2, **noisy)
        assert past_its_best.best_step == 10
        level = run(folder, epochs=12, learning_rate=3e-2, **arguments)
        for result in (past_its_best, level):
            assert "not_converged" not in [warning.code for warning in result.warnings]
        arguments["validation"] = None
        assert "not_converged" in [
            warning.code
            for warning in run(folder, epochs=2, learning_rate=3e-2, **arguments).warnings
        ]


def held_out(ready: Prepared) -> Tensor:
    assert ready.data.validation is not None
    return ready.data.validation.targets


def least_correlation(states: Tensor, passed: Tensor) -> float:
    """Return the smallest correlation of a state with the same place of what is passed on."""
    pairs = zip(states.T.numpy(), passed.T.numpy(), strict=True)
    return min(float(np.corrcoef(state, place)[0, 1]) for state, place in pairs)


def test_a_model_without_a_linear_task_head_has_no_layers():
    model = tiny_model("bert")
    assert task_head_layers(model.base_model) is None
