"""Routes for predictions: with one job's head delta, or with those of several jobs."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import nullcontext
from functools import partial
from http import HTTPStatus

from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request  # noqa: TC002 - FastAPI reads it when it runs
from starlette.responses import Response

from service.context import GatewayDep  # noqa: TC001 - as above
from service.http.auth import CallerDep  # noqa: TC001 - as above
from service.http.bodies import described, read_json
from service.http.parameters import JobId  # noqa: TC001 - as above
from service.http.responses import problems
from service.http.waiting import in_thread_if_large
from service.inference.client import InferenceClient, InferenceDep  # noqa: TC001 - as above
from service.inference.documents import (
    MAX_VALUES,
    MixedPredictionRequest,
    PredictionList,
    PredictionRequest,
)
from service.inference.plan import Plan, answer, find_order, plan_for_job, plan_mixed
from store.waiting import while_connected

PATHS = re.compile(r"(/jobs/[^/]+)?/predict")
MAX_BODY_BYTES = 16 << 20  # for images
_LARGE_BYTES = 1 << 20

router = APIRouter(tags=["predictions"])


async def _hold_prediction(
    request: Request, gateway: GatewayDep, caller: CallerDep
) -> AsyncIterator[None]:
    """Count a request against its tenant's limit until it is answered.

    Raises:
        ProblemError: 429 ``too_many_predictions``.
    """
    size = request.headers.get("content-length", "")
    is_large = not size.isdecimal() or int(size) > _LARGE_BYTES
    shares = gateway.shares
    large = shares.large_predictions.hold(caller.tenant_id) if is_large else nullcontext()
    with shares.predictions.hold(caller.tenant_id), large:
        yield


_REFUSALS = problems(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, HTTPStatus.TOO_MANY_REQUESTS)


@router.post(
    "/jobs/{job_id}/predict",
    response_model=PredictionList,
    openapi_extra=described(PredictionRequest),
    responses={**_REFUSALS, **problems(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)},
    dependencies=[Depends(_hold_prediction)],
)
async def predict(
    request: Request,
    gateway: GatewayDep,
    inference: InferenceDep,
    caller: CallerDep,
    job_id: JobId,
) -> Response:
    """Predict with a job's head delta; an invalid item gets an error as its answer."""
    order = await run_in_threadpool(find_order, gateway.database, caller.tenant_id, job_id)
    body = await read_json(request, PredictionRequest, most_values=MAX_VALUES)
    seconds = gateway.settings.infer_timeout_seconds
    make_plan = partial(plan_for_job, body.value, order, timeout_seconds=seconds)
    plan = await in_thread_if_large(make_plan, size=len(body.raw))
    return await _carry_out(request, inference, plan)


@router.post(
    "/predict",
    response_model=PredictionList,
    openapi_extra=described(MixedPredictionRequest),
    responses=_REFUSALS,
    dependencies=[Depends(_hold_prediction)],
)
async def predict_mixed(
    request: Request, gateway: GatewayDep, inference: InferenceDep, caller: CallerDep
) -> Response:
    """Predict with the head deltas of any jobs, mixed freely; each item names its job."""
    body = await read_json(request, MixedPredictionRequest, most_values=MAX_VALUES)
    plan = await run_in_threadpool(
        plan_mixed,
        body.value,
        gateway.database,
        caller.tenant_id,
        timeout_seconds=gateway.settings.infer_timeout_seconds,
    )
    return await _carry_out(request, inference, plan)


async def _carry_out(request: Request, inference: InferenceClient, plan: Plan) -> Response:
    """Send a plan's order to the inference process, and return the response.

    Raises:
        CallerLeftError: the caller disconnected; the request to the inference process is cancelled.
        ProblemError: 503 ``inference_unavailable``, or the process's error about its load.
    """
    content = None
    if plan.order is not None:
        predicting = inference.predict(
            plan.order,
            timeout_seconds=plan.timeout_seconds,
            request_id=request.state.request_id,
        )
        content = await while_connected(request.receive, predicting)
    document = await in_thread_if_large(partial(answer, plan, content), size=len(content or b""))
    return Response(document, media_type="application/json")
