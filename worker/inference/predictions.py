"""Answer prediction requests: load the head deltas, encode the inputs, compute, read the logits."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import structlog
from torch import Tensor

from hifi.data.task_types import request_fields
from hifi.errors import (
    BackboneMismatchError,
    HifiError,
    ImageInputError,
    InputError,
    TextTooLongError,
)
from store.errors import ProblemError
from store.orders import ItemError
from store.resources.turns import FairPool, Places, Turns
from worker.inference.executor import (
    NoMemoryError,
    NotPlacedError,
    Outcome,
    Work,
)
from worker.inference.failures import as_problems
from worker.inference.scheduler import Scheduler, Ticket

if TYPE_CHECKING:
    from hifi.serving.bank import PackedDelta
    from hifi.serving.prediction import TaskRecord
    from hifi.tasks import EncodedInput
    from store.orders import DeltaOrder, PredictionOrder
    from worker.inference.memory.backbones import Backbones, ServedBackbone
    from worker.inference.memory.loading import DeltaLoader
    from worker.inference.memory.tiers import DeviceTier

Answer: TypeAlias = dict[str, Any]
_Inputs: TypeAlias = Mapping[int, Mapping[str, Any]]  # by their index in the request
_ENCODERS = 2  # threads that tokenise and decode images; a tenant has at most one
_CHUNK_CHARACTERS = 100_000  # encoded at a time, so that short requests do not wait long
# An encoded image takes 600 KB or more, a text 12 KB at most, or as much for each of its windows,
# of which a chunk of long texts has thousands. So a request's images are encoded a
# few at a time, as many as a CPU computes in one pass, and few requests at once: a tenant's, and
# the last ones are for tenants that have none.
_IMAGES = 8
_IMAGES_AT_ONCE, _IMAGES_AT_ONCE_EACH, _IMAGES_AT_ONCE_SPARE = 12, 6, 4
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, eq=False)
class _Delta:
    """A head delta that is on the device or in host memory."""

    backbone: ServedBackbone
    record: TaskRecord
    packed: PackedDelta | None


@dataclass(frozen=True, eq=False)
class _Part:
    """The part of a request that is for one head delta.

    Attributes:
        order: for the head delta.
        inputs: by their index in the request.
        answers: of the whole request; filled as they become known.
        is_background: whether other requests go first.
    """

    order: DeltaOrder
    inputs: _Inputs
    answers: dict[int, Answer]
    is_background: bool

    @property
    def queue(self) -> str:
        """For whom the part queues: its tenant, or that tenant's work in the background."""
        return f"{self.order.tenant} in the background" if self.is_background else self.order.tenant

    def fail(self, code: str, message: str, *, param: str | None = None) -> None:
        """Set an error for all inputs without an answer."""
        for index in self.inputs:
            self.answers.setdefault(index, item_error(code, message, param=param))


def item_error(code: str, message: str, *, param: str | None = None) -> Answer:
    """Return the error of one input as its answer."""
    return {"error": ItemError(code=code, message=message, param=param).model_dump()}


