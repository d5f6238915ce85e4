"""Build and close everything that predictions need in one process."""

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
from store.resources.turns import Places
from worker.inference.executor import Executor, Work
from worker.inference.memory.backbones import Backbones, ServedBackbone
from worker.inference.memory.loading import DeltaLoader
from worker.inference.memory.tiers import DeviceTier, HostTier
from worker.inference.metrics import Metrics, Tier
from worker.inference.predictions import Answer, PredictionHandler
from worker.inference.scheduler import Scheduler
from worker.memory import limit_host_memory

if TYPE_CHECKING:
    from store.orders import PredictionOrder
    from store.settings import Settings
    from worker.inference.memory.deltas import DeltaCache


# On two CPU cores the rate does not rise beyond 500 tokens, and a new request waits for the current
# batch, a third of a second. A GPU needs more tokens; its figure is not measured.
BATCH_TOKENS = {"cpu": 1024, "cuda": 8192}
# With the engine's half, an eighth of the memory of a machine that runs the whole service is left
# for the other processes.
_MEMORY_SHARE = 3 / 8
# Of one tenant while there are others, who wait for the current batch. On one CPU core MiniLM takes
# 55 ms for 128 tokens, and computes 15 % fewer tokens a second than in batches of 1,024; a GPU has
# no reason to compute so few at a time.
TENANT_TOKENS = {"cpu": 128, "cuda": 8192}


@dataclass(frozen=True)
class Serving:
    """Answers predictions and counts them."""

    handler: PredictionHandler
    executor: Executor
    metrics: Metrics

    async def predict(self, request: PredictionOrder) -> list[Answer]:
        """Answer a request, as ``PredictionHandler.predict`` does, and count it."""
        started = time.perf_counter()
        try:
            answers = await self.handler.predict(request)
        except ProblemError as problem:
            self.metrics.observe_refusal(problem.code, len(request.items))
            raise
        self.metrics.observe_request(answers, time.perf_counter() - started)
        return answers


def _end_process() -> None:
    """Shut down cleanly, so that the process supervisor restarts it."""
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def open_serving(settings: Settings, *, deltas: DeltaCache) -> Iterator[Serving]:
    """Serve predictions during a block; called on the event loop.

    Raises:
        InvalidArgumentError: this machine has no such device.
    """
    device = resolve_device(settings.device)
    limit_host_memory(device, most=settings.infer_memory_bytes, share=_MEMORY_SHARE)
    # On a CPU, host and device memory are the same: a second copy would be useless.
    host = HostTier(settings.infer_host_bytes if device.type == "cuda" else 0)
    tier = DeviceTier(settings.infer_device_bytes)

    def drop(backbone: ServedBackbone) -> None:
        host.drop(backbone)
        tier.drop(backbone)

    scheduler: Scheduler[Work] = Scheduler(
        max_tokens=settings.infer_batch_tokens or BATCH_TOKENS[device.type],
        tenant_tokens=TENANT_TOKENS[device.type],
        max_wait_seconds=settings.infer_batch_wait_ms / 1000,
    )
    places = Places(settings.infer_max_inputs, what="inputs in flight")

    tiers: dict[str, Tier] = {"device": tier, "host": host, "disk": deltas}
    metrics = Metrics(under_way=places, waiting=scheduler, tiers=tiers)
    handler = PredictionHandler(
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
        yield Serving(handler, executor, metrics)
    finally:
        scheduler.close()
        executor.close()
        handler.close()
