"""Have backbones described by an engine, one at a time, without waiting for it."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from worker.engine.handle import EngineDiedError
from worker.engine.messages import DescribeBackbones, Described

if TYPE_CHECKING:
    from pathlib import Path

    from worker.engine.handle import EngineProcess

_DESCRIBE_SECONDS = 1800.0  # hashing a large backbone on a slow disk takes minutes


@dataclass(frozen=True, kw_only=True)
class Order:
    """A folder to be described, as it was when the order was made."""

    id: str
    path: Path
    stamp: str


class Describer:
    """Orders descriptions from an engine that computes nothing else meanwhile.

    Args:
        engine: started when needed; replaced if a backbone kills it.

    Attributes:
        order: the one under way; None if there is none.
    """

    def __init__(self, engine: EngineProcess) -> None:
        self._engine = engine
        self._started_at = 0.0
        self.order: Order | None = None

    def warm_up(self) -> None:
        """Start the engine, so that the first description need not wait for that."""
        self._engine.start()

    def begin(self, order: Order) -> None:
        """Order the description of a backbone; one at a time."""
        self.order, self._started_at = order, time.monotonic()
        self._engine.start()
        with suppress(EngineDiedError):  # which poll reports
            self._engine.send(DescribeBackbones(backbones={order.id: str(order.path)}))

    def poll(self, *, timeout: float) -> Described | None:
        """Return the ordered description, or why there is none; None if it is not finished.

        A backbone that kills the engine, or takes half an hour, cannot be used; the next order
        starts another engine.
        """
        if self.order is None:
            return None
        error: str | None = None
        try:
            message = self._engine.receive(timeout=timeout)
            if isinstance(message, Described) and message.id == self.order.id:
                return self._end(message)
            if time.monotonic() - self._started_at > _DESCRIBE_SECONDS:
                error = f"it was not read within {_DESCRIBE_SECONDS:.0f} seconds"
        except EngineDiedError as death:
            error = f"reading it ended the process: {death}"
        if error is None:
            return None
        self._engine.kill()
        return self._end(Described(id=self.order.id, error=error))

    def _end(self, described: Described) -> Described:
        self.order = None
        return described

    def close(self) -> None:
        """End the engine."""
        self._engine.kill()
        self.order = None
