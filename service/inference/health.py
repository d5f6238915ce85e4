"""Whether an inference process is used: when it is left out, and when it comes back."""

from __future__ import annotations

import time
from collections.abc import Callable

_TRIAL_SECONDS = 2.0  # how long a process must answer before it is used again
_LONGEST_TRIAL_SECONDS = 64.0
_STEADY_SECONDS = 60.0  # a process that fails sooner after its return gets a longer trial


class Health:
    """The health of one process, from failed connections and from probes.

    A process that cannot be reached is left out. It comes back after it has answered every probe
    for a trial time, which doubles each time that it soon fails again: so a process that crashes
    repeatedly does not draw requests again and again.

    Args:
        clock: in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._trial = _TRIAL_SECONDS
        self._answers_since: float | None = None  # during a trial
        self._returned_at = -_STEADY_SECONDS
        self.is_used = True
        self.is_answering = False  # not known before the first answer
        self.failures = 0
        self._last_here_at: float | None = None

    def note_failure(self, *, was_reached: bool = False) -> None:
        """Leave the process out; ``was_reached`` if it ended after it was reached."""
        now = self._clock()
        self.failures += 1
        if self.is_used:
            is_steady = now - self._returned_at >= _STEADY_SECONDS
            self._trial = _TRIAL_SECONDS if is_steady else self._trial * 2
            self._trial = min(self._trial, _LONGEST_TRIAL_SECONDS)
        if self.is_answering or was_reached:
            self._last_here_at = now
        self.is_used = self.is_answering = False
        self._answers_since = None

    def note_answer(self) -> None:
        """Note that the process answers; use it again once its trial is over."""
        now = self._clock()
        self.is_answering = True
        if self.is_used:
            return
        if self._answers_since is None:
            self._answers_since = now
        if now - self._answers_since >= self._trial:
            self.is_used = True
            self._returned_at = now

    def was_here(self, *, seconds: float) -> bool:
        """Return whether it answers, or did so at most ``seconds`` ago."""
        if self.is_answering:
            return True
        return self._last_here_at is not None and self._clock() - self._last_here_at < seconds
