"""The dashboard, static files of the package that call the API, and the API's documentation."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request  # noqa: TC002 - FastAPI reads it when it runs
from starlette.responses import JSONResponse, Response

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


@router.get("/openapi.json")
def get_document(request: Request) -> JSONResponse:
    """Return the OpenAPI document."""
    return JSONResponse(request.app.openapi())


@router.get("/docs")
@public
def get_documentation(request: Request) -> Response:
    """Return the page of the API; it loads the document with the signed-in user's key."""
    return answer_with_file(request, "docs.html")
