"""End connections whose client (a gateway) does not take what is sent to it."""

from __future__ import annotations

import asyncio

import structlog
from uvicorn.protocols.http.h11_impl import H11Protocol

# A gateway that takes nothing for so long does not come back; until then a merged model is on disk,
# and its request holds a place of its tenant.
STALL_SECONDS = 60.0
_log = structlog.get_logger(__name__)


class StallingProtocol(H11Protocol):
    """HTTP/1.1 that aborts a connection whose send buffer is full and stays so.

    The client may be slow, as long as it takes some bytes every ``STALL_SECONDS``. The
    application sees the abort as a disconnect.
    """

    _stalled: asyncio.TimerHandle | None = None
    _unsent = 0

    def pause_writing(self) -> None:
        """Begin to watch the full buffer (called by the transport)."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """Stop watching, since the buffer has room again (called by the transport)."""
        self._stop_watching()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop watching (called by the transport)."""
        self._stop_watching()
        super().connection_lost(exc)

    def _watch(self) -> None:
        self._unsent = self.transport.get_write_buffer_size()
        self._stalled = self.loop.call_later(STALL_SECONDS, self._check)

    def _stop_watching(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _check(self) -> None:
        if self.transport.get_write_buffer_size() < self._unsent:
            self._watch()
            return
        _log.warning("client_stalled", seconds=STALL_SECONDS)
        self.transport.abort()
