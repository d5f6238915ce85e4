"""Routes for the jobs of all tenants, for administrators only."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from service.context import GatewayDep  # noqa: TC001 - FastAPI reads it when it runs
from service.http.auth import ActorDep, administrator
from service.http.parameters import After, JobId, Limit, TenantFilter  # noqa: TC001 - as above
from service.http.responses import problems
from service.jobs.administration import JobAdministration
from service.jobs.documents import (  # noqa: TC001 - FastAPI reads them when it runs
    AdminJobDocument,
    AdminJobList,
)
from service.paging import DEFAULT_LIMIT
from store.states import JobStatus  # noqa: TC001 - as above

router = APIRouter(tags=["administration"], dependencies=[Depends(administrator)])


async def _administration(gateway: GatewayDep, actor: ActorDep) -> JobAdministration:
    return JobAdministration(gateway.database, actor=actor)


JobAdministrationDep = Annotated[JobAdministration, Depends(_administration)]


@router.get("/admin/jobs", responses=problems(HTTPStatus.NOT_FOUND))
def get_all_jobs(
    *,
    jobs: JobAdministrationDep,
    status: Annotated[JobStatus | None, Query(description="of the jobs to list")] = None,
    tenant: TenantFilter = None,
    after: After = None,
    limit: Limit = DEFAULT_LIMIT,
) -> AdminJobList:
    """List the jobs of all tenants, newest first, without their specs and results."""
    return jobs.list(status=status, tenant=tenant, after=after, limit=limit)


@router.post(
    "/admin/jobs/{job_id}/cancel",
    status_code=HTTPStatus.ACCEPTED,
    responses=problems(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
)
def cancel_any_job(jobs: JobAdministrationDep, job_id: JobId) -> AdminJobDocument:
    """Cancel any tenant's job, as its owner would; its events name an administrator."""
    return jobs.cancel(job_id)
