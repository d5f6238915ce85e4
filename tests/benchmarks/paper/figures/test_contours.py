"""contours: trajectories from one start, their own losses, and the grid around them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from benchmarks.paper.figures import contours
from benchmarks.paper.figures.figure import Numbers, Request
from tests.architectures import HIDDEN, LAYERS, QUERY_HEADS

RequestFor = Callable[..., Request]
STEPS = 4


@pytest.fixture(scope="module")
def ends(request_for: RequestFor) -> Numbers:
    return contours.compute(request_for(steps=STEPS, grid=5))


@pytest.fixture(scope="module")
def drawn(request_for: RequestFor) -> Numbers:
    return contours.compute(request_for(steps=STEPS, directions="random"))


class TestTrajectories:
    def test_hifi_changes_the_rows_of_three_heads_of_each_layer_and_the_task_head(
        self, request_for: RequestFor
    ):
        asked = request_for(steps=2)
        trajectory = contours._trajectory(asked, asked.splits(), "hifi")
        start, end = trajectory[0], trajectory[2]
        projections = [name for name in end if ".attention.self." in name]
        assert len(projections) >= LAYERS * 5  # a key's bias has no gradient
        assert {name.partition(".")[0] for name in end if name not in projections} == {"classifier"}
        width = HIDDEN // QUERY_HEADS
        for name in projections:
            changed = (end[name] != start[name]).view(QUERY_HEADS, width, -1).any(-1).any(-1)
            assert changed.sum() == 3

    def test_full_changes_every_layer_from_the_same_start(self, request_for: RequestFor):
        asked = request_for(steps=2)
        trajectory = contours._trajectory(asked, asked.splits(), "full")
        hifi = contours._trajectory(asked, asked.splits(), "hifi")
        assert all(torch.equal(value, hifi[0][name]) for name, value in trajectory[0].items())
        assert sum(".intermediate.dense.weight" in name for name in trajectory[2]) == LAYERS


class TestEnds:
    def test_both_start_at_one_point_and_end_in_the_plane(self, ends: Numbers):
        (panel,) = ends["panels"]
        hifi, full = panel["trajectories"]["hifi"], panel["trajectories"]["full"]
        assert [point["steps"] for point in hifi] == list(range(STEPS + 1))
        assert hifi[0] == full[0]
        assert (hifi[0]["a"], hifi[0]["b"], hifi[0]["off_plane"]) == (0, 0, 0)
        assert hifi[-1]["b"] == pytest.approx(0, abs=1e-5)
        assert hifi[-1]["a"] > 0
        assert full[-1]["b"] > 0
        for points in (hifi, full):
            assert points[-1]["off_plane"] < 1e-2
            assert points[1]["off_plane"] > points[-1]["off_plane"]

    def test_the_grid_reaches_beyond_the_trajectories(self, ends: Numbers):
        (panel,) = ends["panels"]
        places = np.array(
            [(p["a"], p["b"]) for points in panel["trajectories"].values() for p in points]
        )
        for axis, values in enumerate((panel["a"], panel["b"])):
            low, high = places[:, axis].min(), places[:, axis].max()
            assert len(values) == 5
            assert values[0] == pytest.approx(low - 0.3 * (high - low))
            assert values[-1] == pytest.approx(high + 0.3 * (high - low))

    def test_losses_are_those_of_the_weights(self, ends: Numbers):
        # Both methods change the loss; the plane's losses surround those of the trajectories.
        (panel,) = ends["panels"]
        values = np.array(panel["loss"], dtype=float)
        assert values.shape == (5, 5)
        own = [p["loss"] for points in panel["trajectories"].values() for p in points]
        assert len({round(each, 6) for each in own}) > 2
        assert values.min() <= min(panel["trajectories"]["hifi"][-1]["loss"], own[0]) + 1e-3
        assert values.max() >= own[0] - 1e-3

    def test_the_drawn_lines_are_the_trajectories(self, ends: Numbers):
        axes = contours.draw(ends).axes[0]
        lines = {line.get_label(): line for line in axes.lines}
        for name, points in ends["panels"][0]["trajectories"].items():
            assert list(lines[name].get_xdata()) == [point["a"] for point in points]
        assert "loss on 8 validation rows" in "\n".join(contours.notes(ends))


class TestRandom:
    def test_each_result_is_at_the_centre_of_its_own_plane(self, drawn: Numbers):
        assert [panel["name"] for panel in drawn["panels"]] == ["around hifi", "around full"]
        for panel, name in zip(drawn["panels"], ("hifi", "full"), strict=True):
            assert list(panel["trajectories"]) == [name]
            last = panel["trajectories"][name][-1]
            assert (last["a"], last["b"], last["off_plane"]) == (0, 0, 0)
            assert panel["a"] == panel["b"] == [-1, 0, 1]
            assert panel["loss"][1][1] == pytest.approx(last["loss"], abs=1e-6)

    def test_the_notes_say_what_such_a_plane_cannot_show(self, drawn: Numbers):
        assert "hardly moves along random directions" in "\n".join(contours.notes(drawn))


def test_few_rows_are_drawn_and_measured_on_the_validation_split(request_for: RequestFor):
    numbers = contours.compute(request_for(steps=1, shots="16", rows=100))
    assert (numbers["shots"], numbers["rows"]) == ("16", 12)
    assert contours.draw({**numbers, "panels": numbers["panels"]}).axes
