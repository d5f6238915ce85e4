"""The route that lists the workers' backbones."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter

from service.context import GatewayDep  # noqa: TC001 - FastAPI reads it when it runs
from service.http.parameters import After, Limit  # noqa: TC001 - as above
from service.http.responses import problems
from service.operations.documents import BackboneDocument, BackboneList, UnavailableModel
from service.paging import DEFAULT_LIMIT
from store.jobs.workers import find_unavailable, list_backbones

router = APIRouter(tags=["models"])


@router.get("/models", responses=problems(HTTPStatus.NOT_FOUND))
def get_models(
    gateway: GatewayDep, after: After = None, limit: Limit = DEFAULT_LIMIT
) -> BackboneList:
    """List the backbones that a job can use, and the models that it cannot use, with the reason."""
    with gateway.database.read() as session:
        page = list_backbones(session, after=after, limit=limit)
        others = find_unavailable(session)
    data = [BackboneDocument.of_row(backbone) for backbone in page.rows]
    unavailable = [
        UnavailableModel.model_validate({"id": name, **entry}) for name, entry in others.items()
    ]
    return BackboneList.of(data, has_more=page.has_more, unavailable=unavailable)
