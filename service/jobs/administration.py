"""See and cancel the jobs of all tenants, for the API and the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.jobs.documents import AdminJobDocument, AdminJobList
from store.administration.audit import Actor, record
from store.jobs.actions import cancel_as_administrator, list_all_jobs

if TYPE_CHECKING:
    from store.database.connection import Database
    from store.states import JobStatus


class JobAdministration:
    """The jobs of all tenants, without what their owners have written into them.

    Args:
        database: the tables.
        actor: who acts, for the audit trail.
    """

    def __init__(self, database: Database, *, actor: Actor) -> None:
        self._database = database
        self._actor = actor

    def list(
        self,
        *,
        status: JobStatus | None = None,
        tenant: str | None = None,
        after: str | None,
        limit: int,
    ) -> AdminJobList:
        """Return a page of the jobs, newest first.

        Raises:
            NotFoundError: the tenant does not exist, or ``after`` was never one of all jobs.
        """
        with self._database.read() as session:
            page = list_all_jobs(session, tenant_id=tenant, status=status, after=after, limit=limit)
        jobs = [AdminJobDocument.of(job) for job in page.rows]
        return AdminJobList.of(jobs, has_more=page.has_more)

    def cancel(self, job_id: str) -> AdminJobDocument:
        """Cancel a job: at once if no worker runs it, else at its worker's next step.

        Raises:
            NotFoundError: it does not exist.
            IllegalTransitionError: it is finished or already being cancelled.
        """
        with self._database.write() as session:
            job = cancel_as_administrator(session, job_id)
            record(
                session, self._actor, "job.cancelled", tenant_id=job.tenant_id, subject_id=job_id
            )
            return AdminJobDocument.of(job)
