"""Routes for jobs: post, list, show, cancel, pause, resume and delete."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request  # noqa: TC002 - FastAPI reads it when it runs
from starlette.responses import Response

from service.context import Gateway, GatewayDep  # noqa: TC001 - FastAPI reads it when it runs
from service.http.auth import ActorDep, CallerDep  # noqa: TC001 - as above
from service.http.bodies import described, read_json
from service.http.parameters import (
    After,
    DryRun,
    IdempotencyKey,
    JobId,
    Limit,
    Name,
    check_key,
)
from service.http.replay import Answer, Keep, Once, request_key
from service.http.responses import problems
from service.jobs.admission import admit
from service.jobs.documents import JobDocument, JobList
from service.jobs.estimates import EstimateDocument, estimate, estimate_artifact_bytes
from service.jobs.hub import is_hub_id
from service.paging import DEFAULT_LIMIT
from store.administration.audit import Actor, record
from store.jobs import actions as jobs
from store.jobs.spec import HubDataset, JobSpec
from store.states import JobStatus  # noqa: TC001 - as above

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from store.administration.keys import Caller
    from store.resources.turns import FairPool
    from store.tables import Job

router = APIRouter(tags=["jobs"])

PATH = "/jobs"
_ACTED_UPON = problems(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)


@router.post(
    PATH,
    status_code=HTTPStatus.ACCEPTED,
    response_model=JobDocument,
    openapi_extra=described(JobSpec),
    responses={
        HTTPStatus.OK: {"description": "With `dry_run=true`", "model": EstimateDocument},
        **problems(
            HTTPStatus.NOT_FOUND,
            HTTPStatus.CONFLICT,
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            HTTPStatus.TOO_MANY_REQUESTS,
            HTTPStatus.SERVICE_UNAVAILABLE,
        ),
    },
)
async def post_job(
    request: Request,
    *,
    gateway: GatewayDep,
    caller: CallerDep,
    key: IdempotencyKey = None,
    dry_run: DryRun = False,
) -> Response:
    """Queue a fine-tune; with `dry_run=true` only estimate its cost."""
    check_key(request)
    body = await read_json(request, JobSpec)
    posts = _posts_of(gateway, body.value)
    in_turn = partial(posts.run, tenant=caller.tenant_id)
    if dry_run:
        document = await in_turn(partial(_estimate, gateway, caller, body.value))
        return Response(document.model_dump_json(), media_type="application/json")
    once = Once(
        database=gateway.database,
        key=request_key(key, tenant_id=caller.tenant_id, path=PATH),
        request_sha256=body.sha256(),
    )
    queue = partial(queue_job, gateway, caller.tenant_id, body.value)
    return await once.answer(lambda keep: in_turn(partial(queue, keep)))


def _posts_of(gateway: Gateway, spec: JobSpec) -> FairPool:
    """Return the threads of a post; posts that wait for the hub must not block the others."""
    asks_hub = is_hub_id(spec.model) or isinstance(spec.dataset, HubDataset)
    return gateway.asking_hub if gateway.settings.allow_hub and asks_hub else gateway.posting


def queue_job(gateway: Gateway, tenant_id: str, spec: JobSpec, keep: Keep) -> Answer:
    """Admit and queue a job in one transaction, then publish a token."""
    settings = gateway.settings
    with gateway.database.write() as session:
        admission = admit(session, tenant_id=tenant_id, spec=spec, settings=settings)
        job = jobs.submit(
            session,
            tenant_id,
            admission.new_job,
            max_queued=settings.tenant_max_queued,
            max_bytes=settings.tenant_max_bytes,
            artifact_bytes=estimate_artifact_bytes(admission),
        )
        answer = Answer(
            status=HTTPStatus.ACCEPTED,
            headers={"Location": f"{PATH}/{job.id}"},
            body=JobDocument.of(job).model_dump_json(),
        )
        keep(session, answer)
    gateway.publisher.publish()
    return answer


def _estimate(gateway: Gateway, caller: Caller, spec: JobSpec) -> EstimateDocument:
    with gateway.database.read() as session:
        admission = admit(session, tenant_id=caller.tenant_id, spec=spec, settings=gateway.settings)
        return estimate(session, admission)


@router.get(PATH, responses=problems(HTTPStatus.NOT_FOUND))
def get_jobs(
    *,
    gateway: GatewayDep,
    caller: CallerDep,
    status: Annotated[JobStatus | None, Query(description="of the jobs to list")] = None,
    name: Name = None,
    after: After = None,
    limit: Limit = DEFAULT_LIMIT,
) -> JobList:
    """List the jobs, newest first."""
    with gateway.database.read() as session:
        page = jobs.list_jobs(
            session, caller.tenant_id, status=status, name=name, after=after, limit=limit
        )
        return JobList.of(_show(session, page.rows), has_more=page.has_more)


@router.get("/jobs/{job_id}", responses=problems(HTTPStatus.NOT_FOUND))
def get_job(gateway: GatewayDep, caller: CallerDep, job_id: JobId) -> JobDocument:
    """Get a job."""
    with gateway.database.read() as session:
        (document,) = _show(session, [jobs.get_job(session, caller.tenant_id, job_id)])
        return document


@router.delete("/jobs/{job_id}", status_code=HTTPStatus.NO_CONTENT, responses=_ACTED_UPON)
async def delete_job(
    gateway: GatewayDep, caller: CallerDep, actor: ActorDep, job_id: JobId
) -> Response:
    """Delete a finished job with its events and artifacts."""
    await run_in_threadpool(_delete, gateway, actor, caller.tenant_id, job_id)
    await gateway.space.free(caller.tenant_id)
    return Response(status_code=HTTPStatus.NO_CONTENT)


def _delete(gateway: Gateway, actor: Actor, tenant_id: str, job_id: str) -> None:
    with gateway.database.write() as session:
        jobs.delete(session, tenant_id, job_id)
        record(session, actor, "job.deleted", tenant_id=tenant_id, subject_id=job_id)


@router.post("/jobs/{job_id}/cancel", status_code=HTTPStatus.ACCEPTED, responses=_ACTED_UPON)
def cancel_job(
    gateway: GatewayDep, caller: CallerDep, actor: ActorDep, job_id: JobId
) -> JobDocument:
    """Cancel a job: at once if no worker runs it, else at its worker's next step."""
    with gateway.database.write() as session:
        job = jobs.cancel(session, caller.tenant_id, job_id)
        record(session, actor, "job.cancelled", tenant_id=caller.tenant_id, subject_id=job_id)
        return JobDocument.of(job)


@router.post("/jobs/{job_id}/pause", status_code=HTTPStatus.ACCEPTED, responses=_ACTED_UPON)
def pause_job(gateway: GatewayDep, caller: CallerDep, job_id: JobId) -> JobDocument:
    """Pause a training job at its next step, with a checkpoint."""
    return _act(gateway, caller, job_id, jobs.pause)


@router.post("/jobs/{job_id}/resume", status_code=HTTPStatus.ACCEPTED, responses=_ACTED_UPON)
def resume_job(gateway: GatewayDep, caller: CallerDep, job_id: JobId) -> JobDocument:
    """Queue a paused job again; it continues from its checkpoint."""
    document = _act(gateway, caller, job_id, jobs.resume)
    gateway.publisher.publish()
    return document


def _act(
    gateway: Gateway, caller: Caller, job_id: str, act: Callable[[Session, str, str], Job]
) -> JobDocument:
    with gateway.database.write() as session:
        return JobDocument.of(act(session, caller.tenant_id, job_id))


def _show(session: Session, rows: Sequence[Job]) -> list[JobDocument]:
    artifacts = jobs.artifacts_by_job(session, rows)
    return [JobDocument.of(job, artifacts.get(job.id, ())) for job in rows]
