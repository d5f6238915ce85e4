"""Check a batch prediction before it is queued: its data set, its jobs, and their columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hifi.data.spec import names_in, request_columns
from service.http.parameters import check_identifier
from service.http.problems import invalid_request, unprocessable
from service.jobs.artifacts import HEAD_DELTA, not_ready
from store.datasets import find_dataset
from store.errors import NotFoundError
from store.jobs.actions import get_job, list_artifacts
from store.predictions.actions import NewPrediction
from store.predictions.spec import PredictingJob, PredictionSpec

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from service.predictions.documents import NewBatchPrediction
    from store.tables import Dataset

# Roughly, to refuse at the door what cannot fit; each stored file is checked against the quota.
_ANSWER_BYTES = 64
_SHOWN_COLUMNS = 10


def admit(session: Session, tenant_id: str, body: NewBatchPrediction) -> NewPrediction:
    """Check a request and fill in the columns that each job reads.

    Raises:
        NotFoundError: the data set or a job does not exist, or belongs to another tenant.
        DatasetAmbiguousError: several data sets have the name.
        ProblemError: 409 ``not_ready``; 422 ``split_missing`` or ``column_missing``, or a job that
            occurs twice.
    """
    try:
        dataset = find_dataset(session, tenant_id, body.dataset)
    except NotFoundError as error:
        raise NotFoundError("dataset", body.dataset[:128], param="dataset") from error
    split = dataset.splits.get(body.split)
    if split is None:
        there = " and ".join(dataset.splits)
        raise unprocessable(
            "split_missing",
            f"dataset {dataset.id} has no split {body.split!r}; it has {there}",
            param="split",
        )
    if len(set(body.jobs)) < len(body.jobs):
        raise invalid_request("a job occurs more than once", param="jobs")
    jobs = [
        _read_job(session, tenant_id, job_id, dataset, param=f"jobs.{number}")
        for number, job_id in enumerate(body.jobs)
    ]
    return NewPrediction(
        name=body.name,
        dataset_id=dataset.id,
        spec=PredictionSpec(
            split=body.split, format=body.format, truncate=body.truncate, jobs=jobs
        ),
        total_rows=split["rows"],
        result_bytes=split["bytes"] + _ANSWER_BYTES * split["rows"] * len(jobs),
    )


def _read_job(
    session: Session, tenant_id: str, job_id: str, dataset: Dataset, *, param: str
) -> PredictingJob:
    check_identifier(job_id, kind="job", param=param)
    try:
        job = get_job(session, tenant_id, job_id)
    except NotFoundError as error:
        raise NotFoundError("job", job_id, param=param) from error
    if not list_artifacts(session, job):
        raise not_ready(job_id, status=job.status, what=HEAD_DELTA)
    task = job.spec.get("task") or {}
    columns = request_columns(task)
    missing = [column for column in names_in(columns) if column not in dataset.columns]
    if missing or not columns:
        there = ", ".join(map(repr, list(dataset.columns)[:_SHOWN_COLUMNS]))
        more = ", …" * (len(dataset.columns) > _SHOWN_COLUMNS)
        wanted = (
            f"has no column {missing[0]!r}, which job {job_id} reads"
            if missing
            else (f"cannot be read: job {job_id} does not record its columns")
        )
        raise unprocessable(
            "column_missing", f"dataset {dataset.id} {wanted}; it has {there}{more}", param=param
        )
    return PredictingJob(id=job_id, type=task["type"], columns=dict(columns))
