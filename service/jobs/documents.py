"""The JSON documents of jobs, their events and their heads."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from service.http.documents import Answer, Listed, Page
from service.http.problems import SHOWN_CHARACTERS
from store.errors import NotFoundError
from store.states import JobStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.jobs.tailer import ProgressSeen
    from store.tables import Artifact, Job, JobEvent

Scores = list[float | None]  # NaN is null in JSON

_NUMBER = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)
_IDLE = frozenset({JobStatus.QUEUED, JobStatus.PAUSED, JobStatus.SUCCEEDED})


class JobProgress(Answer):
    """The progress of a job."""

    phase: str | None
    step: int | None
    total_steps: int | None
    fraction: float
    eta_seconds: float | None

    @classmethod
    def of(cls, job: Job | ProgressSeen) -> JobProgress:
        """Build the document.

        A succeeded job has the fraction 1, also if it stopped early. A job without a worker has no
        phase; a failed one keeps the phase in which it failed.
        """
        share = min((job.step or 0) / job.total_steps, 1.0) if job.total_steps else 0.0
        return cls(
            phase=None if job.status in _IDLE else job.phase,
            step=job.step,
            total_steps=job.total_steps,
            fraction=1.0 if job.status is JobStatus.SUCCEEDED else share,
            eta_seconds=job.eta_seconds,
        )


class JobSelection(Answer):
    """The heads that a job tunes."""

    heads: list[tuple[int, int]]
    trainable_parameters: int
    fraction: float


class JobResult(Answer):
    """The metrics of a job, and its durations and speed."""

    metrics: dict[str, float | None]
    best_step: int | None
    train_seconds: float
    selection_seconds: float
    samples_per_second: float | None


class StoredFile(Answer):
    """Size and hash of a file."""

    bytes: int
    sha256: str


class JobArtifact(StoredFile):
    """A head delta: the float32 file, and the files of all encodings."""

    encodings: dict[str, StoredFile]


class JobFailure(Answer):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class JobDocument(Listed):
    """One requested fine-tune."""

    object: Literal["job"] = "job"
    status: JobStatus
    tenant: str
    name: str | None
    metadata: dict[str, str]
    spec: dict[str, Any]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    progress: JobProgress
    attempt: int
    selection: JobSelection | None
    result: JobResult | None
    artifact: JobArtifact | None
    error: JobFailure | None

    @classmethod
    def of(cls, job: Job, artifacts: Sequence[Artifact] = ()) -> JobDocument:
        """Build the document from a row and its artifacts."""
        return cls.of_row(
            job,
            tenant=job.tenant_id,
            metadata=job.meta,
            progress=JobProgress.of(job),
            artifact=_artifact(artifacts),
        )


def _artifact(artifacts: Sequence[Artifact]) -> JobArtifact | None:
    files = {artifact.encoding: StoredFile.of_row(artifact) for artifact in artifacts}
    whole = files.get("float32")
    if whole is None:
        return None
    return JobArtifact.of_row(whole, encodings=files)


class JobList(Page[JobDocument]):
    """A page of jobs, newest first."""


class EventDocument(Listed):
    """Something that happened to a job."""

    object: Literal["job.event"] = "job.event"
    created_at: datetime
    level: str
    type: str
    message: str
    data: dict[str, Any]

    @classmethod
    def of(cls, event: JobEvent) -> EventDocument:
        """Build the document from a row."""
        return cls.of_row(event, id=event_id(event.job_id, event.number))


class EventList(Page[EventDocument]):
    """A page of a job's events, oldest first."""


def event_id(job_id: str, number: int) -> str:
    """Return an event's id: ``evt_``, the job's id without its prefix, and the event's number."""
    return f"{_events_of(job_id)}_{number}"


def _events_of(job_id: str) -> str:
    return "evt_" + job_id.partition("_")[2]


def event_number(job: Job, identifier: str, *, param: str) -> int:
    """Return the number of a job's event.

    Args:
        job: the event's job.
        identifier: the event's id, unchecked.
        param: the parameter that held it, for the error.

    Raises:
        NotFoundError: the job has no such event.
    """
    owner, _, number = identifier.rpartition("_")
    is_number = _NUMBER.fullmatch(number) is not None
    if owner != _events_of(job.id) or not is_number or int(number) > job.last_event:
        raise NotFoundError("event to continue after", identifier[:SHOWN_CHARACTERS], param=param)
    return int(number)


class LayerHeads(Answer):
    """The scores of a layer's H heads."""

    layer: int
    information_richness: Scores
    correlation: list[Scores]
    importance: Scores
    iterations: int
    selected: list[int]


class HeadsArtifact(StoredFile):
    """The head delta, and its URL."""

    url: str


class HeadsDocument(Answer):
    """All scores of a job's selection, and the selected heads."""

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
        """Build the document from a job's stored scores, and its artifact if there is one."""
        stored = next((file for file in artifacts if file.encoding == "float32"), None)
        artifact = stored and HeadsArtifact.of_row(stored, url=f"/jobs/{job.id}/heads/delta")
        return cls.model_validate({**(job.heads or {}), "artifact": artifact})
