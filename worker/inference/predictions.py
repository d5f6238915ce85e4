"""Predictions asked for in one request, of any head deltas: found, encoded, computed, answered."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeAlias

import structlog
import torch

from hifi.data.task_types import request_fields
from hifi.errors import HifiError, ImageInputError, InputError, TextTooLongError
from store.errors import ProblemError
from store.orders import ItemError
from worker.inference.executor import (
    ComputationError,
    NoMemoryError,
    NotPlacedError,
    Outcome,
    Work,
)
from worker.inference.failures import typed_problems
from worker.inference.scheduler import Scheduler, Ticket
from worker.inference.turns import FairPool

if TYPE_CHECKING:
    from hifi.serving.bank import PackedDelta
    from hifi.serving.prediction import TaskRecord
    from hifi.tasks import Sample
    from store.orders import DeltaOrder, PredictionOrder
    from worker.inference.memory.backbones import Backbones, ServedBackbone
    from worker.inference.memory.loading import DeltaLoader
    from worker.inference.memory.tiers import DeviceTier

Answer: TypeAlias = dict[str, Any]
_ENCODERS = 2  # threads that tokenise and decode; a tenant has one of them at most
_CHUNK_LETTERS = 100_000  # encoded at a time, so that requests with little text need not wait long
_RETRY_SECONDS = "1"
_log = structlog.get_logger(__name__)


class Places:
    """Bounds the inputs that are under way, from their arrival until they are answered.

    Used on one event loop.

    Args:
        most: of all tenants. One may have as many as are free then: alone half of them, beside one
            that has half a quarter, so that there are always some for those who come.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: Counter[str] = Counter()

    def __len__(self) -> int:
        """Count the inputs that are under way."""
        return self._taken.total()

    @contextmanager
    def take(self, wanted: Mapping[str, int]) -> Iterator[None]:
        """Take places for the time of a block, all of them or none.

        Args:
            wanted: how many, by tenant.

        Raises:
            ProblemError: 429 ``too_many_requests``.
        """
        free = self._most - len(self) - sum(wanted.values())
        if free < 0 or any(self._taken[name] + count > free for name, count in wanted.items()):
            raise ProblemError(
                "too_many_requests",
                status=HTTPStatus.TOO_MANY_REQUESTS,
                detail=f"{len(self)} inputs are under way, of {self._most} at most, and so many of "
                "one tenant as there are places left; try again soon",
                headers={"Retry-After": _RETRY_SECONDS},
            )
        self._taken.update(wanted)
        try:
            yield
        finally:
            self._taken.subtract(wanted)
            self._taken += Counter()  # tenants that have none are not remembered


@dataclass(frozen=True, eq=False)
class _Delta:
    """A head delta that can be computed with: on the device, or in host memory."""

    backbone: ServedBackbone
    record: TaskRecord
    packed: PackedDelta | None


@dataclass(frozen=True, eq=False)
class _Part:
    """What a request asks of one head delta.

    Attributes:
        order: for the head delta.
        inputs: by their index in the request.
        answers: of the whole request, taken down as they come.
    """

    order: DeltaOrder
    inputs: Mapping[int, Mapping[str, str]]
    answers: dict[int, Answer]

    def fail(self, code: str, message: str, *, param: str | None = None) -> None:
        """Answer with an error what has no answer yet."""
        for index in self.inputs:
            self.answers.setdefault(index, item_error(code, message, param=param))


def item_error(code: str, message: str, *, param: str | None = None) -> Answer:
    """Write why one input has no answer."""
    return {"error": ItemError(code=code, message=message, param=param).model_dump()}


