"""Find a job's stored files for its owner."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from store.errors import ProblemError
from store.jobs.actions import get_job, list_artifacts

if TYPE_CHECKING:
    from store.database.connection import Database
    from store.states import JobStatus
    from store.tables import Artifact, Job

HEAD_DELTA = "head delta"


def find_artifact(
    database: Database, tenant_id: str, job_id: str, *, encoding: str
) -> tuple[Job, Artifact]:
    """Return a tenant's job and its head delta in an encoding or as ``lora``, in one transaction.

    Raises:
        NotFoundError: the job does not exist, or belongs to another tenant.
        ProblemError: 409 ``not_ready``.
    """
    with database.read() as session:
        job = get_job(session, tenant_id, job_id)
        for artifact in list_artifacts(session, job):
            if artifact.encoding == encoding:
                return job, artifact
    raise not_ready(job_id, status=job.status, what=HEAD_DELTA)


def not_ready(job_id: str, *, status: JobStatus, what: str) -> ProblemError:
    """Return the 409 for a result that a job does not have yet, or will never have."""
    ending = "and will never have one" if status.is_finished else "yet"
    return ProblemError(
        "not_ready",
        status=HTTPStatus.CONFLICT,
        detail=f"job {job_id} is {status} and has no {what} {ending}",
    )
