"""The OpenAPI document, and a page that shows it."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request  # noqa: TC002 - FastAPI reads it when it runs
from starlette.responses import HTMLResponse, JSONResponse

router = APIRouter(include_in_schema=False)

DOCUMENT_PATH = "/openapi.json"


@router.get(DOCUMENT_PATH)
def get_document(request: Request) -> JSONResponse:
    """Give the OpenAPI document."""
    return JSONResponse(request.app.openapi())


@router.get("/docs")
def get_page() -> HTMLResponse:
    """Show it to people."""
    return get_swagger_ui_html(openapi_url=DOCUMENT_PATH, title="HiFi")