class PredictionDesk:
    """Answers requests. Used on one event loop, with threads for what takes time.

    Args:
        places: how much may be under way.
        backbones: in memory.
        loader: brings head deltas into host memory.
        device: head deltas on the device.
        scheduler: takes what is to be computed.
    """

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

    def close(self) -> None:
        """Begin nothing any more."""
        for part in (self._backbones, self._loader, self._encoders):
            part.close()

    async def predict(self, request: PredictionOrder) -> list[Answer]:
        """Answer a request; an input that fails does not disturb the others.

        Args:
            request: checked.

        Returns:
            An answer for each item, in their order.

        Raises:
            ProblemError: 429 ``too_many_requests``.
        """
        answers: dict[int, Answer] = {}
        parts = _parts(request, answers)
        with self._places.take(Counter(request.orders[i["order"]].tenant for i in request.items)):
            tasks = [
                asyncio.create_task(self._serve(part, truncate=request.truncate)) for part in parts
            ]
            try:
                await asyncio.wait(tasks, timeout=request.timeout_seconds)
            finally:  # a caller who has gone cancels us
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        for part in parts:
            message = f"there was no answer within {request.timeout_seconds:g} seconds"
            part.fail("deadline_exceeded", message)
        return [answers[index] for index in range(len(request.items))]

    async def _serve(self, part: _Part, *, truncate: bool) -> None:
        """Answer what a request asks of one head delta."""
        order = part.order
        try:
            with typed_problems(order):
                async with self._backbones.hold(order.backbone, tenant=order.tenant) as backbone:
                    await self._serve_on(backbone, part, truncate=truncate)
        except ProblemError as problem:
            part.fail(problem.code, problem.detail)
        except torch.OutOfMemoryError:
            part.fail("out_of_memory", "the device has no memory for the job's backbone")
        except Exception:  # noqa: BLE001 - one head delta's fault is not the others'
            _log.exception("a prediction failed", job=order.job)
            part.fail("internal_error", "the inference process failed; its log says why")

    async def _serve_on(self, backbone: ServedBackbone, part: _Part, *, truncate: bool) -> None:
        samples: dict[int, Sample] | None = None
        record = self._device.find(backbone, part.order.key)
        if record is not None:
            placed = _Delta(backbone, record, None)
            samples = await self._encode(part, placed, truncate=truncate)
            samples = await self._compute(part, placed, samples)
        if samples is None or samples:  # or others have taken its place on the device meanwhile
            async with self._loader.loaded(part.order, backbone) as loaded:
                delta = _Delta(backbone, loaded.record, loaded.packed)
                if samples is None:
                    samples = await self._encode(part, delta, truncate=truncate)
                await self._compute(part, delta, samples)

    async def _encode(self, part: _Part, delta: _Delta, *, truncate: bool) -> dict[int, Sample]:
        """Encode the inputs; those that cannot be are answered."""
        samples: dict[int, Sample] = {}
        for chunk in _chunks(part.inputs):
            inputs = [part.inputs[index] for index in chunk]
            read = partial(_read, delta, inputs, truncate=truncate)
            entries = await self._encoders.run(read, tenant=part.order.tenant)
            for index, entry in zip(chunk, entries, strict=True):
                if isinstance(entry, InputError):
                    part.answers[index] = item_error(_code_of(entry), str(entry), param=entry.param)
                else:
                    samples[index] = entry
        return samples

    async def _compute(
        self, part: _Part, delta: _Delta, samples: Mapping[int, Sample]
    ) -> dict[int, Sample]:
        """Let samples be computed, and take the answers down.

        Returns:
            Those whose head delta has left the device while they waited.
        """
        if not samples:
            return {}
        loop = asyncio.get_running_loop()
        waiting: dict[int, asyncio.Future[Outcome]] = {}
        tickets: list[Ticket[Work]] = []
        for index, sample in samples.items():
            future = waiting[index] = loop.create_future()
            work = Work(
                delta.backbone, part.order.key, delta.record, delta.packed, sample, _settler(future)
            )
            tickets.append(Ticket(delta.backbone, part.order.tenant, sample.length, work))
        self._scheduler.add(tickets)
        try:
            await asyncio.wait(waiting.values())
        finally:
            pairs = zip(tickets, waiting.values(), strict=True)
            self._scheduler.withdraw([ticket for ticket, future in pairs if not future.done()])
            displaced = {
                index: samples[index]
                for index, future in waiting.items()
                if future.done()
                and not _take_down(part, delta, index, samples[index], future.result())
            }
        return displaced


def _parts(request: PredictionOrder, answers: dict[int, Answer]) -> list[_Part]:
    """Sort the items by head delta."""
    inputs: dict[int, dict[int, Mapping[str, str]]] = {}
    for index, item in enumerate(request.items):
        inputs.setdefault(item["order"], {})[index] = item["input"]
    return [_Part(request.orders[order], mine, answers) for order, mine in inputs.items()]


def _chunks(inputs: Mapping[int, Mapping[str, str]]) -> Iterator[list[int]]:
    chunk: list[int] = []
    letters = 0
    for index, given in inputs.items():
        chunk.append(index)
        letters += sum(_letters(name, value) for name, value in given.items())
        if letters >= _CHUNK_LETTERS:
            yield chunk
            chunk, letters = [], 0
    if chunk:
        yield chunk


def _letters(name: str, value: str) -> int:
    """Count the letters of a text; those of an image tell nothing of the work."""
    return len(value) if request_fields()[name].kind == "text" else _CHUNK_LETTERS


def _read(
    delta: _Delta, inputs: Sequence[Mapping[str, str]], *, truncate: bool
) -> list[Sample | InputError]:
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


def _take_down(part: _Part, delta: _Delta, index: int, sample: Sample, outcome: Outcome) -> bool:
    """Take an outcome down as an answer; False where it has to be computed once more."""
    if isinstance(outcome, NotPlacedError):
        return False
    if isinstance(outcome, NoMemoryError):
        message = "the device has no memory for this input; a shorter one may do"
        part.answers[index] = item_error("out_of_memory", message)
    elif isinstance(outcome, ComputationError):
        message = "the inference process failed; its log says why"
        part.answers[index] = item_error("internal_error", message)
    else:
        try:
            part.answers[index] = delta.record.task.read_answer(outcome, sample)
        except HifiError as error:
            part.answers[index] = item_error("delta_invalid", str(error))
    return True
