"""What a job's events and heads look like to callers: names as in the contract."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from service.jobs.schemas import StoredFile
from store.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from store.tables import Artifact, Job, JobEvent

Scores = list[float | None]  # a score that is no number is null in JSON

_NUMBER = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)
_SHOWN_CHARACTERS = 64


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class EventDocument(_Answer):
    """Something that happened to a job."""

    id: str
    object: Literal["job.event"] = "job.event"
    created_at: datetime
    level: str
    type: str
    message: str
    data: dict[str, Any]

    @classmethod
    def of(cls, event: JobEvent) -> EventDocument:
        """Show a row."""
        return cls(
            id=event_id(event.job_id, event.number),
            created_at=event.created_at,
            level=event.level,
            type=event.type,
            message=event.message,
            data=event.data,
        )


class EventList(_Answer):
    """A page of a job's events, oldest first."""

    object: Literal["list"] = "list"
    data: list[EventDocument]
    has_more: bool
    first_id: str | None
    last_id: str | None


def event_id(job_id: str, number: int) -> str:
    """Name an event: ``evt_`` with its job's characters and its number."""
    return f"{_events_of(job_id)}_{number}"


def _events_of(job_id: str) -> str:
    return "evt_" + job_id.partition("_")[2]


def event_number(job: Job, identifier: str, *, param: str) -> int:
    """Tell which of a job's events an id names.

    Args:
        job: whose it must be.
        identifier: from anywhere.
        param: where it comes from, for the error.

    Raises:
        NotFoundError: it names none of them; another job's event is like none at all.
    """
    owner, _, number = identifier.rpartition("_")
    is_number = _NUMBER.fullmatch(number) is not None
    if owner != _events_of(job.id) or not is_number or int(number) > job.last_event:
        raise NotFoundError("event to go on after", identifier[:_SHOWN_CHARACTERS], param=param)
    return int(number)


class LayerHeads(_Answer):
    """The scores of a layer's H heads."""

    layer: int
    information_richness: Scores
    correlation: list[Scores]
    importance: Scores
    iterations: int
    selected: list[int]


class HeadsArtifact(StoredFile):
    """The head delta, and where it is."""

    url: str


class HeadsDocument(_Answer):
    """All scores of a job's selection, and the heads that were selected by them."""

    object: Literal["job.heads"] = "job.heads"
    job: str
    model: str
    fingerprint: str
    k: int
    xi: float
    d: float
    strategy: str
    teleport: str
    n_samples: int
    num_layers: int
    num_heads: int
    head_dim: int
    trainable_parameters: int
    fraction: float
    layers: list[LayerHeads]
    artifact: HeadsArtifact | None

    @classmethod
    def of(cls, job: Job, artifacts: Sequence[Artifact]) -> HeadsDocument:
        """Show the scores that a job keeps, and its artifact where it has one already."""
        stored = next((file for file in artifacts if file.encoding == "float32"), None)
        artifact = stored and {
            "bytes": stored.bytes,
            "sha256": stored.sha256,
            "url": f"/jobs/{job.id}/heads/delta",
        }
        return cls.model_validate({**(job.heads or {}), "artifact": artifact})
