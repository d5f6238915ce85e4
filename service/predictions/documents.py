"""The JSON documents of batch predictions."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from service.http.documents import Answer, Body, Listed, Name, Page
from service.jobs.documents import JobFailure, StoredFile
from store.predictions.spec import Format, PredictionSpec, SplitName
from store.states import PredictionStatus  # noqa: TC001 - pydantic reads it when it runs

if TYPE_CHECKING:
    from store.tables import Prediction

PATH = "/predictions"
MAX_JOBS = 32


class NewBatchPrediction(Body):
    """The rows of a data set, to be answered by one or several jobs."""

    dataset: str = Field(description="its id, or its name if no other data set has it")
    jobs: list[str] = Field(
        min_length=1, max_length=MAX_JOBS, description="ids of succeeded jobs, each once"
    )
    split: SplitName = Field(default="train", description="of the data set")
    format: Format = Field(default="parquet", description="of the result")
    truncate: bool = Field(
        default=True,
        description="cut texts of too many tokens, as in training; false: their rows get an error",
    )
    name: Name | None = Field(default=None, description="for people")


class BatchPredictionProgress(Answer):
    """How many rows have their answers."""

    rows: int
    total_rows: int
    fraction: float
    eta_seconds: float | None

    @classmethod
    def of(cls, prediction: Prediction) -> BatchPredictionProgress:
        """Build the document."""
        left = prediction.total_rows - prediction.rows
        speed = prediction.rows_per_second
        return cls(
            rows=prediction.rows,
            total_rows=prediction.total_rows,
            fraction=prediction.rows / prediction.total_rows if prediction.total_rows else 0.0,
            eta_seconds=round(left / speed, 1) if speed else None,
        )


class BatchPredictionArtifact(StoredFile):
    """The result: every row with its answers beside it."""

    url: str


class BatchPredictionDocument(Listed):
    """A batch prediction."""

    object: Literal["prediction"] = "prediction"
    status: PredictionStatus
    tenant: str
    name: str | None
    dataset: str
    split: SplitName
    jobs: list[str]
    format: Format
    truncate: bool
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    progress: BatchPredictionProgress
    artifact: BatchPredictionArtifact | None
    error: JobFailure | None

    @classmethod
    def of(cls, prediction: Prediction) -> BatchPredictionDocument:
        """Build the document from a row."""
        spec = PredictionSpec.model_validate(prediction.spec)
        artifact = None
        if prediction.sha256 is not None:
            url = f"{PATH}/{prediction.id}/result"
            artifact = BatchPredictionArtifact.of_row(prediction, url=url)
        return cls.of_row(
            prediction,
            tenant=prediction.tenant_id,
            dataset=prediction.dataset_id,
            split=spec.split,
            jobs=[job.id for job in spec.jobs],
            format=spec.format,
            truncate=spec.truncate,
            progress=BatchPredictionProgress.of(prediction),
            artifact=artifact,
        )


class BatchPredictionList(Page[BatchPredictionDocument]):
    """A page of batch predictions, newest first."""
