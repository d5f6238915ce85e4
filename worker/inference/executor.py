"""The thread that computes batches, one at a time; a batch that fails is split and retried."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import structlog
import torch

from hifi.serving.prediction import collate
from worker.inference.memory.tiers import Placement
from worker.inference.scheduler import Scheduler, Ticket
from worker.memory import is_out_of_memory

if TYPE_CHECKING:
    from torch import Tensor

    from hifi.serving.bank import PackedDelta
    from hifi.serving.prediction import TaskRecord
    from hifi.tasks import Sample
    from worker.inference.memory.backbones import ServedBackbone
    from worker.inference.memory.tiers import DeltaKey, DeviceTier

_log = structlog.get_logger(__name__)


class NotPlacedError(Exception):
    """The sample's head delta was evicted while the sample waited; it must be loaded again."""


class NoMemoryError(Exception):
    """The device has too little memory for this sample, even alone."""


class ComputationError(Exception):
    """The sample could not be computed; the log has the reason."""


Failure: TypeAlias = NotPlacedError | NoMemoryError | ComputationError
Outcome: TypeAlias = "Tensor | Failure"


@dataclass(frozen=True, eq=False)
class Work:
    """One sample to compute.

    Attributes:
        backbone: the sample's backbone.
        key: of the head delta.
        record: of the head delta.
        packed: the head delta in host memory; None if it was on the device.
        sample: encoded.
        settle: called on the event loop with the sample's logits on the CPU, or with the failure.
    """

    backbone: ServedBackbone
    key: DeltaKey
    record: TaskRecord
    packed: PackedDelta | None
    sample: Sample
    settle: Callable[[Outcome], None]


_Tickets: TypeAlias = Sequence[Ticket[Work]]


class Executor:
    """Computes a scheduler's batches in its own thread, until the scheduler is closed.

    Args:
        scheduler: forms the batches.
        tier: head deltas on the device; no other thread places any.
        loop: the event loop on which ``settle`` is called.
        observe: called with the samples and tokens of every pass, including padding; tokens of
            equal inputs count once.
        on_end: called when the device has failed: after any GPU error but a lack of memory, all
            later work fails until the process restarts.
    """

    def __init__(
        self,
        scheduler: Scheduler[Work],
        *,
        tier: DeviceTier,
        loop: asyncio.AbstractEventLoop,
        observe: Callable[[int, int], None],
        on_end: Callable[[], None],
    ) -> None:
        self._scheduler = scheduler
        self._tier = tier
        self._loop = loop
        self._observe = observe
        self._on_end = on_end
        self._thread = threading.Thread(target=self._run, name="executor", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread still runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Wait for the current batch; close the scheduler first."""
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._compute_next():
                pass
        except Exception:
            _log.exception("nothing can be computed any more")
            self._on_end()
            raise

    def _compute_next(self) -> bool:
        """Compute one batch and keep nothing of it; return False if the scheduler is closed."""
        batch = self._scheduler.take()
        self._compute_all(batch)
        return bool(batch)

    def _compute_all(self, batch: _Tickets) -> None:
        """Compute a batch, in several passes if its head deltas do not fit at once."""
        while batch:
            placed = self._place(batch)
            if not isinstance(placed, Placement):
                self._split(batch, placed, compute=self._compute_all)
                return
            self._deliver([(t, NotPlacedError()) for t in batch if t.work.key in placed.missing])
            ready = [ticket for ticket in batch if ticket.work.key in placed.ready]
            if ready:
                self._compute(ready)
            batch = [ticket for ticket in batch if ticket.work.key in placed.later]

    def _place(self, batch: _Tickets) -> Placement | Failure:
        """Place a batch's head deltas on the device; return the failure if that is impossible."""
        works = [ticket.work for ticket in batch]
        try:
            return self._tier.place(
                works[0].backbone,
                {work.key: work.record for work in works},
                packed={work.key: work.packed for work in works if work.packed is not None},
            )
        except Exception as error:  # noqa: BLE001 - one delta's error must not fail the others
            return _describe(error, samples=len(batch))

    def _compute(self, batch: _Tickets) -> None:
        """Compute samples whose head deltas are on the device; split the batch on an error."""
        try:
            answers = self._forward(batch)
        except Exception as error:  # noqa: BLE001 - one sample's error must not fail the others
            failure = _describe(error, samples=len(batch))
        else:
            self._deliver(list(zip(batch, answers, strict=True)))
            return
        self._split(batch, failure, compute=self._compute)

    def _split(
        self, batch: _Tickets, failure: Failure, *, compute: Callable[[_Tickets], None]
    ) -> None:
        """Retry the halves of a failed batch; a single sample gets the failure."""
        if len(batch) == 1:
            self._deliver([(batch[0], failure)])
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # raises if the device has failed for good
            torch.cuda.empty_cache()
        if len(batch) == 1:
            return
        middle = len(batch) // 2
        compute(batch[:middle])
        compute(batch[middle:])

    def _forward(self, batch: _Tickets) -> Sequence[Tensor]:
        """Return the logits of each sample, on the CPU; equal inputs of a tenant run together."""
        model, bank = batch[0].work.backbone.model, batch[0].work.backbone.bank
        rows = _equal_inputs(batch)
        samples = [batch[places[0]].work.sample for places in rows]
        inputs = {
            name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
            for name, value in collate(samples).items()
        }
        self._observe(len(batch), len(rows) * max(ticket.length for ticket in batch))
        found = bank.fan_out(inputs, [[batch[place].work.key for place in row] for row in rows])
        by_place = {
            place: answer
            for row, own in zip(rows, found, strict=True)
            for place, answer in zip(row, own, strict=True)
        }
        answers = [by_place[place] for place in range(len(batch))]
        # One copy from the device for all, although the logits differ in shape.
        flat = torch.cat([answer.flatten() for answer in answers]).float().cpu()
        parts = flat.split([answer.numel() for answer in answers])
        return [part.view(answer.shape) for part, answer in zip(parts, answers, strict=True)]

    def _deliver(self, outcomes: Sequence[tuple[Ticket[Work], Outcome]]) -> None:
        if outcomes:
            settle = partial(_settle, [(ticket.work, outcome) for ticket, outcome in outcomes])
            self._loop.call_soon_threadsafe(settle)


def _equal_inputs(batch: _Tickets) -> list[list[int]]:
    """Return the places of the samples of each input, in the order of the first of them.

    Equal inputs of different tenants stay apart: that one takes less time would tell a tenant what
    another one asked.
    """
    rows: dict[object, list[int]] = {}
    for place, ticket in enumerate(batch):
        inputs = ticket.work.sample.inputs
        values = tuple((name, inputs[name].numpy().tobytes()) for name in sorted(inputs))
        rows.setdefault((ticket.tenant, values), []).append(place)
    return list(rows.values())


def _settle(outcomes: Sequence[tuple[Work, Outcome]]) -> None:
    for work, outcome in outcomes:
        work.settle(outcome)


def _describe(error: Exception, *, samples: int) -> Failure:
    """Log an error and return it as a failure; one sample can fail a batch of several."""
    if is_out_of_memory(error):
        _log.warning("out of memory", samples=samples, error=str(error).partition("\n")[0])
        return NoMemoryError()
    if samples == 1:
        _log.error("a sample cannot be computed", exc_info=error)
    else:
        _log.warning("a batch failed, its halves are tried", samples=samples, error=repr(error))
    return ComputationError()
