"""Planes in the space of a model's weights: their points, and where other weights are projected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]  # by the parameter's name


@dataclass(frozen=True, eq=False)
class Plane:
    """The weights θ = centre + a · first + b · second."""

    centre: Weights
    first: Weights
    second: Weights

    @cached_property
    def _products(self) -> Tensor:
        """The inner products of the directions, float64 ``[2, 2]``."""
        mixed = inner(self.first, self.second)
        squares = inner(self.first, self.first), inner(self.second, self.second)
        return torch.tensor([[squares[0], mixed], [mixed, squares[1]]], dtype=torch.float64)

    def at(self, a: float, b: float) -> dict[str, Tensor]:
        """Return the weights at these coordinates."""
        return {
            name: centre + a * self.first[name] + b * self.second[name]
            for name, centre in self.centre.items()
        }

    def project(self, weights: Weights) -> tuple[float, float, float]:
        """Return the coordinates of the nearest point, and how far the weights are from it.

        The distance is a share of that from the centre; 0 at the centre.

        Args:
            weights: those that are missing are the centre's.
        """
        moved = {name: value - self.centre[name] for name, value in weights.items()}
        sides = torch.tensor(
            [inner(moved, self.first), inner(moved, self.second)], dtype=torch.float64
        )
        place = torch.linalg.solve(self._products, sides)
        whole = inner(moved, moved)
        rest = max(0.0, whole - float(place @ sides))
        share = (rest / whole) ** 0.5 if whole > 0 else 0.0
        return float(place[0]), float(place[1]), share


def inner(first: Weights, second: Weights) -> float:
    """Return the inner product of two differences of weights; missing ones are 0."""
    names = first.keys() & second.keys()
    return sum(float((first[name].double() * second[name].double()).sum()) for name in names)


def through(start: Weights, first_end: Weights, second_end: Weights) -> Plane:
    """Return the plane through a start and two ends, with directions of length 1 at right angles.

    The first points from the start to the first end.
    """
    first = _unit(_difference(first_end, start))
    second = _difference(second_end, start)
    along = inner(first, second)
    second = _unit({name: value - along * first[name] for name, value in second.items()})
    return Plane(start, first, second)


def around(centre: Weights, *, seed: int) -> Plane:
    """Return a plane of two random directions, filter-normalised (Li et al., NeurIPS 2018).

    Each row of a matrix is as long as that of the centre; vectors, such as biases and those of
    norms, do not change.
    """
    generator = torch.Generator().manual_seed(seed)
    return Plane(centre, *(_random_direction(centre, generator) for _ in range(2)))


def losses_on(
    plane: Plane, loss: Callable[[Weights], float], *, a: list[float], b: list[float]
) -> list[list[float]]:
    """Return the loss at each point of a grid: a row for each ``b``, a column for each ``a``."""
    return [[loss(plane.at(x, y)) for x in a] for y in b]


def _random_direction(centre: Weights, generator: torch.Generator) -> dict[str, Tensor]:
    found = {}
    for name, value in centre.items():
        if value.dim() < 2:
            found[name] = torch.zeros_like(value)
            continue
        drawn = torch.randn(value.shape, generator=generator, dtype=value.dtype).flatten(1)
        lengths = value.flatten(1).norm(dim=1, keepdim=True)
        drawn = drawn * lengths / drawn.norm(dim=1, keepdim=True)
        found[name] = drawn.view(value.shape)
    return found


def _difference(end: Weights, start: Weights) -> dict[str, Tensor]:
    return {name: end.get(name, value) - value for name, value in start.items()}


def _unit(direction: dict[str, Tensor]) -> dict[str, Tensor]:
    length = inner(direction, direction) ** 0.5
    return {name: value / length for name, value in direction.items()}
