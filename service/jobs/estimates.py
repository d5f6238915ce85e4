"""What a job would take: trained weights, bytes of the head delta, steps, seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict

from store.states import JobStatus
from store.tables import Job

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from service.jobs.admission import Admission
    from store.tables import Backbone

_MEASURED_JOBS = 5
# Of the file beside its numbers: measured on files of the library, see the test.
_TENSOR_ENTRY_BYTES = 90  # name, type, shape and place in the header
_SCORE_BYTES = 20  # a float64 as JSON, with its comma
_METADATA_BYTES = 1000
_LAYER_BYTES = 130
_LABEL_BYTES = 10  # a class's name


class ArtifactEstimate(BaseModel):
    """Bytes of the head delta in each encoding."""

    model_config = ConfigDict(frozen=True)

    bytes: dict[str, int]


class EstimateDocument(BaseModel):
    """What a job would take; what nobody can know yet is null.

    Attributes:
        fraction: trained weights over all of the model, its task head included.
        seconds: of selection and training steps, as the last jobs on this backbone went; loading
            and evaluations come on top.
        spec: as it would be stored.
    """

    model_config = ConfigDict(frozen=True)

    object: Literal["job.estimate"] = "job.estimate"
    trainable_parameters: int | None
    fraction: float | None
    artifact: ArtifactEstimate | None
    steps: int | None
    seconds: float | None
    spec: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How fast the last jobs of a backbone went; None where none has finished.

    Attributes:
        samples_per_second: in training.
        selection_seconds: of one calibration sample.
    """

    samples_per_second: float | None
    selection_seconds: float | None


def measure_rates(session: Session, model: str) -> Rates:
    """Take the median over the last finished jobs of a backbone, whoever's they were."""
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
    return Rates(
        samples_per_second=_median(training),
        selection_seconds=_median(selection),
    )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value]
    return median(known) if known else None


def estimate(session: Session, admission: Admission) -> EstimateDocument:
    """Say what an admitted job would take, by the rates of the last jobs.

    Args:
        session: a transaction.
        admission: of the job; nothing is stored.
    """
    return estimate_at(admission, rates=measure_rates(session, admission.new_job.model))


def estimate_at(admission: Admission, *, rates: Rates) -> EstimateDocument:
    """Say what an admitted job would take at given rates."""
    spec = dict(admission.new_job.spec)
    size = _Size.of(admission)
    epochs, rows = spec["training"]["epochs"], admission.train_rows
    seconds = None
    if rows is not None and rates.samples_per_second is not None:
        scoring = (rates.selection_seconds or 0.0) * spec["n_samples"]
        seconds = round(scoring + rows * epochs / rates.samples_per_second, 1)
    return EstimateDocument(
        trainable_parameters=None if size is None else size.trainable,
        fraction=None if size is None else size.fraction,
        artifact=None if size is None else ArtifactEstimate(bytes=size.bytes()),
        steps=None if rows is None else -(-rows // spec["training"]["batch_size"]) * epochs,
        seconds=seconds,
        spec=spec,
    )


@dataclass(frozen=True, kw_only=True)
class _Size:
    """The sizes of a head delta.

    Attributes:
        heads: tuned ones.
        layers: of the backbone; all of them have scores.
        task_head: its trained weights.
    """

    backbone: Backbone
    heads: int
    layers: int
    task_head: int
    labels: int

    @classmethod
    def of(cls, admission: Admission) -> _Size | None:
        """Take the sizes of an admitted job; None where backbone, task or labels are not known."""
        backbone, labels = admission.backbone, admission.num_labels
        if backbone is None or labels is None or admission.task.type is None:
            return None
        spec = admission.new_job.spec
        layers = backbone.num_layers
        open_layers = layers // 2 if spec["strategy"] == "mid-top" else layers
        head = backbone.task_heads[admission.task.type]
        return cls(
            backbone=backbone,
            heads=spec["k"] * open_layers,
            layers=layers,
            task_head=head["base"] + head["per_label"] * labels,
            labels=labels,
        )

    @property
    def trainable(self) -> int:
        """Count the trained weights."""
        return self.heads * self.backbone.weights_per_head + self.task_head

    @property
    def fraction(self) -> float:
        """Give their share of the model."""
        return self.trainable / (self.backbone.parameters + self.task_head)

    @property
    def _rows_per_head(self) -> int:
        """Count the tuned rows of a head, or key-value group: its query, key and value."""
        group = self.backbone.num_heads // self.backbone.num_key_value_heads
        return (group + 2) * self.backbone.head_dim

    def bytes(self) -> dict[str, int]:
        """Give the bytes of the file in each encoding."""
        rows = self.heads * self._rows_per_head
        weights = rows * self.backbone.hidden_size
        exact = 4 * (self.trainable - weights)  # biases and task head, always float32
        biases = 3 if self.trainable - self.task_head > weights else 0
        tensors = self.heads * (3 + biases) * _TENSOR_ENTRY_BYTES
        scales = 4 * rows + 3 * self.heads * _TENSOR_ENTRY_BYTES
        fixed = exact + tensors + self._metadata_bytes()
        return {
            "float32": fixed + 4 * weights,
            "bfloat16": fixed + 2 * weights,
            "int8": fixed + weights + scales,
        }

    def _metadata_bytes(self) -> int:
        heads = self.backbone.num_key_value_heads
        scores = self.layers * (heads * (heads - 1) + 2 * heads) * _SCORE_BYTES
        names = self.labels * _LABEL_BYTES
        return _METADATA_BYTES + scores + self.layers * _LAYER_BYTES + names
