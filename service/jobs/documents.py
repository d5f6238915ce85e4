"""The JSON documents of jobs, their events and their heads."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from hifi.data.settings import IMPLIED
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


class JobYardsticks(Answer):
    """All metrics of what a tuned model is compared with, on the validation split.

    The majority class, or the mean; a linear probe of the frozen model; and the model before the
    fine-tune, if its own task head was kept. None: there is no such thing.
    """

    majority: dict[str, float | None] | None = None
    probe: dict[str, float | None] | None = None
    untuned: dict[str, float | None] | None = None


class ClassScores(Answer):
    """How well one class is found; ``support`` is the number of its rows."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


class JobReport(Answer):
    """The scores of each class, and the confusion matrix: rows by true, then by predicted class.

    Of the ``classes`` of the task, the 50 with the most rows in the split are shown, in the order
    of the labels; the others are together the last row and column of the matrix. It is null for
    labels of which a row can have several.
    """

    split: Literal["validation", "test"]
    classes: int
    per_class: list[ClassScores]
    confusion: list[list[int]] | None


class JobResult(Answer):
    """The metrics of a job, what they are compared with, and its durations and speed.

    ``metrics`` and ``yardsticks`` are of the validation split, ``test`` of the test split, all with
    the best step's weights. Yardsticks are None without a validation split, ``test`` without
    labelled test rows, ``report`` without both and for tasks without classes; all three for jobs of
    earlier versions.
    """

    metrics: dict[str, float | None]
    test: dict[str, float | None] | None = None
    report: JobReport | None = None
    yardsticks: JobYardsticks | None = None
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


class JobWarning(Answer):
    """What a job's owner should know; the job runs nevertheless."""

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
    warnings: list[JobWarning]
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
            warnings=job.warnings or [],
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


class AdminJobDocument(Listed):
    """A job as administrators see it: whose it is, its state and its age.

    What its owner has written stays the owner's: names, data, columns, metadata, a model of the
    hub, results and messages.

    Attributes:
        model: the backbone of the server; null for a model of the hub.
        worker: the one that runs it.
        error: the code of a failure.
    """

    object: Literal["admin.job"] = "admin.job"
    tenant: str
    status: JobStatus
    model: str | None
    attempt: int
    worker: str | None
    error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, job: Job) -> AdminJobDocument:
        """Build the document from a row."""
        return cls.of_row(
            job,
            tenant=job.tenant_id,
            model=job.model if job.revision is None else None,
            worker=job.worker_id,
            error=None if job.error is None else job.error["code"],
        )


class AdminJobList(Page[AdminJobDocument]):
    """A page of all tenants' jobs, newest first."""


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
    """The scores of a layer's H heads.

    Attributes:
        values: what ranked them, whichever the score.
        information_richness: I of the paper.
        correlation: r of the paper.
        importance: p* of the paper.
    """

    layer: int
    values: Scores
    information_richness: Scores
    correlation: list[Scores]
    importance: Scores
    iterations: int
    selected: list[int]


class HeadsArtifact(StoredFile):
    """The head delta, and its URL."""

    url: str


class HeadsDocument(Answer):
    """All scores of a job's selection, and the selected heads.

    Attributes:
        score: what ranked the heads.
        k: heads per layer; null with a budget.
        budget: heads of the whole model; null without.
    """

    object: Literal["job.heads"] = "job.heads"
    job: str
    model: str
    fingerprint: str
    score: str
    k: int | None
    budget: int | None
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
        """Build the document from a job's stored scores, and its artifact if there is one.

        Stored scores leave out what is the paper's, as those of earlier versions do.
        """
        stored = next((file for file in artifacts if file.encoding == "float32"), None)
        artifact = stored and HeadsArtifact.of_row(stored, url=f"/jobs/{job.id}/heads/delta")
        heads = {**IMPLIED, **(job.heads or {})}
        heads["layers"] = [
            {"values": layer["importance"], **layer} for layer in heads.get("layers", ())
        ]
        return cls.model_validate({**heads, "artifact": artifact})
