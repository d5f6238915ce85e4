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
from service.http.tables import without_tables
from service.inference.client import InferenceDep  # noqa: TC001 - FastAPI reads it when it runs
from service.operations.metrics import CONTENT_TYPE, MetricsDep
from service.operations.readiness import (  # noqa: TC001 - FastAPI reads them when it runs
    ReadinessDep,
    TablesDep,
)
from store.database.connection import OUTAGES
from store.errors import ProblemError, SchemaError
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
@without_tables
async def get_health() -> Health:
    """Return that the process is alive, whatever the state of its dependencies."""
    return Health()


@router.get("/readyz", responses=problems(HTTPStatus.SERVICE_UNAVAILABLE))
@public
@without_tables
async def get_readiness(readiness: ReadinessDep, tables: TablesDep) -> Ready:
    """Report whether tables, artifact store and disk can be written, and what else is missing.

    Tables of another version have the code `tables_version`.
    """
    report = await readiness.report()
    if report.failing:
        code = "unavailable"
        detail = f"no answer in time, or an error, from: {', '.join(report.failing)}"
        try:
            await tables.admit()
        except SchemaError as error:
            code, detail = error.code, str(error)
        raise ProblemError(
            code,
            status=HTTPStatus.SERVICE_UNAVAILABLE,
            detail=detail,
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
def get_metrics(gateway: GatewayDep, metrics: MetricsDep, inference: InferenceDep) -> Response:
    """Return the metrics of the queue, of this process, and of its inference processes."""
    telemetry = None
    try:
        with gateway.database.read() as session:
            telemetry = measure(session)
    except OUTAGES as error:
        _log.warning("metrics_without_tables", error=str(error))
    content = metrics.render(telemetry, inference=inference.states())
    return Response(content, headers={"Content-Type": CONTENT_TYPE})
