"""sweeps: overlap and iterations over the grids of ξ and d, and the runs of each k."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import networkx as nx
import numpy as np
import pytest
import torch

from benchmarks.paper.figures import sweeps
from benchmarks.paper.figures.figure import Numbers, Request
from benchmarks.paper.figures.sweeps import (
    DAMPINGS,
    XIS,
    count_iterations,
    overlap,
    runs_by_k,
    selected,
)
from benchmarks.paper.methods import GROUPS, HEADS_PER_LAYER, METHODS
from hifi.data.settings import DEFAULT_XI, Scoring
from hifi.selection.scoring import select_heads
from hifi.training.preparation import calibration_batches
from tests.architectures import LAYERS
from tests.benchmarks.paper.tiny import line, tiny_run

if TYPE_CHECKING:
    from benchmarks.paper.running import Workplace

CORRELATION = torch.tensor([[0.0, 4.0, 1.0], [4.0, 0.0, 2.0], [1.0, 2.0, 0.0]]).double()
INFORMATION = torch.tensor([1.0, 2.0, 5.0]).double()
RequestFor = Callable[..., Request]


@pytest.fixture(scope="module")
def numbers(request_for: RequestFor) -> Numbers:
    return sweeps.compute(request_for())


class TestCompute:
    def test_the_defaults_overlap_with_themselves(self, numbers: Numbers):
        for name, grid, default in (
            ("xi", XIS, DEFAULT_XI),
            ("damping", DAMPINGS, Scoring.damping),
        ):
            points = {point["value"]: point for point in numbers[name]["points"]}
            assert tuple(points) == grid
            assert points[default]["overlap"] == 1
            assert all(len(point["iterations"]) == LAYERS for point in points.values())
        usual = [
            next(p["iterations"] for p in numbers[name]["points"] if p["value"] == default)
            for name, default in (("xi", DEFAULT_XI), ("damping", Scoring.damping))
        ]
        assert usual[0] == usual[1]

    def test_one_pass_has_the_heads_that_the_library_selects(
        self, request_for: RequestFor, numbers: Numbers
    ):
        asked = request_for()
        run = asked.run(asked.splits(), seed=0)
        ready = run.prepare(has_validation=False)

        def heads(**scoring: float) -> set[tuple[int, int]]:
            batches = calibration_batches(ready, n=300, settings=run.settings)
            chosen = select_heads(ready.loaded.model, batches, k=3, **scoring)
            return {(head.layer, head.head) for head in chosen.heads}

        usual = heads()
        for name, value in (("xi", 0.5), ("damping", 0.1)):
            (point,) = (each for each in numbers[name]["points"] if each["value"] == value)
            assert point["overlap"] == overlap(heads(**{name: value}), usual)

    def test_more_damping_takes_more_iterations(self, numbers: Numbers):
        totals = [sum(point["iterations"]) for point in numbers["damping"]["points"]]
        assert totals == sorted(totals)
        assert totals[0] == LAYERS  # without damping the first step is the last

    def test_without_results_there_is_no_panel_of_k_and_the_notes_say_so(self, numbers: Numbers):
        assert numbers["runs_by_k"] == []
        assert "The panel of k is left out" in "\n".join(sweeps.notes(numbers))
        left = [ax for ax in sweeps.draw(numbers).axes if ax.get_xlabel().endswith("default)")]
        assert [ax.get_xlabel()[0] for ax in left] == ["ξ", "d"]

    def test_results_add_a_panel_of_k(
        self, request_for: RequestFor, numbers: Numbers, tmp_path: Path
    ):
        path = tmp_path / "r.jsonl"
        lines = [line(0.5, method="hifi"), line(0.4, method="hifi-k1")]
        lines += [line(0.9, method="hifi-k1", backbone="another")]
        path.write_text("".join(f"{json.dumps(each)}\n" for each in lines))
        found = runs_by_k(request_for(results=path).lines())
        assert [(p["k"], p["mean"]) for p in found[0]["points"]] == [(1, 40), (3, 50)]
        figure = sweeps.draw({**numbers, "runs_by_k": found})
        assert figure.axes[0].get_xlabel().startswith("k,")
        assert list(figure.axes[0].lines[0].get_ydata()) == [40, 50]


class TestIterations:
    @pytest.mark.parametrize("damping", [0.1, 0.5, 0.85, 0.95])
    def test_the_step_after_which_networkx_changes_as_little(self, damping: float):
        graph = nx.from_numpy_array(CORRELATION.numpy())
        start = {n: float(value) for n, value in enumerate(INFORMATION / INFORMATION.sum())}
        steps = count_iterations(CORRELATION, information=INFORMATION, damping=damping)

        def converges(most: int) -> bool:
            try:
                # networkx stops below N times its tolerance.
                nx.pagerank(
                    graph,
                    alpha=damping,
                    personalization=start,
                    nstart=start,
                    tol=1e-6 / 3,
                    max_iter=most,
                )
            except nx.PowerIterationFailedConvergence:
                return False
            return True

        assert converges(steps)
        assert not converges(steps - 1)


class TestOverlap:
    def test_is_the_jaccard_index(self):
        assert overlap({(0, 1), (0, 2), (1, 0)}, {(0, 1), (1, 0), (1, 3)}) == 0.5

    def test_of_the_three_best_of_each_layer(self):
        importance = torch.tensor([[0.1, 0.4, 0.3, 0.2], [0.4, 0.3, 0.1, 0.2]])
        assert selected(importance) == {(0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 3)}


class TestRunsByK:
    def test_has_mean_and_deviation_over_seeds_in_the_order_of_k(self):
        lines = [
            line(0.50, method="hifi-k1", seed=0),
            line(0.60, method="hifi", seed=0),
            line(0.70, method="hifi", seed=1),
            line(0.90, method="full", seed=0),
            line(0.55, method="hifi-k4", seed=0),
            line(0.10, method="hifi", seed=0, task="rte"),
        ]
        (found,) = runs_by_k(lines)
        assert (found["task"], found["shots"]) == ("cola", "full")
        assert [point["k"] for point in found["points"]] == [1, 3, 4]
        assert [point["mean"] for point in found["points"]] == pytest.approx([50, 65, 55])
        assert [point["sd"] for point in found["points"]] == [
            None,
            pytest.approx(np.std([60, 70], ddof=1)),
            None,
        ]

    def test_one_k_is_no_panel(self):
        assert runs_by_k([line(0.5, method="hifi")]) == []
        assert runs_by_k([]) == []

    def test_the_methods_tune_k_heads_of_each_layer(self, workplace: Workplace):
        assert set(GROUPS["k"]) == set(HEADS_PER_LAYER) <= set(METHODS)
        outcome = METHODS["hifi-k1"].run(tiny_run(workplace, "cola", head_start="probe"))
        assert sorted(layer for layer, _ in outcome.heads) == list(range(LAYERS))
