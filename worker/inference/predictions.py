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

from hifi.delta import HeadDelta
from hifi.errors import HifiError, ImageInputError, InputError, TextTooLongError
from worker.inference.executor import (
    ComputationError,
    NoMemoryError,
    NotPlacedError,
    Outcome,
    Work,
)
from worker.inference.failures import typed_problems
from worker.inference.problems import ProblemError
from worker.inference.scheduler import Scheduler, Ticket
from worker.inference.turns import FairPool, Turns

if TYPE_CHECKING:
    from hifi.bank import PackedDelta
    from hifi.prediction import Sample, TaskRecord
    from worker.inference.backbones import BackboneName, Backbones, ServedBackbone
    from worker.inference.deltas import DeltaCache
    from worker.inference.orders import DeltaOrder, PredictionRequest
    from worker.inference.tiers import DeltaKey, DeviceTier, HostTier

Answer: TypeAlias = dict[str, Any]
# Loading mostly waits for the artifact store, or for one thread that loads a backbone.
_LOADERS, _LOADERS_EACH = 8, 2
_ENCODERS = 2
# Head deltas on their way from the disk to the device: they take memory that no tier counts.
_LOADED, _LOADED_EACH = 64, 32
_CHUNK_LETTERS = 100_000  # encoded at a time, so that requests with little text need not wait long
_RETRY_SECONDS = "1"
_log = structlog.get_logger(__name__)


