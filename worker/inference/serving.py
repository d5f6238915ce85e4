"""Everything that predictions need, put together for the time of one process."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hifi.backbones.devices import resolve_device
from store.errors import ProblemError
from worker.inference.executor import Executor, Work
from worker.inference.memory.backbones import Backbones, ServedBackbone
from worker.inference.memory.loading import DeltaLoader
from worker.inference.memory.tiers import DeviceTier, HostTier
from worker.inference.metrics import Figures, Metrics, TierFigures
from worker.inference.predictions import Answer, Places, PredictionDesk
from worker.inference.scheduler import Scheduler

if TYPE_CHECKING:
    from store.orders import PredictionOrder
    from store.settings import Settings
    from worker.inference.memory.deltas import DeltaCache


# On two CPU cores the rate is the same from 500 tokens on, and whoever comes waits for a batch to
# end, a third of a second. A GPU is filled by more; that figure is not measured.
BATCH_TOKENS = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True)
class Serving:
    """Answers predictions and counts them."""

    desk: PredictionDesk
    executor: Executor
    metrics: Metrics

    async def predict(self, request: PredictionOrder) -> list[Answer]:
        """Answer a request, as ``PredictionDesk.predict`` does."""
        started = time.perf_counter()
        try:
            answers = await self.desk.predict(request)
        except ProblemError as problem:
            self.metrics.observe_refusal(problem.code, len(request.items))
            raise
        self.metrics.observe_request(answers, time.perf_counter() - started)
        return answers


def _end_process() -> None:
    """End in order, so that whoever watches over the process starts it again."""
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def open_serving(settings: Settings, *, deltas: DeltaCache) -> Iterator[Serving]:
    """Serve predictions for the time of a block; called on the event loop.

    Args:
        settings: device, budgets and limits.
        deltas: head deltas on disk.

    Raises:
        InvalidArgumentError: this machine has no such device.
    """
    device = resolve_device(settings.device)
    # On a CPU a copy in host memory would be a second one in the same memory.
    host = HostTier(settings.infer_host_bytes if device.type == "cuda" else 0)
    tier = DeviceTier(settings.infer_device_bytes)

    def drop(backbone: ServedBackbone) -> None:
        host.drop(backbone)
        tier.drop(backbone)

    scheduler: Scheduler[Work] = Scheduler(
        max_tokens=settings.infer_batch_tokens or BATCH_TOKENS[device.type],
        max_wait_seconds=settings.infer_batch_wait_ms / 1000,
    )
    places = Places(settings.infer_max_inputs)

    def look() -> Figures:
        tiers = {
            "device": TierFigures(len(tier), tier.nbytes),
            "host": TierFigures(len(host), host.nbytes),
            "disk": TierFigures(len(deltas), deltas.nbytes),
        }
        return Figures(under_way=len(places), waiting=len(scheduler), tiers=tiers)

    metrics = Metrics(look)
    desk = PredictionDesk(
        places=places,
        backbones=Backbones(settings, device=device, on_drop=drop),
        loader=DeltaLoader(deltas=deltas, host=host),
        device=tier,
        scheduler=scheduler,
    )
    loop = asyncio.get_running_loop()
    executor = Executor(
        scheduler, tier=tier, loop=loop, observe=metrics.observe_pass, on_end=_end_process
    )
    try:
        yield Serving(desk, executor, metrics)
    finally:
        scheduler.close()
        executor.close()
        desk.close()
