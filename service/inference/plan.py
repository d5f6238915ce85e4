"""Plan requests for predictions: check each item, build the order, and assemble the response.

An invalid item gets an error as its answer; it never fails the request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import structlog
from pydantic import BaseModel, ValidationError

from hifi.data.task_types import task_types
from service.http.parameters import check_identifier
from service.http.problems import SHOWN_CHARACTERS, describe, dotted, invalid_request
from service.inference.client import Reply, inference_unavailable
from service.inference.documents import (
    JobInput,
    MixedPredictionRequest,
    PredictionRequest,
    SharedInput,
    input_models,
    prediction_list,
)
from service.jobs.artifacts import HEAD_DELTA, find_artifact, not_ready
from store.errors import NotFoundError, ProblemError
from store.jobs.actions import find_deltas
from store.orders import MAX_INPUTS, DeltaOrder, ItemError, Outcomes, PredictionOrder

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from store.database.connection import Database

_Input: TypeAlias = Mapping[str, Any]
_Refusal: TypeAlias = NotFoundError | ProblemError
_Model = TypeVar("_Model", bound=BaseModel)

_ENCODING = "float32"  # the one that contains the tuned rows themselves
_INVALID = "invalid_input"
_TOO_LONG = "text_too_long"
_SHOWN_NAMES = 3
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """An input for one job; an item of a request for several jobs is several of these.

    Attributes:
        job: the job's id in the request; None if it is missing or not a string.
        index: of the item in the request.
        place: dotted path of the input in the request.
        job_place: dotted path of the job's id in the request.
        is_shared: whether the item is for several jobs.
        input: for the inference process; None if the item is invalid.
        error: why it is invalid; None if it is valid.
    """

    job: str | None
    index: int
    place: str
    job_place: str = ""
    is_shared: bool = False
    input: _Input | None = None
    error: ItemError | None = None

    @property
    def shown_job(self) -> str | None:
        """The job's id, cut if it is longer than any id."""
        return None if self.job is None else _shown(self.job[:SHOWN_CHARACTERS])

    def refused(self, code: str, message: str, *, param: str) -> Item:
        """Return a copy that is invalid for the given reason, which may quote any characters."""
        error = ItemError(code=code, message=_shown(message), param=_shown(param))
        return replace(self, input=None, error=error)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked request.

    Attributes:
        items: all items.
        order: the order for the valid items; None if there are none.
    """

    items: Sequence[Item]
    order: PredictionOrder | None


def find_order(database: Database, tenant_id: str, job_id: str) -> DeltaOrder:
    """Return the order for the head delta of a tenant's job.

    Raises:
        NotFoundError: the job does not exist, or belongs to another tenant.
        ProblemError: 409 ``not_ready``.
    """
    return DeltaOrder.of(*find_artifact(database, tenant_id, job_id, encoding=_ENCODING))


def plan_for_job(body: PredictionRequest, order: DeltaOrder, *, timeout_seconds: float) -> Plan:
    """Plan a request for one job; ``timeout_seconds`` applies if the request has none."""
    items = [
        _read_input(Item(job=order.job, index=index, place=f"inputs.{index}"), given)
        for index, given in enumerate(body.inputs)
    ]
    return _plan(body, items, orders={order.job: order}, timeout_seconds=timeout_seconds)


def plan_mixed(
    body: MixedPredictionRequest, database: Database, tenant_id: str, *, timeout_seconds: float
) -> Plan:
    """Plan a request for any of a tenant's jobs.

    Args:
        body: the request.
        database: queried once for all jobs; not at all if every item is invalid.
        tenant_id: owner of the jobs; other tenants' jobs are not found.
        timeout_seconds: used if the request has none.
    """
    items = [
        item for index, given in enumerate(body.inputs) for item in _read_item(given, index=index)
    ]
    if len(items) > MAX_INPUTS:
        raise invalid_request(
            f"{len(items):,} answers are asked for: at most {MAX_INPUTS} in a request, and an "
            "input for several jobs counts once for each",
            param="inputs",
        )
    wanted = {item.job for item in items if item.job is not None and item.input is not None}
    orders: dict[str, DeltaOrder] = {}
    refusals: dict[str, _Refusal] = {}
    if wanted:
        with database.read() as session:
            orders, refusals = _find_orders(session, tenant_id, list(wanted))
    for index, item in enumerate(items):
        if item.input is not None and item.job in refusals:
            refusal = refusals[item.job]
            items[index] = item.refused(refusal.code, str(refusal), param=item.job_place)
    return _plan(body, items, orders=orders, timeout_seconds=timeout_seconds)


def answer(plan: Plan, replies: Sequence[Reply]) -> bytes:
    """Combine the answers of the inference processes with the errors of invalid items.

    Args:
        plan: of the request.
        replies: to ``plan.order``; none if there was no order. If only some of them are errors,
            these are the errors of their items.

    Returns:
        The response as JSON.

    Raises:
        ProblemError: all replies are errors; or 503 ``inference_unavailable``, the content of one
            has another format.
    """
    problems = [reply.content for reply in replies if isinstance(reply.content, ProblemError)]
    if problems and len(problems) == len(replies):
        raise problems[0]
    asked = [index for index, item in enumerate(plan.items) if item.input is not None]
    try:
        by_index = {
            asked[place]: outcome
            for reply in replies
            for place, outcome in zip(reply.places, _outcomes(reply), strict=True)
        }
        answers = [
            {**_outcome(item, by_index.get(place, {})), "index": item.index, "job": item.shown_job}
            for place, item in enumerate(plan.items)
        ]
        data = _by_item(plan.items, answers)
        document = prediction_list(task_types()).model_validate({"data": data})
    except ValueError as error:
        _log.warning("inference_answers_strangely", error=type(error).__name__)
        raise inference_unavailable() from error
    return document.model_dump_json().encode()


def _by_item(items: Sequence[Item], answers: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Put the answers to an item for several jobs together."""
    found: list[Any] = []
    pairs = groupby(zip(items, answers, strict=True), key=lambda pair: pair[0].index)
    for index, group in pairs:
        together = list(group)
        own = [answer for _, answer in together]
        found += [{"index": index, "answers": own}] if together[0][0].is_shared else own
    return found


