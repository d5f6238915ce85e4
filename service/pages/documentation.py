"""The OpenAPI document, and the page that displays it."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request  # noqa: TC002 - FastAPI reads it when it runs
from starlette.responses import JSONResponse, Response

from service.http.auth import public
from service.http.static_files import answer_with_file

router = APIRouter(include_in_schema=False)

DOCUMENT_PATH = "/openapi.json"


@router.get(DOCUMENT_PATH)
def get_document(request: Request) -> JSONResponse:
    """Return the OpenAPI document."""
    return JSONResponse(request.app.openapi())


@router.get("/docs")
@public
def get_page(request: Request) -> Response:
    """Return the documentation page; it loads the document with the signed-in user's key."""
    return answer_with_file(request, "docs.html")