class PredictionHandler:
    """Answers requests. Used on one event loop, with threads for slow work."""

    def __init__(
        self,
        *,
        places: Places,
        backbones: Backbones,
        loader: DeltaLoader,
        device: DeviceTier,
        scheduler: Scheduler[Work],
    ) -> None:
        self._places = places
        self._backbones = backbones
        self._loader = loader
        self._device = device
        self._scheduler = scheduler
        self._encoders = FairPool(_ENCODERS, most_each=1, spare=0, name="encoder")
        self._images = Turns(
            _IMAGES_AT_ONCE, most_each=_IMAGES_AT_ONCE_EACH, spare=_IMAGES_AT_ONCE_SPARE
        )

    def close(self) -> None:
        """Start no further work."""
        for part in (self._backbones, self._loader, self._encoders):
            part.close()

    async def predict(self, request: PredictionOrder) -> list[Answer]:
        """Answer each item of a request, in order; one that fails does not affect the others.

        Raises:
            ProblemError: 429 ``too_many_requests``.
        """
        answers: dict[int, Answer] = {}
        parts = _parts(request, answers)
        with self._places.take(Counter(request.orders[i["order"]].tenant for i in request.items)):
            await self._serve_all(parts, request, seconds=request.timeout_seconds)
        for part in parts:
            message = f"no answer within {request.timeout_seconds:g} seconds"
            part.fail("deadline_exceeded", message)
        return [answers[index] for index in range(len(request.items))]

    async def predict_in_background(self, request: PredictionOrder) -> list[Answer]:
        """Answer each item like :meth:`predict`, but after all that somebody waits for.

        There is no time limit, and the inputs take no places: their caller limits their number.
        """
        answers: dict[int, Answer] = {}
        parts = _parts(request, answers, is_background=True)
        await self._serve_all(parts, request, seconds=None)
        return [answers[index] for index in range(len(request.items))]

    async def _serve_all(
        self, parts: Sequence[_Part], request: PredictionOrder, *, seconds: float | None
    ) -> None:
        """Serve the parts of a request at the same time, for some seconds at most."""
        tasks = [
            asyncio.create_task(self._serve(part, truncate=request.truncate)) for part in parts
        ]
        try:
            await asyncio.wait(tasks, timeout=seconds)
        finally:  # also if the caller has disconnected and this task is cancelled
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, part: _Part, *, truncate: bool) -> None:
        """Answer the part of a request that is for one head delta."""
        order = part.order
        try:
            with as_problems(order):
                await self._serve_on_newest(part, truncate=truncate)
        except ProblemError as problem:
            part.fail(problem.code, problem.detail)
        except Exception:  # noqa: BLE001 - one delta's error must not fail the others
            _log.exception("a prediction failed", job=order.job)
            part.fail("internal_error", "the inference process failed; its log says why")

    async def _serve_on_newest(self, part: _Part, *, truncate: bool) -> None:
        """Serve on the loaded backbone; if the delta is of another one, on its files of now."""
        name, tenant = part.order.backbone, part.order.tenant
        async with self._backbones.hold(name, tenant=tenant) as backbone:
            try:
                await self._serve_on(backbone, part, truncate=truncate)
            except BackboneMismatchError:
                if not await self._backbones.has_changed(name, backbone, tenant=tenant):
                    raise
            else:
                return
        async with self._backbones.hold(name, tenant=tenant) as backbone:
            await self._serve_on(backbone, part, truncate=truncate)

    async def _serve_on(self, backbone: ServedBackbone, part: _Part, *, truncate: bool) -> None:
        left = part.inputs
        record = self._device.find(backbone, part.order.key)
        if record is not None:
            left = await self._answer(part, left, _Delta(backbone, record, None), truncate=truncate)
        if left:  # it was not on the device, or was evicted meanwhile
            async with self._loader.loaded(part.order, backbone) as loaded:
                delta = _Delta(backbone, loaded.record, loaded.packed)
                await self._answer(part, left, delta, truncate=truncate)

    async def _answer(
        self, part: _Part, inputs: _Inputs, delta: _Delta, *, truncate: bool
    ) -> _Inputs:
        """Encode and compute inputs: texts all at once, images and long texts some at a time.

        Returns:
            The inputs whose head delta was evicted from the device while they waited.
        """
        declared = delta.record.task.declaration
        has_images = declared.input_kind == "image"
        groups = [list(inputs)]
        if has_images:
            indices = list(inputs)
            groups = [indices[at : at + _IMAGES] for at in range(0, len(indices), _IMAGES)]
        elif declared.logits != "sample":
            groups = list(_chunks(inputs))
        for number, group in enumerate(groups):
            some = {index: inputs[index] for index in group}
            async with self._images.hold(part.queue) if has_images else nullcontext():
                encoded = await self._encode(part, some, delta, truncate=truncate)
                displaced = await self._compute(part, delta, encoded)
            if displaced:  # and so would be the others
                left = [*displaced, *chain.from_iterable(groups[number + 1 :])]
                return {index: inputs[index] for index in left}
        return {}

    async def _encode(
        self, part: _Part, inputs: _Inputs, delta: _Delta, *, truncate: bool
    ) -> dict[int, EncodedInput]:
        """Encode inputs; set an error for each that cannot be encoded."""
        encoded: dict[int, EncodedInput] = {}
        for chunk in _chunks(inputs):
            read = partial(_read, delta, [inputs[index] for index in chunk], truncate=truncate)
            entries = await self._encoders.run(read, tenant=part.queue)
            for index, entry in zip(chunk, entries, strict=True):
                if isinstance(entry, InputError):
                    part.answers[index] = item_error(_code_of(entry), str(entry), param=entry.param)
                else:
                    encoded[index] = entry
        return encoded

    async def _compute(
        self, part: _Part, delta: _Delta, encoded: Mapping[int, EncodedInput]
    ) -> list[int]:
        """Compute the samples of inputs and set their answers.

        Returns:
            The indices of those whose head delta was evicted from the device while they waited.
        """
        if not encoded:
            return []
        loop = asyncio.get_running_loop()
        waiting: dict[int, list[asyncio.Future[Outcome]]] = {}
        tickets: list[Ticket[Work]] = []
        for index, given in encoded.items():
            waiting[index] = [loop.create_future() for _ in given.samples]
            for sample, future in zip(given.samples, waiting[index], strict=True):
                work = Work(
                    delta.backbone,
                    part.order.key,
                    delta.record,
                    delta.packed,
                    sample,
                    _settler(future),
                )
                ticket = Ticket(delta.backbone, part.order.tenant, sample.length, work)
                ticket.is_background = part.is_background
                tickets.append(ticket)
        futures = list(chain.from_iterable(waiting.values()))
        self._scheduler.add(tickets)
        try:
            await asyncio.wait(futures)
        finally:
            pairs = zip(tickets, futures, strict=True)
            self._scheduler.withdraw([ticket for ticket, future in pairs if not future.done()])
            displaced = [
                index
                for index, own in waiting.items()
                if all(future.done() for future in own)
                and not _set_answer(
                    part, delta, index, encoded[index], [future.result() for future in own]
                )
            ]
        return displaced


