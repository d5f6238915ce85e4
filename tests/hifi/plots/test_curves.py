"""hifi.plots.curves: the points of a run's curves, from both kinds of events."""

from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from hifi import plots
from hifi.errors import InvalidArgumentError
from hifi.training.events import TrainingEvent

MAJORITY, PROBE = {"f1": 0.1, "loss": 1.4}, {"f1": 0.7, "loss": 0.6}
EVENTS = [
    TrainingEvent(kind="loading", message="loading"),
    TrainingEvent(kind="yardsticks", yardsticks={"majority": MAJORITY, "probe": PROBE}),
    TrainingEvent(kind="evaluated", step=0, metrics={"loss": 0.6, "f1": 0.7}),
    TrainingEvent(kind="step", step=1, loss=0.5),
    TrainingEvent(kind="step", step=2, loss=0.4),
    TrainingEvent(kind="evaluated", step=2, metrics={"loss": 0.55, "f1": 0.8}),
    TrainingEvent(kind="finished", step=2, metrics={"loss": 0.55, "f1": 0.8}),
]


def of_a_job(kind, data):
    return {"object": "job.event", "id": "evt_1", "type": kind, "message": "", "data": data}


JOB_EVENTS = [
    of_a_job("state", {}),
    of_a_job("yardsticks", {"majority": MAJORITY, "probe": PROBE, "untuned": None}),
    of_a_job("metrics", {"step": 0, "loss": 0.6, "f1": 0.7}),
    of_a_job("step", {"step": 1, "total_steps": 2, "loss": 0.5, "learning_rate": 1e-3}),
    of_a_job("step", {"step": 2, "total_steps": 2, "loss": 0.4, "learning_rate": 1e-3}),
    of_a_job("metrics", {"step": 2, "loss": 0.55, "f1": 0.8}),
]
SOURCES = pytest.mark.parametrize(
    "events",
    [EVENTS, tuple(JOB_EVENTS), {"object": "list", "data": JOB_EVENTS, "has_more": False}],
    ids=["library", "job", "page"],
)


def lines(axes):
    return {
        line.get_label(): list(zip(line.get_xdata(), line.get_ydata(), strict=True))
        for line in axes.lines
    }


class TestLosses:
    @SOURCES
    def test_has_the_training_and_the_validation_losses(self, events):
        axes = plots.losses(events)
        assert lines(axes) == {
            "training batches": [(1, 0.5), (2, 0.4)],
            "validation split": [(0, 0.6), (2, 0.55)],
        }
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimizer step", "loss")

    def test_reads_events_one_by_one(self):
        assert lines(plots.losses(event for event in EVENTS)) == lines(plots.losses(EVENTS))

    def test_without_evaluations_has_the_training_losses_alone(self):
        axes = plots.losses([event for event in EVENTS if event.kind == "step"])
        assert list(lines(axes)) == ["training batches"]

    def test_a_step_that_a_resumed_run_repeats_counts_once(self):
        repeated = [EVENTS[4], EVENTS[3], EVENTS[4]]
        assert lines(plots.losses(repeated))["training batches"] == [(1, 0.5), (2, 0.4)]

    def test_numpys_integers_are_steps(self):
        events = [of_a_job("step", {"step": np.int64(3), "loss": 0.5})]
        assert lines(plots.losses(events))["training batches"] == [(3, 0.5)]

    def test_a_loss_that_is_no_number_is_a_gap(self):
        events = [*JOB_EVENTS, of_a_job("step", {"step": 3, "loss": None})]
        step, loss = lines(plots.losses(events))["training batches"][-1]
        assert step == 3
        assert math.isnan(loss)

    def test_draws_into_the_axes_of_the_caller(self):
        ax = Figure().add_subplot()
        assert plots.losses(EVENTS, ax=ax) is ax

    @pytest.mark.parametrize(
        "events",
        [
            [],
            [JOB_EVENTS[0]],
            "events",
            7,
            {"data": {}},
            {},
            [3],
            [{"type": "step"}],
            [of_a_job("step", {"loss": 0.5})],
            [of_a_job("step", {"step": "1", "loss": 0.5})],
            [of_a_job("step", {"step": True, "loss": 0.5})],
            [EVENTS[3], of_a_job("metrics", {"step": True, "loss": 0.5})],
        ],
        ids=str,
    )
    def test_refuses_what_has_no_step(self, events):
        with pytest.raises(InvalidArgumentError, match=r"^events="):
            plots.losses(events)


class TestValidation:
    @SOURCES
    def test_has_the_metric_over_the_steps_and_the_yardsticks(self, events):
        axes = plots.validation(events)
        assert lines(axes) == {
            "tuned model": [(0, 0.7), (2, 0.8)],
            "majority class or mean": [(0, 0.1), (1, 0.1)],
            "linear probe": [(0, 0.7), (1, 0.7)],
        }
        assert axes.get_ylabel() == "f1 on the validation split"
        shown = [text.get_text() for text in axes.get_legend().get_texts()]
        assert shown == ["tuned model", "majority class or mean", "linear probe"]

    def test_lines_differ_in_more_than_their_colours(self):
        axes = plots.validation(EVENTS)
        styles = [(line.get_linestyle(), line.get_marker()) for line in axes.lines]
        assert len(set(styles)) == len(styles)

    def test_draws_the_metric_that_is_named(self):
        axes = plots.validation(EVENTS, metric="loss")
        assert lines(axes)["tuned model"] == [(0, 0.6), (2, 0.55)]

    def test_without_yardsticks_has_the_metric_alone(self):
        events = [event for event in EVENTS if event.kind == "evaluated"]
        assert list(lines(plots.validation(events))) == ["tuned model"]

    def test_a_metric_is_no_formula(self, tmp_path):
        event = TrainingEvent(kind="evaluated", step=1, metrics={r"$\broken": 1.0})
        yardsticks = TrainingEvent(kind="yardsticks", yardsticks={"$_$": {r"$\broken": 0.5}})
        axes = plots.validation([event, yardsticks])
        plots.save(axes, tmp_path / "curve.svg")
        assert axes.get_ylabel() == r"$\broken on the validation split"

    def test_refuses_a_metric_that_was_not_measured(self):
        with pytest.raises(InvalidArgumentError, match=r"metric='pearson'.*one of loss, f1"):
            plots.validation(EVENTS, metric="pearson")

    @pytest.mark.parametrize(
        "event", [TrainingEvent(kind="evaluated", step=1), of_a_job("metrics", {"step": 1})]
    )
    def test_refuses_an_evaluation_without_metrics(self, event):
        with pytest.raises(InvalidArgumentError, match=r"^events=.*each evaluation has metrics"):
            plots.validation([*EVENTS, event])

    def test_refuses_a_run_without_evaluations(self):
        with pytest.raises(InvalidArgumentError, match="a validation split"):
            plots.validation([EVENTS[3]])
