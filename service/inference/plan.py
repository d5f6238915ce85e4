"""Requests for predictions: items checked one by one, orders built, the answers put in their place.

A wrong item is answered with what is wrong with it. It never fails its request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import structlog
from pydantic import BaseModel, ValidationError

from hifi.data.task_types import task_types
from service.http.parameters import check_identifier
from service.http.problems import describe, dotted
from service.inference.client import inference_unavailable
from service.inference.documents import (
    JobInput,
    MixedPredictionRequest,
    PredictionRequest,
    input_models,
    prediction_list,
)
from service.jobs.artifacts import HEAD_DELTA, find_artifact, not_ready
from store.errors import NotFoundError, ProblemError
from store.jobs.actions import find_deltas
from store.orders import DeltaOrder, ItemError, Outcomes, PredictionOrder

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from store.database.connection import Database

_Input: TypeAlias = Mapping[str, str]
_Refusal: TypeAlias = NotFoundError | ProblemError
_Model = TypeVar("_Model", bound=BaseModel)

_ENCODING = "float32"  # it holds the tuned rows themselves
_INVALID = "invalid_input"
_TOO_LONG = "text_too_long"
_SHOWN_CHARACTERS = 64
_SHOWN_NAMES = 3
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One item of a request.

    Attributes:
        job: that it names; None where it names none that is a text.
        place: of its input in the request, dotted.
        input: as the inference process takes it; None where there is something wrong.
        error: what is wrong with it; None where nothing is.
    """

    job: str | None
    place: str
    input: _Input | None = None
    error: ItemError | None = None

    @property
    def shown_job(self) -> str | None:
        """Cut a name that is too long to be a job's."""
        return None if self.job is None else self.job[:_SHOWN_CHARACTERS]

    def refused(self, code: str, message: str, *, param: str | None) -> Item:
        """Give it an answer: what is wrong with it."""
        error = ItemError(code=code, message=message, param=param)
        return replace(self, input=None, error=error)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A request that was looked at.

    Attributes:
        items: all of them.
        order: for those with which nothing is wrong, written; None where there are none.
        timeout_seconds: how long the answer may take.
    """

    items: Sequence[Item]
    order: bytes | None
    timeout_seconds: float


def find_order(database: Database, tenant_id: str, job_id: str) -> DeltaOrder:
    """Find the head delta of a tenant's job.

    Raises:
        NotFoundError: there is no such job, or it is another tenant's.
        ProblemError: 409 ``not_ready``.
    """
    return DeltaOrder.of(*find_artifact(database, tenant_id, job_id, encoding=_ENCODING))


def plan_for_job(body: PredictionRequest, order: DeltaOrder, *, timeout_seconds: float) -> Plan:
    """Look at inputs for one job.

    Args:
        body: of the request.
        order: for the job's head delta.
        timeout_seconds: where the request says nothing of the time.
    """
    items = [
        _read_input(Item(job=order.job, place=f"inputs.{index}"), given)
        for index, given in enumerate(body.inputs)
    ]
    return _plan(body, items, orders={order.job: order}, timeout_seconds=timeout_seconds)


def plan_mixed(
    body: MixedPredictionRequest, database: Database, tenant_id: str, *, timeout_seconds: float
) -> Plan:
    """Look at inputs for any jobs, of which those are there that are this tenant's.

    Args:
        body: of the request.
        database: is asked once, for all jobs together; not at all where no item could have one.
        tenant_id: whose jobs they must be.
        timeout_seconds: where the request says nothing of the time.
    """
    items = [_read_item(given, index=index) for index, given in enumerate(body.inputs)]
    wanted = {item.job for item in items if item.job is not None and item.input is not None}
    orders: dict[str, DeltaOrder] = {}
    refusals: dict[str, _Refusal] = {}
    if wanted:
        with database.read() as session:
            orders, refusals = _find_orders(session, tenant_id, list(wanted))
    items = [_refuse_by_job(item, refusals, index=index) for index, item in enumerate(items)]
    return _plan(body, items, orders=orders, timeout_seconds=timeout_seconds)


def answer(plan: Plan, content: bytes | None) -> bytes:
    """Put the inference process's answers in their places among the items.

    Args:
        plan: of the request.
        content: what the inference process says to ``plan.order``; None where there was nothing
            to ask.

    Returns:
        The answer to the request, JSON.

    Raises:
        ProblemError: 503 ``inference_unavailable``, the content is not what was agreed on.
    """
    asked = [index for index, item in enumerate(plan.items) if item.input is not None]
    try:
        outcomes = [] if content is None else Outcomes.model_validate_json(content).data
        by_index = dict(zip(asked, outcomes, strict=True))
        answers = [
            {**_outcome(item, by_index.get(index, {})), "index": index, "job": item.shown_job}
            for index, item in enumerate(plan.items)
        ]
        document = prediction_list(task_types()).model_validate({"data": answers})
    except ValueError as error:
        _log.warning("inference_answers_strangely", error=type(error).__name__)
        raise inference_unavailable() from error
    return document.model_dump_json().encode()


def _outcome(item: Item, said: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give what there is to say of an item: our own, or what the inference process says."""
    if item.error is not None:
        return {"error": item.error}
    if "error" not in said:
        return said
    error = ItemError.model_validate(said["error"])
    param = None if error.param is None else f"{item.place}.{error.param}"
    return {"error": error.model_copy(update={"param": param})}


