"""The OpenAPI document: FastAPI's, plus the responses and schemas that it cannot derive."""

from __future__ import annotations

from http import HTTPStatus
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi.openapi.utils import get_openapi
from fastapi.routing import iter_route_contexts
from pydantic.json_schema import models_json_schema

from service.examples import EXAMPLES, PARAMETERS, page_of
from service.http.auth import is_public
from service.http.documents import Problem
from service.http.responses import REFERENCE, problems
from service.inference.documents import (
    INPUTS,
    JobInput,
    MixedPredictionRequest,
    PredictionRequest,
    SharedInput,
)
from service.predictions.documents import NewBatchPrediction
from service.tenants.documents import KeyReplacement, NewKey, NewQuotas, NewTenant
from store.jobs.spec import JobSpec

if TYPE_CHECKING:
    from fastapi import FastAPI

_ABOUT = (
    "Fine-tune only the attention heads that matter for a task. Every error is an "
    "`application/problem+json` document; every response has the request's id in `x-request-id`."
)
# Models of bodies that routes parse themselves, and of the error document.
_EXTRA_MODELS = (
    *(JobSpec, NewTenant, NewQuotas, NewKey, KeyReplacement, Problem),
    *(PredictionRequest, MixedPredictionRequest, JobInput, SharedInput, *INPUTS),
    NewBatchPrediction,
)
# Errors that the middleware or any route can return.
_EVERYWHERE = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.SERVICE_UNAVAILABLE,
)


def document(app: FastAPI, *, requires_keys: bool) -> dict[str, Any]:
    """Return the OpenAPI document of an application.

    Args:
        app: with all its routes.
        requires_keys: whether callers need a key, ``HIFI_AUTH=keys``.
    """
    whole = get_openapi(
        title="HiFi", version=version("hifi"), description=_ABOUT, routes=app.routes
    )
    public = {
        (route.path_format, method.lower())
        for route in iter_route_contexts(app.routes)
        if is_public(route.endpoint)
        for method in route.methods or ()
    }
    operations = (
        (path, method, operation)
        for path, item in whole["paths"].items()
        for method, operation in item.items()
    )
    for path, method, operation in operations:
        responses = operation["responses"]
        responses.pop("422", None)  # FastAPI's own format
        statuses = list(_EVERYWHERE)
        if (path, method) in public:
            operation["security"] = []
        elif requires_keys:
            statuses.append(HTTPStatus.UNAUTHORIZED)
        for status, described in problems(*statuses).items():
            responses.setdefault(str(status), described)
    components = whole.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    models = [(model, "validation") for model in _EXTRA_MODELS]
    _, definitions = models_json_schema(models, ref_template=REFERENCE)  # type: ignore[arg-type]
    schemas.update(definitions["$defs"])
    _add_examples(whole)
    if requires_keys:
        components["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer", "description": "hifi_…"}
        }
        whole["security"] = [{"key": []}]
    return whole


def _add_examples(whole: dict[str, Any]) -> None:
    """Add an example to every document, list, upload and id in a path."""
    schemas = whole["components"]["schemas"]
    for name, example in EXAMPLES.items():
        schemas[name]["examples"] = [example]
        listed = name.removesuffix("Document") + "List"
        if listed in schemas:
            schemas[listed].setdefault("examples", [page_of(example)])
    for item in whole["paths"].values():
        for operation in item.values():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    parameter["example"] = PARAMETERS[parameter["name"]]