class Places:
    """Bounds the inputs that are under way, from their arrival until they are answered.

    Used on one event loop.

    Args:
        most: of all tenants; one may have half of it.
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
        own = self._most // 2
        is_full = len(self) + sum(wanted.values()) > self._most
        if is_full or any(self._taken[name] + count > own for name, count in wanted.items()):
            whose = f"{self._most} inputs" if is_full else f"{own} inputs of one tenant"
            raise ProblemError(
                "too_many_requests",
                status=HTTPStatus.TOO_MANY_REQUESTS,
                detail=f"{whose} are under way already, the most allowed; try again soon",
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
    """A head delta that is at hand: in host memory, or on the device, or both."""

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

    @property
    def key(self) -> DeltaKey:
        return f"{self.order.tenant}/{self.order.sha256}"

    def fail(self, code: str, message: str, *, param: str | None = None) -> None:
        """Answer with an error what has no answer yet."""
        for index in self.inputs:
            self.answers.setdefault(index, item_error(code, message, param=param))


def item_error(code: str, message: str, *, param: str | None = None) -> Answer:
    """Write why one input has no answer."""
    return {"error": {"code": code, "message": message, "param": param}}


class PredictionDesk:
    """Answers requests; used on one event loop, with threads for what takes time.

    Args:
        places: how much may be under way.
        deltas: head deltas on disk.
        backbones: in memory.
        host: head deltas in host memory.
        device: head deltas on the device.
        scheduler: takes what is to be computed.
    """

    def __init__(
        self,
        *,
        places: Places,
        deltas: DeltaCache,
        backbones: Backbones,
        host: HostTier,
        device: DeviceTier,
        scheduler: Scheduler[Work],
    ) -> None:
        self._places = places
        self._deltas = deltas
        self._backbones = backbones
        self._host = host
        self._device = device
        self._scheduler = scheduler
        self._loaders = FairPool(_LOADERS, most_each=_LOADERS_EACH, name="loader")
        self._encoders = FairPool(_ENCODERS, most_each=_ENCODERS, name="encoder")
        self._loaded = Turns(_LOADED, most_each=_LOADED_EACH)
        self._loads: dict[tuple[BackboneName, DeltaKey], asyncio.Task[_Delta]] = {}

    def close(self) -> None:
        """Begin nothing any more."""
        for pool in (self._loaders, self._encoders):
            pool.close()

    async def predict(self, request: PredictionRequest) -> list[Answer]:
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
        with self._places.take(Counter(request.orders[i.order].tenant for i in request.items)):
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
        try:
            with self._backbones.hold(part.order.backbone):
                placed = self._find_placed(part)
                samples = None
                if placed is not None:
                    samples = await self._encode(part, placed, truncate=truncate)
                    samples = await self._compute(part, placed, samples)
                if samples is None or samples:  # or others have taken its place on the device
                    await self._serve_loaded(part, samples, truncate=truncate)
        except ProblemError as problem:
            part.fail(problem.code, problem.detail)
        except Exception:  # noqa: BLE001 - one head delta's fault is not the others'
            _log.exception("a prediction failed", job=part.order.job)
            part.fail("internal_error", "the inference process failed; its log says why")

    async def _serve_loaded(
        self, part: _Part, samples: dict[int, Sample] | None, *, truncate: bool
    ) -> None:
        """Answer by a head delta that is not on the device.

        Args:
            part: of the request.
            samples: encoded already; None where none are.
            truncate: whether texts are cut.
        """
        async with self._loaded.hold(part.order.tenant):
            delta = await self._load(part)
            if samples is None:
                samples = await self._encode(part, delta, truncate=truncate)
            while samples:  # a second time only where the backbone was let go of meanwhile
                samples = await self._compute(part, delta, samples)
                if samples:
                    delta = await self._load(part)

    def _find_placed(self, part: _Part) -> _Delta | None:
        """Find a head delta on the device."""
        backbone = self._backbones.find(part.order.backbone)
        if backbone is None:
            return None
        record = self._device.find(backbone, part.key)
        return None if record is None else _Delta(backbone, record, None)

    async def _load(self, part: _Part) -> _Delta:
        """Load a head delta, once for all who wait for it; it goes on when they give up.

        Raises:
            ProblemError: it cannot be loaded.
        """
        key = part.order.backbone, part.key
        task = self._loads.get(key)
        if task is None:
            load = partial(self._load_now, part.order, part.key)
            task = asyncio.create_task(self._loaders.run(load, tenant=part.order.tenant))
            task.add_done_callback(partial(self._end_load, key))
            self._loads[key] = task
        return await asyncio.shield(task)

    def _end_load(self, key: tuple[BackboneName, DeltaKey], task: asyncio.Task[_Delta]) -> None:
        del self._loads[key]
        if not task.cancelled():
            task.exception()  # whoever still waits for it sees it, perhaps nobody

    def _load_now(self, order: DeltaOrder, key: DeltaKey) -> _Delta:
        with typed_problems(order), self._backbones.hold(order.backbone):
            backbone = self._backbones.load(order.backbone)
            found = self._host.find(backbone, key)
            if found is None:
                with self._deltas.hold(order.tenant, order.sha256) as file:
                    found = backbone.load(HeadDelta.load(file))
                self._host.keep(backbone, key, found)
            return _Delta(backbone, found.record, found.packed)

    async def _encode(self, part: _Part, delta: _Delta, *, truncate: bool) -> dict[int, Sample]:
        """Encode the inputs; those that cannot be are answered."""
        samples: dict[int, Sample] = {}
        for chunk in _chunks(part.inputs):
            inputs = [part.inputs[index] for index in chunk]
            read = partial(_read, part.order, delta, inputs, truncate=truncate)
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
                delta.backbone, part.key, delta.record, delta.packed, sample, _settler(future)
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
                if future.done() and not _take_down(part, delta, index, future.result())
            }
        return displaced


def _parts(request: PredictionRequest, answers: dict[int, Answer]) -> list[_Part]:
    """Sort the items by head delta."""
    inputs: dict[int, dict[int, Mapping[str, str]]] = {}
    for index, item in enumerate(request.items):
        inputs.setdefault(item.order, {})[index] = item.input.given()
    return [_Part(request.orders[order], mine, answers) for order, mine in inputs.items()]


def _chunks(inputs: Mapping[int, Mapping[str, str]]) -> Iterator[list[int]]:
    chunk: list[int] = []
    letters = 0
    for index, given in inputs.items():
        chunk.append(index)
        letters += sum(map(len, given.values()))
        if letters > _CHUNK_LETTERS:
            yield chunk
            chunk, letters = [], 0
    if chunk:
        yield chunk


def _read(
    order: DeltaOrder, delta: _Delta, inputs: Sequence[Mapping[str, str]], *, truncate: bool
) -> list[Sample | InputError]:
    with typed_problems(order):
        return delta.backbone.reader_for(delta.record).read(inputs, truncate=truncate)


def _code_of(error: InputError) -> str:
    if isinstance(error, TextTooLongError):
        return "text_too_long"
    return "invalid_image" if isinstance(error, ImageInputError) else "invalid_input"


def _settler(future: asyncio.Future[Outcome]) -> Callable[[Outcome], None]:
    def settle(outcome: Outcome) -> None:
        if not future.done():
            future.set_result(outcome)

    return settle


def _take_down(part: _Part, delta: _Delta, index: int, outcome: Outcome) -> bool:
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
            part.answers[index] = delta.record.read_answer(outcome)
        except HifiError as error:
            part.answers[index] = item_error("delta_invalid", str(error))
    return True
