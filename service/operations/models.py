"""The route that lists the workers' backbones."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter

from service.context import GatewayDep  # noqa: TC001 - FastAPI reads it when it runs
from service.http.parameters import DEFAULT_LIMIT, After, Limit
from service.http.responses import problems
from service.operations.documents import BackboneDocument, BackboneList
from store.jobs.workers import list_backbones

router = APIRouter(tags=["models"])


@router.get("/models", responses=problems(HTTPStatus.NOT_FOUND))
def get_models(
    gateway: GatewayDep, after: After = None, limit: Limit = DEFAULT_LIMIT
) -> BackboneList:
    """List the backbones that a job can use."""
    with gateway.database.read() as session:
        page = list_backbones(session, after=after, limit=limit)
    data = [BackboneDocument.of_row(backbone) for backbone in page.rows]
    return BackboneList.of(data, has_more=page.has_more)
