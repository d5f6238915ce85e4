"""Routes for batch predictions: post, list, show, cancel, download the result, delete."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request  # noqa: TC002 - FastAPI reads it when it runs
from starlette.responses import Response

from service.context import Gateway, GatewayDep  # noqa: TC001 - as above
from service.files import file_answers, hold_download
from service.http.auth import ActorDep, CallerDep  # noqa: TC001 - as above
from service.http.bodies import described, read_json
from service.http.downloads import answer_with_file, file_name
from service.http.parameters import (
    After,
    IdempotencyKey,
    Limit,
    Name,
    PredictionId,
    check_key,
)
from service.http.replay import Answer, Keep, Once, request_key
from service.http.responses import problems
from service.paging import DEFAULT_LIMIT
from service.predictions.admission import admit
from service.predictions.documents import (
    PATH,
    BatchPredictionDocument,
    BatchPredictionList,
    NewBatchPrediction,
)
from store.administration.audit import Actor, record
from store.errors import ProblemError
from store.predictions import actions as predictions
from store.states import PredictionStatus  # noqa: TC001 - as above
from store.storage import Blob
from store.waiting import while_connected

if TYPE_CHECKING:
    from store.tables import Prediction

router = APIRouter(tags=["batch predictions"])

_MEDIA_TYPES = {"parquet": "application/vnd.apache.parquet", "jsonl": "application/jsonl"}
_ACTED_UPON = problems(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)


@router.post(
    PATH,
    status_code=HTTPStatus.ACCEPTED,
    response_model=BatchPredictionDocument,
    openapi_extra=described(NewBatchPrediction),
    responses=problems(
        HTTPStatus.NOT_FOUND,
        HTTPStatus.CONFLICT,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.TOO_MANY_REQUESTS,
    ),
)
async def post_prediction(
    request: Request, *, gateway: GatewayDep, caller: CallerDep, key: IdempotencyKey = None
) -> Response:
    """Queue a batch prediction: the rows of a data set, answered by one or several jobs.

    It runs in the background of the inference process. A row that cannot be read gets an error.
    """
    check_key(request)
    body = await read_json(request, NewBatchPrediction)
    once = Once(
        database=gateway.database,
        key=request_key(key, tenant_id=caller.tenant_id, path=PATH),
        request_sha256=body.sha256(),
    )
    queue = partial(_queue, gateway, caller.tenant_id, body.value)
    return await once.answer(
        lambda keep: gateway.posting.run(partial(queue, keep), tenant=caller.tenant_id)
    )


def _queue(gateway: Gateway, tenant_id: str, body: NewBatchPrediction, keep: Keep) -> Answer:
    settings = gateway.settings
    with gateway.database.write() as session:
        prediction = predictions.submit(
            session,
            tenant_id,
            admit(session, tenant_id, body),
            max_queued=settings.tenant_max_queued,
            max_bytes=settings.tenant_max_bytes,
        )
        answer = Answer(
            status=HTTPStatus.ACCEPTED,
            headers={"Location": f"{PATH}/{prediction.id}"},
            body=BatchPredictionDocument.of(prediction).model_dump_json(),
        )
        keep(session, answer)
    return answer


@router.get(PATH, responses=problems(HTTPStatus.NOT_FOUND))
def get_predictions(
    *,
    gateway: GatewayDep,
    caller: CallerDep,
    status: Annotated[PredictionStatus | None, Query(description="of those to list")] = None,
    name: Name = None,
    after: After = None,
    limit: Limit = DEFAULT_LIMIT,
) -> BatchPredictionList:
    """List the batch predictions, newest first."""
    with gateway.database.read() as session:
        page = predictions.list_predictions(
            session, caller.tenant_id, status=status, name=name, after=after, limit=limit
        )
        documents = [BatchPredictionDocument.of(prediction) for prediction in page.rows]
        return BatchPredictionList.of(documents, has_more=page.has_more)


@router.get(f"{PATH}/{{prediction_id}}", responses=problems(HTTPStatus.NOT_FOUND))
def get_prediction(
    gateway: GatewayDep, caller: CallerDep, prediction_id: PredictionId
) -> BatchPredictionDocument:
    """Get a batch prediction."""
    return BatchPredictionDocument.of(_find(gateway, caller.tenant_id, prediction_id))


@router.post(
    f"{PATH}/{{prediction_id}}/cancel", status_code=HTTPStatus.ACCEPTED, responses=_ACTED_UPON
)
def cancel_prediction(
    gateway: GatewayDep, caller: CallerDep, actor: ActorDep, prediction_id: PredictionId
) -> BatchPredictionDocument:
    """Cancel a batch prediction: at once if it waits, else within seconds; answers are dropped."""
    tenant = caller.tenant_id
    with gateway.database.write() as session:
        prediction = predictions.cancel(session, tenant, prediction_id)
        record(session, actor, "prediction.cancelled", tenant_id=tenant, subject_id=prediction_id)
        return BatchPredictionDocument.of(prediction)


@router.delete(
    f"{PATH}/{{prediction_id}}", status_code=HTTPStatus.NO_CONTENT, responses=_ACTED_UPON
)
async def delete_prediction(
    gateway: GatewayDep, caller: CallerDep, actor: ActorDep, prediction_id: PredictionId
) -> Response:
    """Delete a finished batch prediction with its result."""
    await run_in_threadpool(_delete, gateway, actor, caller.tenant_id, prediction_id)
    await gateway.space.free(caller.tenant_id)
    return Response(status_code=HTTPStatus.NO_CONTENT)


def _delete(gateway: Gateway, actor: Actor, tenant_id: str, prediction_id: str) -> None:
    with gateway.database.write() as session:
        predictions.delete(session, tenant_id, prediction_id)
        record(session, actor, "prediction.deleted", tenant_id=tenant_id, subject_id=prediction_id)


@router.head(f"{PATH}/{{prediction_id}}/result", include_in_schema=False)
@router.get(
    f"{PATH}/{{prediction_id}}/result",
    response_class=Response,
    responses=file_answers(*_MEDIA_TYPES.values()),
    dependencies=[Depends(hold_download)],
)
async def get_prediction_result(
    request: Request, gateway: GatewayDep, caller: CallerDep, prediction_id: PredictionId
) -> Response:
    """Download the result: every row of the split with its answers beside it."""
    tenant = caller.tenant_id
    found = await run_in_threadpool(_find, gateway, tenant, prediction_id)
    if found.sha256 is None or found.bytes is None:
        ending = "and will never have one" if found.status.is_finished else "yet"
        raise ProblemError(
            "not_ready",
            status=HTTPStatus.CONFLICT,
            detail=f"prediction {found.id} is {found.status} and has no result {ending}",
        )
    sha256 = found.sha256
    answering = answer_with_file(
        request,
        Blob(sha256=sha256, bytes=found.bytes),
        read=lambda start, end: gateway.storage.stream(tenant, sha256, start=start, end=end),
        name=file_name(found.name, fallback=found.id, suffix=f".{found.spec['format']}"),
        media_type=_MEDIA_TYPES[found.spec["format"]],
    )
    return await while_connected(request.receive, answering)


def _find(gateway: Gateway, tenant_id: str, prediction_id: str) -> Prediction:
    with gateway.database.read() as session:
        return predictions.get_prediction(session, tenant_id, prediction_id)