def _plan(
    body: PredictionRequest | MixedPredictionRequest,
    items: Sequence[Item],
    *,
    orders: Mapping[str, DeltaOrder],
    timeout_seconds: float,
) -> Plan:
    asked = [
        (item.job, item.input) for item in items if item.job is not None and item.input is not None
    ]
    places = {job: place for place, job in enumerate(dict.fromkeys(job for job, _ in asked))}
    seconds = timeout_seconds if body.timeout_seconds is None else body.timeout_seconds
    order = PredictionOrder.of_checked(
        [orders[job] for job in places],
        [(places[job], given) for job, given in asked],
        truncate=body.truncate,
        timeout_seconds=seconds,
    )
    return Plan(items=items, order=order.to_json() if asked else None, timeout_seconds=seconds)


def _find_orders(
    session: Session, tenant_id: str, job_ids: Sequence[str]
) -> tuple[dict[str, DeltaOrder], dict[str, _Refusal]]:
    """Find the head deltas of a tenant's jobs: an order for each, or why there is none."""
    orders: dict[str, DeltaOrder] = {}
    refusals: dict[str, _Refusal] = {}
    for found in find_deltas(session, tenant_id, job_ids, encoding=_ENCODING):
        if found.sha256 is None:
            refusals[found.job_id] = not_ready(found.job_id, status=found.status, what=HEAD_DELTA)
        else:
            orders[found.job_id] = DeltaOrder(
                tenant=tenant_id,
                job=found.job_id,
                model=found.model,
                revision=found.revision,
                sha256=found.sha256,
            )
    for job_id in set(job_ids) - orders.keys() - refusals.keys():
        refusals[job_id] = NotFoundError("job", job_id)
    return orders, refusals


def _refuse_by_job(item: Item, refusals: Mapping[str, _Refusal], *, index: int) -> Item:
    if item.job is None or item.input is None or item.job not in refusals:
        return item
    refusal = refusals[item.job]
    return item.refused(refusal.code, str(refusal), param=f"inputs.{index}.job")


def _read_item(given: object, *, index: int) -> Item:
    """Check an item that names its job itself."""
    place = f"inputs.{index}"
    name = given.get("job") if isinstance(given, dict) else None
    item = Item(job=name if isinstance(name, str) else None, place=f"{place}.input")
    if not isinstance(given, dict):
        return item.refused(_INVALID, "an item is an object with `job` and `input`", param=place)
    named = _check(JobInput, given, item, place=place)
    if isinstance(named, Item):
        return named
    try:
        check_identifier(named.job, kind="job")
    except NotFoundError as error:
        return item.refused(error.code, str(error), param=f"{place}.job")
    return _read_input(item, named.input)


def _read_input(item: Item, given: object) -> Item:
    """Check what an input consists of; what its job's task wants only the other process knows."""
    fields = given if isinstance(given, dict) else {}
    known = input_models(task_types())
    models = [model for name, model in known.items() if name in fields]
    if len(models) != 1:
        message = f"an input is an object with {' or '.join(map(_described, known.values()))}"
        if fields:
            message += f"; this one has {_names(fields)}"
        return item.refused(_INVALID, message, param=item.place)
    checked = _check(models[0], given, item, place=item.place)
    if isinstance(checked, Item):
        return checked
    return replace(item, input=checked.model_dump(exclude_none=True))


def _names(fields: Mapping[str, object]) -> str:
    names = [f"`{name[:_SHOWN_CHARACTERS]}`" for name in fields]
    return " and ".join(names) if len(names) <= _SHOWN_NAMES else f"{len(names)} fields"


def _described(model: type[BaseModel]) -> str:
    """Name an input's fields; in brackets those that it may lack."""
    fields = model.model_fields.items()
    return " ".join(f"`{name}`" if field.is_required() else f"(`{name}`)" for name, field in fields)


def _check(model: type[_Model], given: object, item: Item, *, place: str) -> _Model | Item:
    """Read a part of an item; or give the item with the first thing that is wrong with that."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        entry = error.errors(include_url=False)[0]
        field = dotted(str(part)[:_SHOWN_CHARACTERS] for part in entry["loc"])
        code = _TOO_LONG if entry["type"] == "string_too_long" else _INVALID
        return item.refused(code, describe(entry, field), param=f"{place}.{field}")
