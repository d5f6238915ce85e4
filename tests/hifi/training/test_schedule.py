"""hifi.training.schedule: steps, the learning rate of each, and when a run is evaluated."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hifi.data.settings import Hyperparameters
from hifi.training.schedule import MOST_EVALUATIONS, Schedule


def rates_of(total: int, **settings: float) -> list[float]:
    given = Hyperparameters(**settings, epochs=1, batch_size=1)
    schedule = Schedule.of(given, rows=total, hidden_size=384)
    assert schedule.steps == total
    return [schedule.rate_at(step) for step in range(total)]


def evaluations_of(*, epochs: int, steps_per_epoch: int) -> list[int]:
    schedule = Schedule(
        epochs=epochs, steps_per_epoch=steps_per_epoch, learning_rate=1.0, warmup_ratio=0.0
    )
    return [n for n in range(1, schedule.steps + 1) if schedule.is_evaluated_after(n)]


class TestRates:
    def test_rise_and_fall_linearly(self):
        rates = rates_of(10, learning_rate=1.0, warmup_ratio=0.2)
        assert rates == pytest.approx([0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])

    @given(total=st.integers(1, 200), ratio=st.floats(0, 1))
    def test_every_step_learns_and_the_peak_is_the_given_rate(self, total: int, ratio: float):
        rates = rates_of(total, learning_rate=0.5, warmup_ratio=ratio)
        assert min(rates) > 0
        assert max(rates) == 0.5
        peak = rates.index(0.5)
        assert rates[: peak + 1] == sorted(rates[: peak + 1])
        assert rates[peak:] == sorted(rates[peak:], reverse=True)

    def test_are_those_of_the_width_if_none_is_given(self):
        given = Hyperparameters(warmup_ratio=0)
        narrow, wide = (Schedule.of(given, rows=5, hidden_size=width) for width in (32, 64))
        assert narrow.learning_rate == narrow.rate_at(0) == 2 * wide.rate_at(0)
        assert narrow.epochs == given.count_epochs(rows=5)


class TestEvaluations:
    def test_follow_each_of_a_few_epochs(self):
        assert evaluations_of(epochs=3, steps_per_epoch=4) == [4, 8, 12]
        assert len(evaluations_of(epochs=MOST_EVALUATIONS, steps_per_epoch=2)) == MOST_EVALUATIONS

    def test_follow_every_few_of_many_epochs_and_the_last(self):
        found = evaluations_of(epochs=2 * MOST_EVALUATIONS + 1, steps_per_epoch=2)
        assert found[:2] == [6, 12]  # every third epoch
        assert found[-1] == 2 * (2 * MOST_EVALUATIONS + 1)

    @given(epochs=st.integers(1, 500), steps=st.integers(1, 9))
    def test_are_at_the_ends_of_epochs_and_not_too_many(self, epochs: int, steps: int):
        found = evaluations_of(epochs=epochs, steps_per_epoch=steps)
        assert all(each % steps == 0 for each in found)
        assert found[-1] == epochs * steps
        assert min(epochs, MOST_EVALUATIONS // 2) <= len(found) <= MOST_EVALUATIONS
