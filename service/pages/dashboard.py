"""The dashboard: static files of the package; the page calls the API like any other client."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request  # noqa: TC002 - FastAPI reads it when it runs
from starlette.responses import Response  # noqa: TC002 - as above

from service.http.auth import public
from service.http.static_files import answer_with_file

router = APIRouter(include_in_schema=False)


@router.get("/")
@public
def get_dashboard(request: Request) -> Response:
    """Return the dashboard's page."""
    return answer_with_file(request, "index.html")


@router.get("/static/{name}")
@public
def get_static(request: Request, name: str) -> Response:
    """Return a static file of a page."""
    return answer_with_file(request, name)
