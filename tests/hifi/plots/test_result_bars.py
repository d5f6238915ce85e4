"""hifi.plots.result_bars: the bars of a result, from every kind of document."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from hifi import FinetuneResult, HeadDelta, plots
from hifi.errors import InvalidArgumentError
from hifi.selection.head_selection import HeadSelection
from service.jobs.documents import JobResult, JobYardsticks

METRICS = {"accuracy": 0.8, "f1": 0.75, "loss": 0.5}
YARDSTICKS = {
    "majority": {"accuracy": 0.25, "f1": 0.1, "loss": 1.4},
    "probe": {"accuracy": 0.7, "f1": 0.72, "loss": 0.6},
}
RESULT = JobResult(
    metrics=METRICS,
    yardsticks=JobYardsticks(**YARDSTICKS),
    best_step=3,
    train_seconds=1.0,
    selection_seconds=1.0,
    samples_per_second=None,
).model_dump(mode="json")
JOB = {"object": "job", "spec": {"task": {"metric": "f1"}}, "result": RESULT}
TUNE = {"object": "finetune", "result": {**RESULT, "yardsticks": YARDSTICKS}}


@pytest.fixture
def result(delta_file):
    delta = HeadDelta.load(delta_file)
    return FinetuneResult(
        delta=delta,
        selection=HeadSelection.from_heads(delta.heads, num_layers=3),
        metrics=METRICS,
        yardsticks=YARDSTICKS,
        best_step=3,
        train_seconds=1.0,
        selection_seconds=1.0,
        samples_per_second=1.0,
        trainable_parameters=1,
        fraction=0.1,
    )


def bars(axes):
    """Return name and length of each bar, from the top."""
    bottom, top = axes.get_ylim()
    assert top < bottom
    names = [label.get_text() for label in axes.get_yticklabels()]
    return dict(zip(names, (bar.get_width() for bar in axes.patches), strict=True))


class TestYardsticks:
    def test_of_a_job_has_the_metric_that_chose_the_best_step(self):
        axes = plots.yardsticks(JOB)
        expected = {"tuned model": 0.75, "majority class or mean": 0.1, "linear probe": 0.72}
        assert bars(axes) == expected
        assert list(bars(axes)) == list(expected)
        assert axes.get_xlabel() == "f1 on the validation split"
        assert [text.get_text() for text in axes.texts] == ["0.7500", "0.1000", "0.7200"]

    def test_of_a_command_has_the_first_metric_of_the_task(self):
        assert bars(plots.yardsticks(TUNE))["tuned model"] == 0.8

    def test_of_the_library_is_the_same(self, result):
        axes = plots.yardsticks(result)
        assert bars(axes) == bars(plots.yardsticks(TUNE))

    def test_draws_the_metric_that_is_named(self):
        assert bars(plots.yardsticks(JOB, metric="loss"))["linear probe"] == 0.6

    def test_bars_differ_in_more_than_their_colours(self):
        hatches = [bar.get_hatch() for bar in plots.yardsticks(JOB).patches]
        assert len(set(hatches)) == len(hatches)

    def test_a_metric_that_is_no_number_has_no_bar(self):
        result = {"metrics": {"matthews": None}, "yardsticks": {"untuned": {"matthews": -0.5}}}
        axes = plots.yardsticks({"result": result})
        assert bars(axes) == {"tuned model": 0, "untuned model": -0.5}
        assert [text.get_text() for text in axes.texts] == ["no number", "-0.5000"]

    def test_a_yardstick_of_a_later_version_keeps_its_name(self, tmp_path):
        result = {"metrics": {"f1": 0.5}, "yardsticks": {r"$\oracle": {"f1": 1.0}}}
        axes = plots.yardsticks({"result": result})
        plots.save(axes, tmp_path / "bars.svg")  # a formula would raise
        assert bars(axes) == {"tuned model": 0.5, r"$\oracle": 1.0}

    def test_draws_into_the_axes_of_the_caller(self):
        ax = Figure().add_subplot()
        assert plots.yardsticks(JOB, ax=ax) is ax

    @pytest.mark.parametrize(
        "document",
        [
            {**JOB, "result": None},  # a job that has not succeeded
            {**JOB, "result": {"metrics": {}, "yardsticks": None}},  # no validation split
            {},
            {"result": 3},
            RESULT["metrics"],
            "job_1",
            None,
        ],
        ids=str,
    )
    def test_refuses_what_has_no_result(self, document):
        with pytest.raises(InvalidArgumentError, match=r"^result=.*a FinetuneResult, or the"):
            plots.yardsticks(document)

    def test_refuses_a_metric_that_was_not_measured(self):
        with pytest.raises(InvalidArgumentError, match=r"metric='rouge'.*accuracy, f1, loss"):
            plots.yardsticks(JOB, metric="rouge")
