"""Routes for predictions: with one job's head delta, or with those of several jobs."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import nullcontext
from functools import partial
from http import HTTPStatus
from typing import TypeVar

from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request  # noqa: TC002 - FastAPI reads it when it runs
from starlette.responses import Response

from service.context import Gateway, GatewayDep  # noqa: TC001 - as above
from service.http.auth import CallerDep  # noqa: TC001 - as above
from service.http.bodies import described, parse_json, receive
from service.http.parameters import JobId  # noqa: TC001 - as above
from service.http.responses import problems
from service.http.waiting import in_thread_if_large
from service.inference.client import (  # noqa: TC001 - as above
    InferenceClient,
    InferenceDep,
    Reply,
)
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
_ITEM_BYTES = 1 << 10
_Body = TypeVar("_Body", PredictionRequest, MixedPredictionRequest)

router = APIRouter(tags=["predictions"])


async def _hold_prediction(
    request: Request, gateway: GatewayDep, caller: CallerDep
) -> AsyncIterator[None]:
    """Count a request against its tenant's limit until it is answered; let a large one wait.

    Raises:
        ProblemError: 429 ``too_many_predictions``; or ``too_many_requests``, as for one that was
            not larger a moment ago.
    """
    length = request.headers.get("content-length", "")
    size = int(length) if length.isdecimal() else MAX_BODY_BYTES
    shares, tenant = gateway.shares, caller.tenant_id
    turn = shares.large_predictions.hold(tenant) if size > _LARGE_BYTES else nullcontext()
    with (
        shares.predictions.hold(tenant),
        shares.late_refusals.hold((tenant, request.url.path), size=size),
    ):
        async with turn:
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
    seconds = gateway.settings.infer_timeout_seconds

    async def make_plan(body: PredictionRequest, size: int) -> Plan:
        plan = partial(plan_for_job, body, order, timeout_seconds=seconds)
        return await in_thread_if_large(plan, size=size)

    plan, size = await _receive_plan(request, gateway, PredictionRequest, make_plan)
    return await _carry_out(request, gateway, inference, plan, size=size)


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
    """Predict with the head deltas of any jobs, mixed freely; each item names its job, or several.

    An input for several jobs runs once through the layers that none of their deltas changes.
    """
    seconds = gateway.settings.infer_timeout_seconds

    async def make_plan(body: MixedPredictionRequest, _: int) -> Plan:
        return await run_in_threadpool(
            plan_mixed, body, gateway.database, caller.tenant_id, timeout_seconds=seconds
        )

    plan, size = await _receive_plan(request, gateway, MixedPredictionRequest, make_plan)
    return await _carry_out(request, gateway, inference, plan, size=size)


async def _receive_plan(
    request: Request,
    gateway: Gateway,
    model: type[_Body],
    make_plan: Callable[[_Body, int], Awaitable[Plan]],
) -> tuple[Plan, int]:
    """Receive a request and plan it; its body is not kept.

    Args:
        request: a text in it that is not Unicode is the error of its item, found by the plan.
        gateway: its tenants plan one request at a time.
        model: of the body.
        make_plan: called with the body and the size.

    Returns:
        The plan, and the bytes of text that take as long as the request; many short inputs take
        long, too.
    """
    raw = await receive(request)  # a slow one holds up no other request
    async with gateway.shares.planning.hold(request.state.caller.tenant_id):
        body = await parse_json(request, raw, model, most_values=MAX_VALUES, keeps_surrogates=True)
        size = len(raw) + _ITEM_BYTES * len(body.inputs)
        return await make_plan(body, size), size


async def _carry_out(
    request: Request, gateway: Gateway, inference: InferenceClient, plan: Plan, *, size: int
) -> Response:
    """Send a plan's order to the inference processes, and return the response.

    Raises:
        CallerLeftError: the caller disconnected; the requests to the processes are cancelled.
        ProblemError: 503 ``inference_unavailable``, or a process's error about its load.
    """
    replies: list[Reply] = []
    if plan.order is not None:
        predicting = inference.predict(plan.order, size=size, request_id=request.state.request_id)
        replies = await while_connected(request.receive, predicting)
    async with gateway.shares.planning.hold(request.state.caller.tenant_id):
        document = await in_thread_if_large(partial(answer, plan, replies), size=size)
    return Response(document, media_type="application/json")
