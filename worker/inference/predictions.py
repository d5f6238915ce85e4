"""Answer prediction requests: load the head deltas, encode the inputs, compute, read the logits."""

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
from worker.inference.failures import as_problems
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
_ENCODERS = 2  # threads that tokenise and decode images; a tenant has at most one
_CHUNK_CHARACTERS = 100_000  # encoded at a time, so that short requests do not wait long
_RETRY_SECONDS = "1"
_log = structlog.get_logger(__name__)


class Places:
    """Limits the inputs in flight, from their arrival to their answer. Used on one event loop.

    Args:
        most: of all tenants together. A tenant may hold as many as remain free for others: half of
            them if it is alone, a quarter next to a tenant with half. So a new tenant always finds
            free places.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: Counter[str] = Counter()

    def __len__(self) -> int:
        """Return the number of inputs in flight."""
        return self._taken.total()

    @contextmanager
    def take(self, wanted: Mapping[str, int]) -> Iterator[None]:
        """Hold places during a block, as many as each tenant wants, all of them or none.

        Raises:
            ProblemError: 429 ``too_many_requests``.
        """
        free = self._most - len(self) - sum(wanted.values())
        if free < 0 or any(self._taken[name] + count > free for name, count in wanted.items()):
            raise ProblemError(
                "too_many_requests",
                status=HTTPStatus.TOO_MANY_REQUESTS,
                detail=f"too many inputs in flight: {len(self)} of at most {self._most}, and a "
                f"tenant may hold only as many as remain free; retry in {_RETRY_SECONDS} s",
                headers={"Retry-After": _RETRY_SECONDS},
            )
        self._taken.update(wanted)
        try:
            yield
        finally:
            self._taken.subtract(wanted)
            self._taken += Counter()  # removes tenants without any


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
    """

    order: DeltaOrder
    inputs: Mapping[int, Mapping[str, str]]
    answers: dict[int, Answer]

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
            tasks = [
                asyncio.create_task(self._serve(part, truncate=request.truncate)) for part in parts
            ]
            try:
                await asyncio.wait(tasks, timeout=request.timeout_seconds)
            finally:  # also if the caller has disconnected and this task is cancelled
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        for part in parts:
            message = f"no answer within {request.timeout_seconds:g} seconds"
            part.fail("deadline_exceeded", message)
        return [answers[index] for index in range(len(request.items))]

    async def _serve(self, part: _Part, *, truncate: bool) -> None:
        """Answer the part of a request that is for one head delta."""
        order = part.order
        try:
            with as_problems(order):
                async with self._backbones.hold(order.backbone, tenant=order.tenant) as backbone:
                    await self._serve_on(backbone, part, truncate=truncate)
        except ProblemError as problem:
            part.fail(problem.code, problem.detail)
        except torch.OutOfMemoryError:
            part.fail("out_of_memory", "the device has too little memory for the job's backbone")
        except Exception:  # noqa: BLE001 - one delta's error must not fail the others
            _log.exception("a prediction failed", job=order.job)
            part.fail("internal_error", "the inference process failed; its log says why")

    async def _serve_on(self, backbone: ServedBackbone, part: _Part, *, truncate: bool) -> None:
        samples: dict[int, Sample] | None = None
        record = self._device.find(backbone, part.order.key)
        if record is not None:
            placed = _Delta(backbone, record, None)
            samples = await self._encode(part, placed, truncate=truncate)
            samples = await self._compute(part, placed, samples)
        if samples is None or samples:  # it was not on the device, or was evicted meanwhile
            async with self._loader.loaded(part.order, backbone) as loaded:
                delta = _Delta(backbone, loaded.record, loaded.packed)
                if samples is None:
                    samples = await self._encode(part, delta, truncate=truncate)
                await self._compute(part, delta, samples)

    async def _encode(self, part: _Part, delta: _Delta, *, truncate: bool) -> dict[int, Sample]:
        """Encode the inputs; set an error for each that cannot be encoded."""
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
        """Compute samples and set their answers.

        Returns:
            The samples whose head delta was evicted from the device while they waited.
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
                and not _set_answer(part, delta, index, samples[index], future.result())
            }
        return displaced


def _parts(request: PredictionOrder, answers: dict[int, Answer]) -> list[_Part]:
    """Group the items by head delta."""
    inputs: dict[int, dict[int, Mapping[str, str]]] = {}
    for index, item in enumerate(request.items):
        inputs.setdefault(item["order"], {})[index] = item["input"]
    return [_Part(request.orders[order], mine, answers) for order, mine in inputs.items()]


def _chunks(inputs: Mapping[int, Mapping[str, str]]) -> Iterator[list[int]]:
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


def _characters(name: str, value: str) -> int:
    """Return the length of a text; an image counts as a whole chunk."""
    return len(value) if request_fields()[name].kind == "text" else _CHUNK_CHARACTERS


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


def _set_answer(part: _Part, delta: _Delta, index: int, sample: Sample, outcome: Outcome) -> bool:
    """Set the answer for an outcome; return False if the sample must be computed again."""
    if isinstance(outcome, NotPlacedError):
        return False
    if isinstance(outcome, NoMemoryError):
        message = "the device has too little memory for this input; try a shorter one"
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
