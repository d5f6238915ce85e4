"""The route that downloads a job's merged model from the inference process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from http import HTTPStatus

from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request  # noqa: TC002 - FastAPI reads it when it runs
from starlette.responses import Response

from service.context import GatewayDep  # noqa: TC001 - as above
from service.http.auth import CallerDep  # noqa: TC001 - as above
from service.http.downloads import TAR, content_disposition, file_name
from service.http.parameters import JobId  # noqa: TC001 - as above
from service.http.responses import problems
from service.inference.client import InferenceDep, ProxiedFile
from service.jobs.artifacts import find_artifact
from store.orders import DeltaOrder
from store.waiting import while_connected

router = APIRouter(tags=["results"])


async def _hold_merge(gateway: GatewayDep, caller: CallerDep) -> AsyncIterator[None]:
    """Count a download against its tenant's limit until it is sent or the caller disconnects.

    Raises:
        ProblemError: 429 ``too_many_merges``.
    """
    with gateway.shares.merges.hold(caller.tenant_id):
        yield


@router.get(
    "/jobs/{job_id}/merged",
    response_class=Response,
    responses={
        HTTPStatus.OK: {
            "description": "The merged model with its tokenizer, as `save_pretrained` writes it",
            "content": {TAR: {"schema": {"type": "string", "format": "binary"}}},
        },
        **problems(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS),
    },
    dependencies=[Depends(_hold_merge)],
)
async def get_merged(
    request: Request,
    gateway: GatewayDep,
    inference: InferenceDep,
    caller: CallerDep,
    job_id: JobId,
) -> Response:
    """Download the backbone with the head delta merged into it, in a tar file."""
    job, delta = await run_in_threadpool(
        find_artifact, gateway.database, caller.tenant_id, job_id, encoding="float32"
    )
    order = DeltaOrder.of(job, delta)
    merging = inference.merged_model(order, request_id=request.state.request_id)
    upstream = await while_connected(request.receive, merging)
    name = file_name(job.name, fallback=job.id, suffix="-merged.tar")
    headers = {"Content-Disposition": content_disposition(name)}
    return ProxiedFile(upstream, headers=headers, media_type=TAR)
