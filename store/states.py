"""The states of a job, and the allowed moves between them."""

from __future__ import annotations

from enum import StrEnum


class JobStatus(StrEnum):
    """The state of a job."""

    QUEUED = "queued"
    VALIDATING = "validating"
    SELECTING = "selecting"
    TRAINING = "training"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_leased(self) -> bool:
        """Whether a worker holds the job."""
        return self in LEASED

    @property
    def is_finished(self) -> bool:
        """Whether the state is final."""
        return self in FINISHED


_S = JobStatus
LEASED = frozenset({_S.VALIDATING, _S.SELECTING, _S.TRAINING, _S.PAUSING, _S.CANCELLING})
# What the owner requested of a running job, and the state in which it stops.
STOPPING = {_S.PAUSING: _S.PAUSED, _S.CANCELLING: _S.CANCELLED}
FINISHED = frozenset({_S.SUCCEEDED, _S.FAILED, _S.CANCELLED})
LIVE = frozenset(_S) - FINISHED

# A job that resumes from a checkpoint goes from validating straight to training.
TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    _S.QUEUED: frozenset({_S.VALIDATING, _S.CANCELLED}),
    _S.VALIDATING: frozenset({_S.SELECTING, _S.TRAINING, _S.QUEUED, _S.CANCELLING, _S.FAILED}),
    _S.SELECTING: frozenset({_S.TRAINING, _S.QUEUED, _S.CANCELLING, _S.FAILED}),
    _S.TRAINING: frozenset({_S.SUCCEEDED, _S.QUEUED, _S.PAUSING, _S.CANCELLING, _S.FAILED}),
    _S.PAUSING: frozenset({_S.PAUSED, _S.CANCELLING, _S.FAILED}),
    _S.PAUSED: frozenset({_S.QUEUED, _S.CANCELLED}),
    _S.CANCELLING: frozenset({_S.CANCELLED}),
    _S.SUCCEEDED: frozenset(),
    _S.FAILED: frozenset(),
    _S.CANCELLED: frozenset(),
}

_PHASES = (_S.VALIDATING, _S.SELECTING, _S.TRAINING)  # in the order in which a job reaches them


def has_reached(status: JobStatus, phase: JobStatus) -> bool:
    """Return whether a job is in a phase of its work or a later one."""
    if status not in _PHASES or phase not in _PHASES:
        return False
    return _PHASES.index(status) >= _PHASES.index(phase)


def may_follow(new: JobStatus, old: JobStatus) -> bool:
    """Return whether a job may move from ``old`` to ``new``."""
    return new in TRANSITIONS[old]


class PredictionStatus(StrEnum):
    """The state of a batch prediction."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_finished(self) -> bool:
        """Whether the state is final."""
        return self not in UNFINISHED_PREDICTIONS


# An inference process holds a lease in the last two.
UNFINISHED_PREDICTIONS = frozenset(
    {PredictionStatus.QUEUED, PredictionStatus.RUNNING, PredictionStatus.CANCELLING}
)
