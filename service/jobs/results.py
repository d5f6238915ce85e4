"""Routes for a job's results: scores of the heads, head delta, LoRA adapter."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Literal

from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request  # noqa: TC002 - FastAPI reads it when it runs
from starlette.responses import Response

from service.context import Gateway, GatewayDep  # noqa: TC001 - as above
from service.files import file_answers, hold_download
from service.http.auth import CallerDep  # noqa: TC001 - as above
from service.http.downloads import TAR, answer_with_file, file_name
from service.http.parameters import JobId  # noqa: TC001 - as above
from service.http.responses import problems
from service.jobs.artifacts import find_artifact, not_ready
from service.jobs.documents import HeadsDocument
from store.jobs.actions import get_job, list_artifacts
from store.storage import Blob
from store.waiting import while_connected

if TYPE_CHECKING:
    from store.administration.keys import Caller
    from store.tables import Artifact, Job

Encoding = Literal["float32", "bfloat16", "int8"]

_OCTETS = "application/octet-stream"

router = APIRouter(tags=["results"])


@router.get("/jobs/{job_id}/heads", responses=problems(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT))
def get_heads(gateway: GatewayDep, caller: CallerDep, job_id: JobId) -> HeadsDocument:
    """Return the scores of all heads, and the selected heads."""
    with gateway.database.read() as session:
        job = get_job(session, caller.tenant_id, job_id, with_heads=True)
        if job.heads is None:
            raise not_ready(job.id, status=job.status, what="heads")
        return HeadsDocument.of(job, list_artifacts(session, job))


@router.head("/jobs/{job_id}/heads/delta", include_in_schema=False)
@router.get(
    "/jobs/{job_id}/heads/delta",
    response_class=Response,
    responses=file_answers(_OCTETS),
    dependencies=[Depends(hold_download)],
)
async def get_delta(
    request: Request,
    gateway: GatewayDep,
    caller: CallerDep,
    job_id: JobId,
    encoding: Encoding = "float32",
) -> Response:
    """Download the head delta, a safetensors file, or the part of it that ``Range`` names."""
    suffix = ".safetensors" if encoding == "float32" else f".{encoding}.safetensors"
    found = await _find(gateway, caller, job_id, encoding=encoding)
    return await _stored(request, gateway, *found, suffix=suffix, media_type=_OCTETS)


@router.head("/jobs/{job_id}/heads/lora", include_in_schema=False)
@router.get(
    "/jobs/{job_id}/heads/lora",
    response_class=Response,
    responses=file_answers(TAR),
    dependencies=[Depends(hold_download)],
)
async def get_lora(
    request: Request, gateway: GatewayDep, caller: CallerDep, job_id: JobId
) -> Response:
    """Download the head delta as a PEFT adapter, in a tar file."""
    found = await _find(gateway, caller, job_id, encoding="lora")
    return await _stored(request, gateway, *found, suffix="-lora.tar", media_type=TAR)


async def _find(
    gateway: Gateway, caller: Caller, job_id: str, *, encoding: str
) -> tuple[Job, Artifact]:
    return await run_in_threadpool(
        find_artifact, gateway.database, caller.tenant_id, job_id, encoding=encoding
    )


async def _stored(
    request: Request,
    gateway: Gateway,
    job: Job,
    artifact: Artifact,
    *,
    suffix: str,
    media_type: str,
) -> Response:
    answering = answer_with_file(
        request,
        Blob(sha256=artifact.sha256, bytes=artifact.bytes),
        read=lambda start, end: gateway.storage.stream(
            artifact.tenant_id, artifact.sha256, start=start, end=end
        ),
        name=file_name(job.name, fallback=job.id, suffix=suffix),
        media_type=media_type,
    )
    return await while_connected(request.receive, answering)
