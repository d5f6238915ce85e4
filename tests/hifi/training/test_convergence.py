"""hifi.training.convergence: whether a training loss still falls clearly."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from hifi.training.convergence import LossThirds

NOISE = 0.05


def after(curve: Callable[[float], float], *, steps: int = 60, until: int | None = None):
    """Return the sums over a noisy curve of the share of the steps that is done."""
    generator = np.random.default_rng(0)
    found = LossThirds()
    for step in range(until or steps):
        loss = curve(step / steps) + NOISE * generator.standard_normal()
        found = found.add(float(loss), step=step, total_steps=steps)
    return found


class TestIsFalling:
    @pytest.mark.parametrize(
        ("curve", "is_falling"),
        [
            (lambda done: 2 - done, True),
            (lambda done: 2 - 0.5 * done**2, True),
            (lambda done: np.exp(-9 * done), False),  # levels off
            (lambda done: 1 + 0 * done, False),  # noise alone
            (lambda done: 1 + done, False),
            (lambda done: 1 - 0.02 * done, False),  # less than the noise
        ],
    )
    def test_of_curves(self, curve, is_falling):
        assert after(curve).is_falling is is_falling

    def test_needs_fifteen_steps(self):
        assert after(lambda done: 9 - 9 * done, steps=15).is_falling
        assert not after(lambda done: 9 - 9 * done, steps=14).is_falling

    def test_not_of_a_run_that_stopped_before_its_last_third(self):
        assert not after(lambda done: 2 - done, until=40).is_falling
        assert after(lambda done: 2 - done, until=50).is_falling

    def test_not_of_a_run_without_steps(self):
        assert not LossThirds().is_falling


def test_sums_are_those_of_the_thirds():
    found = LossThirds()
    for step in range(7):
        found = found.add(float(step), step=step, total_steps=7)
    assert found.counts == (3, 2, 2)
    assert found.sums == (3.0, 7.0, 11.0)
    assert found.squares == (5.0, 25.0, 61.0)


def test_json_restores_every_bit():
    found = after(lambda done: 1 / 3 + done)
    assert LossThirds.of(json.loads(json.dumps(found.to_json()))) == found
