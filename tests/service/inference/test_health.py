"""service.inference.health: when a process is left out, and when it comes back."""

from __future__ import annotations

import pytest

from service.inference.health import Health


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(clock)


def seconds_until_used(health: Health, clock: Clock) -> float:
    """Return how long it must answer before it is used."""
    health.note_answer()
    started = clock.now
    while not health.is_used:
        clock.now += 0.25
        health.note_answer()
    return clock.now - started


class TestHealth:
    def test_a_process_is_used_before_anything_is_known(self, health: Health):
        assert health.is_used
        assert not health.is_answering

    def test_one_failure_leaves_it_out_until_it_has_answered_for_two_seconds(
        self, health: Health, clock: Clock
    ):
        health.note_failure()
        assert not health.is_used
        assert seconds_until_used(health, clock) == 2.0

    def test_a_failure_during_the_trial_starts_it_again(self, health: Health, clock: Clock):
        health.note_failure()
        health.note_answer()
        clock.now += 1.9
        health.note_failure()
        assert seconds_until_used(health, clock) == 2.0

    def test_one_that_fails_again_and_again_is_tried_for_longer_each_time(
        self, health: Health, clock: Clock
    ):
        trials = []
        for _ in range(8):
            health.note_failure()
            trials.append(seconds_until_used(health, clock))
        assert trials == [2, 4, 8, 16, 32, 64, 64, 64]

    def test_one_that_was_steady_for_a_minute_is_trusted_as_before(
        self, health: Health, clock: Clock
    ):
        for _ in range(3):
            health.note_failure()
            seconds_until_used(health, clock)
        clock.now += 60
        health.note_failure()
        assert seconds_until_used(health, clock) == 2.0

    def test_it_was_here_if_it_answered_lately(self, health: Health, clock: Clock):
        health.note_failure()
        assert not health.was_here(seconds=60)  # it never answered
        health.note_failure(was_reached=True)
        assert health.was_here(seconds=60)
        health.note_answer()
        assert health.was_here(seconds=60)
        health.note_failure()
        clock.now += 59
        health.note_failure()
        assert health.was_here(seconds=60)
        clock.now += 1
        assert not health.was_here(seconds=60)