def _outcomes(reply: Reply) -> Sequence[Mapping[str, Any]]:
    """Return the outcome of each item of a reply."""
    problem = reply.content
    if not isinstance(problem, ProblemError):
        return Outcomes.model_validate_json(problem).data
    error = ItemError(code=problem.code, message=problem.detail, param=None)
    return [{"error": error.model_dump()}] * len(reply.places)


def _outcome(item: Item, outcome: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an item's own error, or else its outcome from the inference process."""
    if item.error is not None:
        return {"error": item.error}
    if "error" not in outcome:
        return outcome
    error = ItemError.model_validate(outcome["error"])
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
    return Plan(items=items, order=order if asked else None)


def _find_orders(
    session: Session, tenant_id: str, job_ids: Sequence[str]
) -> tuple[dict[str, DeltaOrder], dict[str, _Refusal]]:
    """Find the head deltas of a tenant's jobs; return orders and errors, each by job id."""
    orders: dict[str, DeltaOrder] = {}
    refusals: dict[str, _Refusal] = {}
    found = find_deltas(session, tenant_id, job_ids, encoding=_ENCODING)
    for job_id, status, model, revision, sha256 in found:
        if sha256 is None:
            refusals[job_id] = not_ready(job_id, status=status, what=HEAD_DELTA)
        else:
            orders[job_id] = DeltaOrder(
                tenant=tenant_id, job=job_id, model=model, revision=revision, sha256=sha256
            )
    for job_id in set(job_ids) - orders.keys() - refusals.keys():
        refusals[job_id] = NotFoundError("job", job_id)
    return orders, refusals


def _read_item(given: object, *, index: int) -> list[Item]:
    """Check an item of a mixed request; one for several jobs becomes several."""
    place = f"inputs.{index}"
    fields = given if isinstance(given, dict) else {}
    name = fields.get("job")
    item = Item(
        job=name if isinstance(name, str) else None,
        index=index,
        place=f"{place}.input",
        job_place=f"{place}.job",
    )
    if not isinstance(given, dict):
        message = "an item is an object with `job` or `jobs`, and `input`"
        return [item.refused(_INVALID, message, param=place)]
    if "jobs" not in fields:
        named = _check(JobInput, given, item, place=place)
        if isinstance(named, Item):
            return [named]
        return [_read_named(item, named.input)]
    shared = _check(SharedInput, given, item, place=place)
    if isinstance(shared, Item):
        return [shared]
    if len(set(shared.jobs)) < len(shared.jobs):
        return [item.refused(_INVALID, "a job occurs more than once", param=f"{place}.jobs")]
    return [
        _read_named(
            replace(item, job=job, job_place=f"{place}.jobs.{number}", is_shared=True), shared.input
        )
        for number, job in enumerate(shared.jobs)
    ]


def _read_named(item: Item, given: object) -> Item:
    """Check an item's job and its input."""
    try:
        check_identifier(str(item.job), kind="job")
    except NotFoundError as error:
        return item.refused(error.code, str(error), param=item.job_place)
    return _read_input(item, given)


def _read_input(item: Item, given: object) -> Item:
    """Check an input's fields; whether they fit the job's task is checked by the other process."""
    fields = given if isinstance(given, dict) else {}
    known = input_models(task_types())
    models = [model for name, model in known.items() if name in fields]
    if len(models) > 1:  # fields of another input too, as choices and what they are about
        models = [model for model in models if fields.keys() <= model.model_fields.keys()]
    if len(models) != 1:
        message = f"an input is an object with {' or '.join(map(_described, known.values()))}"
        if fields:
            message += f"; this one has {_names(fields)}"
        return item.refused(_INVALID, message, param=item.place)
    checked = _check(models[0], given, item, place=item.place)
    if isinstance(checked, Item):
        return checked
    return replace(item, input=checked.model_dump(exclude_none=True))


def _shown(text: str) -> str:
    """Return a caller's text as Unicode: UTF-8, and so a response, cannot have a lone surrogate."""
    return text.encode(errors="backslashreplace").decode()


def _names(fields: Mapping[str, object]) -> str:
    names = [f"`{name[:SHOWN_CHARACTERS]}`" for name in fields]
    return " and ".join(names) if len(names) <= _SHOWN_NAMES else f"{len(names)} fields"


def _described(model: type[BaseModel]) -> str:
    """Return the names of an input's fields, the optional ones in brackets."""
    fields = model.model_fields.items()
    return " ".join(f"`{name}`" if field.is_required() else f"(`{name}`)" for name, field in fields)


def _check(model: type[_Model], given: object, item: Item, *, place: str) -> _Model | Item:
    """Parse a part of an item; if it is invalid, return the item with its first error."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        entry = error.errors(include_url=False)[0]
        field = dotted(str(part)[:SHOWN_CHARACTERS] for part in entry["loc"])
        code = _TOO_LONG if entry["type"] in ("string_too_long", _TOO_LONG) else _INVALID
        param = f"{place}.{field}" if field else place  # pydantic names no field whose name is bad
        return item.refused(code, describe(entry, field), param=param)
