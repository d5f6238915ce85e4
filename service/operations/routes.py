"""Routes for operators: health, readiness and metrics."""

from __future__ import annotations

from http import HTTPStatus
from typing import Literal

import structlog
from fastapi import APIRouter, Depends
from pydantic import BaseModel
from starlette.responses import Response

from service.context import GatewayDep  # noqa: TC001 - FastAPI reads it when it runs
from service.http.auth import administrator, public
from service.http.responses import problems
from service.operations.metrics import CONTENT_TYPE, MetricsDep
from service.operations.readiness import ReadinessDep  # noqa: TC001 - FastAPI reads it when it runs
from store.database.connection import OUTAGES
from store.errors import ProblemError
from store.jobs.telemetry import measure

_log = structlog.get_logger(__name__)

router = APIRouter(tags=["operations"])


class Health(BaseModel):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    """The gateway can work; some dependencies may be missing.

    Attributes:
        degraded: ``broker``: jobs wait for the reconciler; ``worker``: jobs wait for a worker;
            ``inference``: no predictions and no merged models.
    """

    status: Literal["ready"] = "ready"
    degraded: list[Literal["broker", "worker", "inference"]]


@router.get("/healthz")
@public
async def get_health() -> Health:
    """Return that the process is alive, whatever the state of its dependencies."""
    return Health()


@router.get("/readyz", responses=problems(HTTPStatus.SERVICE_UNAVAILABLE))
@public
async def get_readiness(readiness: ReadinessDep) -> Ready:
    """Report whether tables and artifact store answer, and which other dependencies are missing."""
    report = await readiness.report()
    if report.failing:
        raise ProblemError(
            "unavailable",
            status=HTTPStatus.SERVICE_UNAVAILABLE,
            detail=f"no answer in time, or an error, from: {', '.join(report.failing)}",
            extra={"failing": report.failing, "degraded": report.degraded},
        )
    return Ready.model_validate({"degraded": report.degraded})


@router.get(
    "/metrics",
    response_class=Response,
    dependencies=[Depends(administrator)],
    responses={
        HTTPStatus.OK: {"description": "Prometheus' text format", "content": {"text/plain": {}}},
        **problems(HTTPStatus.FORBIDDEN),
    },
)
def get_metrics(gateway: GatewayDep, metrics: MetricsDep) -> Response:
    """Return the metrics of the queue and of this process."""
    telemetry = None
    try:
        with gateway.database.read() as session:
            telemetry = measure(session)
    except OUTAGES as error:
        _log.warning("metrics_without_tables", error=str(error))
    return Response(metrics.render(telemetry), headers={"Content-Type": CONTENT_TYPE})