def _parts(
    request: PredictionOrder, answers: dict[int, Answer], *, is_background: bool = False
) -> list[_Part]:
    """Group the items by head delta."""
    inputs: dict[int, dict[int, Mapping[str, Any]]] = {}
    for index, item in enumerate(request.items):
        inputs.setdefault(item["order"], {})[index] = item["input"]
    return [
        _Part(request.orders[order], mine, answers, is_background) for order, mine in inputs.items()
    ]


def _chunks(inputs: _Inputs) -> Iterator[list[int]]:
    chunk: list[int] = []
    characters = 0
    for index, given in inputs.items():
        chunk.append(index)
        characters += sum(_characters(name, value) for name, value in given.items())
        if characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _characters(name: str, value: str | Sequence[str]) -> int:
    """Return the length of a text, or of all words; an image counts as a whole chunk."""
    if request_fields()[name].kind == "image":
        return _CHUNK_CHARACTERS
    return len(value) if isinstance(value, str) else sum(map(len, value))


def _read(
    delta: _Delta, inputs: Sequence[Mapping[str, Any]], *, truncate: bool
) -> Sequence[EncodedInput | InputError]:
    return delta.backbone.encoder_for(delta.record).read(inputs, truncate=truncate)


def _code_of(error: InputError) -> str:
    if isinstance(error, TextTooLongError):
        return "text_too_long"
    return "invalid_image" if isinstance(error, ImageInputError) else "invalid_input"


def _settler(future: asyncio.Future[Outcome]) -> Callable[[Outcome], None]:
    def settle(outcome: Outcome) -> None:
        if not future.done():
            future.set_result(outcome)

    return settle


def _set_answer(
    part: _Part, delta: _Delta, index: int, given: EncodedInput, outcomes: Sequence[Outcome]
) -> bool:
    """Set the answer for the outcomes of an input's samples; return False to compute it again."""
    if any(isinstance(outcome, NotPlacedError) for outcome in outcomes):
        return False
    if any(isinstance(outcome, NoMemoryError) for outcome in outcomes):
        message = "the device has too little memory for this input; try a shorter one"
        part.answers[index] = item_error("out_of_memory", message)
        return True
    logits = [outcome for outcome in outcomes if isinstance(outcome, Tensor)]
    if len(logits) < len(outcomes):
        message = "the inference process failed; its log says why"
        part.answers[index] = item_error("internal_error", message)
        return True
    try:
        part.answers[index] = delta.record.task.read_answer(logits, given)
    except HifiError as error:
        part.answers[index] = item_error("delta_invalid", str(error))
    return True
