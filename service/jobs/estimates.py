"""Estimate a job's cost: trained weights, bytes of the head delta, steps, seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa

from hifi.data.allotments import make_allotment
from hifi.data.classes.names import find_alike, shown_names
from hifi.data.settings import Hyperparameters
from hifi.data.task_types import find_task_type
from service.http.documents import Answer
from service.jobs.documents import JobWarning
from store.states import JobStatus
from store.tables import Job

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from service.jobs.admission import Admission

_MEASURED_JOBS = 5


class ArtifactEstimate(Answer):
    """Bytes of the head delta in each encoding."""

    bytes: dict[str, int]


class ClassesEstimate(Answer):
    """The classes that a job would learn.

    Attributes:
        names: the first of them; none if there are more than a few.
        alike: groups of different classes whose names look alike.
    """

    count: int
    names: list[str]
    alike: list[list[str]]


class EstimateDocument(Answer):
    """The estimated cost of a job; unknown values are null.

    Attributes:
        classes: null if the task has none.
        steps: null also for texts that are read in windows, which only the job counts.
        fraction: trained weights over all weights of the model, task head included.
        seconds: of selection and training steps, at the speed of the last jobs on this backbone;
            without loading and evaluations.
        spec: as it would be stored.
        warnings: what is known about the labels and the task head before the job runs.
    """

    object: Literal["job.estimate"] = "job.estimate"
    classes: ClassesEstimate | None
    trainable_parameters: int | None
    fraction: float | None
    artifact: ArtifactEstimate | None
    steps: int | None
    seconds: float | None
    spec: dict[str, Any]
    warnings: list[JobWarning]


@dataclass(frozen=True, kw_only=True)
class Rates:
    """The speed of a backbone's last jobs; None if none has succeeded.

    Attributes:
        samples_per_second: in training.
        selection_seconds: per calibration sample.
    """

    samples_per_second: float | None
    selection_seconds: float | None


def measure_rates(session: Session, model: str) -> Rates:
    """Return the medians over a backbone's last succeeded jobs, of any tenant."""
    rows = session.execute(
        sa.select(Job.result, Job.spec)
        .where(Job.model == model, Job.status == JobStatus.SUCCEEDED)
        .order_by(Job.finished_at.desc())
        .limit(_MEASURED_JOBS)
    ).all()
    training = [result["samples_per_second"] for result, _ in rows if result]
    selection = [
        result["selection_seconds"] / spec["n_samples"]
        for result, spec in rows
        if result and spec.get("n_samples") and result.get("selection_seconds") is not None
    ]
    return Rates(samples_per_second=_median(training), selection_seconds=_median(selection))


def _median(values: Sequence[float | None]) -> float | None:
    return median(filter(None, values)) if any(values) else None


def estimate(session: Session, admission: Admission) -> EstimateDocument:
    """Estimate an admitted job at the rates of the last jobs; nothing is stored."""
    return estimate_at(admission, rates=measure_rates(session, admission.new_job.model))


def estimate_at(admission: Admission, *, rates: Rates) -> EstimateDocument:
    """Estimate an admitted job at given rates."""
    spec = dict(admission.new_job.spec)
    training, rows = Hyperparameters(**spec["training"]), admission.train_rows
    seconds = None
    if rows is not None and rates.samples_per_second is not None:
        scoring = (rates.selection_seconds or 0.0) * spec["n_samples"]
        samples = rows * training.count_epochs(rows=rows)
        seconds = round(scoring + samples / rates.samples_per_second, 1)
    return EstimateDocument(
        **_sizes(admission),
        classes=_classes(admission),
        steps=None if rows is None else training.count_steps(rows=rows),
        seconds=seconds,
        spec=spec,
        warnings=[JobWarning.model_validate(each) for each in admission.new_job.warnings],
    )


def estimate_artifact_bytes(admission: Admission) -> int:
    """Return the bytes of all encodings together that an admitted job will leave; 0 if unknown."""
    artifact: ArtifactEstimate | None = _sizes(admission)["artifact"]
    return 0 if artifact is None else sum(artifact.bytes.values())


def _classes(admission: Admission) -> ClassesEstimate | None:
    task, count = admission.task.type, admission.num_labels
    if task is None or count is None or not find_task_type(task).has_classes:
        return None
    names = [str(label) for label in admission.classes or ()]
    return ClassesEstimate(
        count=count,
        names=shown_names(names),
        alike=[shown_names(group) for group in find_alike(names)],
    )


def _sizes(admission: Admission) -> Mapping[str, Any]:
    """Return the estimate's fields of the head delta; null if backbone, task or labels are unknown.

    The file's bytes are also null if no worker has measured them, as in earlier versions.
    """
    backbone, labels = admission.backbone, admission.num_labels
    if backbone is None or labels is None or admission.task.type is None:
        return {"trainable_parameters": None, "fraction": None, "artifact": None}
    spec = admission.new_job.spec
    allotment = make_allotment(spec["strategy"], k=spec["k"], budget=spec["budget"])
    heads = allotment.count_heads(num_layers=backbone.num_layers)
    known = backbone.task_heads[admission.task.type]
    task_head = known["base"] + known["per_label"] * labels
    trainable = heads * backbone.weights_per_head + task_head
    files = {
        encoding: file["base"] + heads * file["per_head"] + labels * file["per_label"]
        for encoding, file in known.get("file", {}).items()
    }
    return {
        "trainable_parameters": trainable,
        "fraction": trainable / (backbone.parameters + task_head),
        "artifact": ArtifactEstimate(bytes=files) if files else None,
    }
