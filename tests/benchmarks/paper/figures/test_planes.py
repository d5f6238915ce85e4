"""benchmarks.paper.figures.planes: coordinates, directions and losses computed by hand."""

from __future__ import annotations

import pytest
import torch

from benchmarks.paper.figures.planes import Plane, around, inner, losses_on, through

START = {"w": torch.tensor([[1.0, 0.0], [0.0, 0.0]]), "b": torch.tensor([2.0, 0.0])}


def moved(w: list[list[float]], b: list[float]) -> dict[str, torch.Tensor]:
    return {"w": START["w"] + torch.tensor(w), "b": START["b"] + torch.tensor(b)}


class TestThrough:
    first_end = moved([[3.0, 0.0], [0.0, 0.0]], [0.0, 4.0])  # 5 away
    second_end = moved([[3.0, 2.0], [0.0, 0.0]], [0.0, 4.0])  # 2 further, at a right angle

    def test_has_the_ends_at_their_distances(self):
        plane = through(START, self.first_end, self.second_end)
        assert plane.project(START) == (0, 0, 0)
        assert plane.project(self.first_end) == pytest.approx((5, 0, 0), abs=1e-6)
        assert plane.project(self.second_end) == pytest.approx((5, 2, 0), abs=1e-6)
        back = plane.at(5, 2)
        assert all(torch.allclose(back[name], self.second_end[name]) for name in START)

    def test_directions_have_length_1_at_right_angles(self):
        plane = through(START, self.first_end, self.second_end)
        assert inner(plane.first, plane.first) == pytest.approx(1)
        assert inner(plane.second, plane.second) == pytest.approx(1)
        assert inner(plane.first, plane.second) == pytest.approx(0, abs=1e-7)

    def test_a_point_outside_the_plane_is_told(self):
        plane = through(START, self.first_end, self.second_end)
        outside = moved([[3.0, 0.0], [0.0, 12.0]], [0.0, 4.0])  # 12 off, 13 from the start
        assert plane.project(outside) == pytest.approx((5, 0, 12 / 13), abs=1e-6)

    def test_weights_that_are_missing_did_not_change(self):
        end = {"w": START["w"] + 1}
        plane = through(START, end, moved([[0.0] * 2] * 2, [0.0, 1.0]))
        assert plane.project(end) == pytest.approx((2, 0, 0), abs=1e-6)


class TestAround:
    def test_rows_are_as_long_as_the_centres_and_vectors_stay(self):
        centre = {"w": torch.tensor([[3.0, 4.0], [0.0, 2.0]]), "b": torch.tensor([1.0])}
        plane = around(centre, seed=0)
        for direction in (plane.first, plane.second):
            assert direction["w"].norm(dim=1).tolist() == pytest.approx([5, 2])
            assert direction["b"].tolist() == [0]
        assert not torch.equal(plane.first["w"], plane.second["w"])

    def test_projects_onto_directions_that_are_not_at_right_angles(self):
        plane = Plane(
            {"w": torch.zeros(2)}, {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([1.0, 1.0])}
        )
        assert plane.project({"w": torch.tensor([3.0, 2.0])}) == pytest.approx((1, 2, 0))


class TestLosses:
    def test_a_row_for_each_b_and_a_column_for_each_a(self):
        plane = Plane(
            {"w": torch.zeros(2)}, {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}
        )
        found = losses_on(
            plane, lambda w: float(w["w"][0] ** 2 + 10 * w["w"][1]), a=[-2.0, 1.0], b=[0.0, 3.0]
        )
        assert found == [[4, 1], [34, 31]]
