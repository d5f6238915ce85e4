"""benchmarks.paper.methods.setfit: SetFit gets what it may see, and its answers are measured."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.paper.methods import METHODS
from benchmarks.paper.methods.setfit import run_setfit
from benchmarks.paper.rivals.child import ChildError
from benchmarks.paper.splits import draw_splits
from benchmarks.paper.tasks import TASKS
from tests.benchmarks.paper.tiny import tiny_run

if TYPE_CHECKING:
    from benchmarks.paper.methods.base import Run
    from benchmarks.paper.running import Workplace

pytestmark = pytest.mark.process

# Keeps its requests, and is as sure as 3 : 1 of the class 1 of rows whose first text is long.
SCRIPT = """
import json, math, sys
from pathlib import Path
sys.path.insert(0, ".")
import torch
from benchmarks.paper.rivals.channel import Message, serve

def keep(message):
    with Path({path!r}).open("a") as file:
        file.write(json.dumps(message.content) + "\\n")

def train(message):
    keep(message)
    return Message({{"seconds": 1.5, "trained_weights": 7, "stored_bytes": 28}})

def predict(message):
    keep(message)
    long = [len(row[0]) > 30 for row in message.content["texts"]]
    odds = torch.tensor([[1.0, 3.0] if each else [3.0, 1.0] for each in long])
    return Message(tensors={{"logits": (odds / 4).log()}})

serve({{"train": train, "predict": predict}})
"""


@pytest.fixture
def requests(tmp_path: Path, stand_in: Callable[..., None]) -> Callable[[], list[dict]]:
    """Put a stand-in in SetFit's place; return the function that returns its requests."""
    path, script = tmp_path / "requests.jsonl", tmp_path / "script.py"
    script.write_text(SCRIPT.format(path=str(path)), encoding="utf-8")
    stand_in("setfit", script=script)
    return lambda: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class TestStandIn:
    def test_it_sees_the_labels_of_training_rows_alone(
        self, workplace: Workplace, requests: Callable[[], list[dict]]
    ):
        run = tiny_run(workplace, "rte", seed=5)
        run_setfit(run)
        train, *predictions = requests()
        assert train["texts"] == [[r["sentence1"], r["sentence2"]] for r in run.splits.train]
        assert train["labels"] == [row["label"] for row in run.splits.train]
        assert (train["seed"], train["max_length"]) == (5, 16)
        assert train["folder"] == str(workplace.source.path)
        assert [set(each) for each in predictions] == [{"texts", "request"}] * 2

    @pytest.mark.usefixtures("requests")
    def test_its_answers_are_measured_on_both_splits(self, workplace: Workplace):
        run = tiny_run(workplace, "cola")
        outcome = run_setfit(run)
        for found, rows in (
            (outcome.evaluations[outcome.best], run.splits.validation),
            (outcome.test, run.splits.test),
        ):
            assert found is not None
            assert rows is not None
            right = [(len(row["sentence"]) > 30) == bool(row["label"]) for row in rows]
            assert found["accuracy"] == pytest.approx(sum(right) / len(right))
            losses = [-math.log(0.75 if each else 0.25) for each in right]
            assert found["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
        assert outcome.evaluations[0] != outcome.test

    @pytest.mark.usefixtures("requests")
    def test_its_numbers_are_in_the_outcome(self, workplace: Workplace):
        outcome = run_setfit(replace(tiny_run(workplace, "cola"), splits=without_test(workplace)))
        assert outcome.test is None
        assert (outcome.trained_weights, outcome.stored_bytes) == (7, {"float32": 28})
        assert outcome.seconds == {"selection": 0.0, "training": 1.5}
        assert (outcome.learning_rate, outcome.epochs) == (None, None)

    def test_its_failure_is_an_error_with_its_reason(
        self, workplace: Workplace, stand_in: Callable[..., None], tmp_path: Path
    ):
        script = tmp_path / "script.py"
        script.write_text("import no_such_package", encoding="utf-8")
        stand_in("setfit", script=script)
        with pytest.raises(ChildError, match=r"train: .* No module named 'no_such_package'"):
            run_setfit(tiny_run(workplace, "cola"))


def without_test(workplace: Workplace):
    return replace(draw_splits(workplace.data, TASKS["cola"], shots="40", seed=0), test=None)


@pytest.mark.usefixtures("real_environments")
class TestReal:
    """SetFit itself, in its environment."""

    def test_learns_from_few_rows(self, minilm_workplace: Workplace):
        run = few(minilm_workplace, "cola")
        run = replace(run, splits=replace(run.splits, test=run.splits.train))
        outcome = METHODS["setfit"].run(run)
        assert outcome.test is not None
        assert outcome.test["accuracy"] > 0.9
        assert outcome.evaluations[0]["accuracy"] > 0.5  # of rows with other texts
        whole = METHODS["full"].run(run)
        assert outcome.fingerprint == whole.fingerprint
        # A logistic regression of two classes has one row of weights, a task head has two.
        hidden = 384
        assert outcome.trained_weights == whole.trained_weights - (hidden + 1)
        assert outcome.stored_bytes["float32"] > 4 * outcome.trained_weights

    def test_equal_runs_have_equal_results(self, workplace: Workplace):
        first, again = (METHODS["setfit"].run(few(workplace, "rte")) for _ in range(2))
        assert first.evaluations == again.evaluations
        assert first.test == again.test


def few(workplace: Workplace, task: str) -> Run:
    """Return a run of 16 rows of each class."""
    splits = draw_splits(workplace.data, TASKS[task], shots="16", seed=0)
    return replace(tiny_run(workplace, task, head_start="random"), splits=splits)
