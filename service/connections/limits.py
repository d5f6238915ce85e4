"""How many connections a gateway keeps open, and which of them make room for new ones."""

from __future__ import annotations

import resource
import time
from collections import Counter
from http import HTTPStatus
from typing import Protocol

import structlog

from store.errors import ProblemError

# Descriptors for everything else: 20 database connections of three files each, about 200
# connections to the inference process and the artifact store, uploads, and files being sent.
_OTHER_DESCRIPTORS = 400
_log = structlog.get_logger(__name__)


class Connection(Protocol):
    """What the limits need of a connection. It is hashed by identity."""

    caller: str

    def pace(self, now: float) -> float | None:
        """Return its bytes per second while it keeps the server waiting; None if it does not."""

    def check(self, now: float) -> None:
        """Close it if it has exceeded a time limit."""

    def abort(self) -> None:
        """Close it at once."""


class Connections:
    """The open connections of one event loop.

    At a limit, a new connection takes the place of the one that has waited longest for its client's
    request. So half-open connections, however many, never keep a client away that sends its request
    at once. If all connections have a request, the slowest that keeps the server waiting is closed.
    Only if there is none is the new connection refused.

    Args:
        most: of all callers together.
        most_per_caller: of one address, or of one /64 network of IPv6 addresses.
    """

    def __init__(self, *, most: int, most_per_caller: int) -> None:
        self._most = most
        self._most_per_caller = most_per_caller
        self._open: dict[Connection, None] = {}
        self._idle: dict[Connection, None] = {}  # without a request; the longest-waiting first
        self._counts: Counter[str] = Counter()

    def admit(self, connection: Connection) -> ProblemError | None:
        """Count a new connection; return the problem if there is no room for it."""
        caller = connection.caller
        problem = None
        if self._counts[caller] >= self._most_per_caller and not self._make_room(caller):
            problem = ProblemError(
                "too_many_connections",
                status=HTTPStatus.TOO_MANY_REQUESTS,
                detail=f"your address has {self._most_per_caller} open connections, which is the "
                "limit; close one, or retry later",
            )
        elif len(self._open) >= self._most and not self._make_room(None):
            problem = ProblemError(
                "too_many_connections",
                status=HTTPStatus.SERVICE_UNAVAILABLE,
                detail=f"this server has {self._most} open connections, which is the limit; retry "
                "later",
            )
        if problem is not None:
            _log.warning("connection_refused", address=caller, reason=problem.detail)
        self._open[connection] = None
        self._counts[caller] += 1
        return problem

    def remove(self, connection: Connection) -> None:
        """Forget a connection; it may have been removed before."""
        self._idle.pop(connection, None)
        if self._open.pop(connection, connection) is None:
            self._counts[connection.caller] -= 1
            if not self._counts[connection.caller]:
                del self._counts[connection.caller]

    def set_idle(self, connection: Connection) -> None:
        """Note that a connection has no request, from now on."""
        if connection in self._open:
            self._idle.setdefault(connection)

    def set_busy(self, connection: Connection) -> None:
        """Note that a connection has a request."""
        self._idle.pop(connection, None)

    async def check_all(self) -> None:
        """Close all connections that have exceeded a time limit; to be called every second."""
        now = time.monotonic()
        for connection in list(self._open):
            connection.check(now)

    def _make_room(self, caller: str | None) -> bool:
        """Close one connection, of one caller or of any; return whether there was one to close."""
        chosen = next((one for one in self._idle if caller in (None, one.caller)), None)
        chosen = chosen or self._slowest(caller)
        if chosen is None:
            return False
        self.remove(chosen)  # now: the event loop reports its end later
        chosen.abort()
        return True

    def _slowest(self, caller: str | None) -> Connection | None:
        now = time.monotonic()
        paces = (
            (one.pace(now), one) for one in self._open if caller is None or one.caller == caller
        )
        waiting = [(pace, one) for pace, one in paces if pace is not None]
        return min(waiting, key=lambda pair: pair[0])[1] if waiting else None


def raise_descriptor_limit() -> int:
    """Allow this process as many open files as the system permits; return their number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def within_descriptors(most: int, *, descriptors: int) -> int:
    """Return the number of connections for which there are descriptors, at least one.

    Args:
        most: the wanted number.
        descriptors: how many files this process may open; -1 if there is no limit.
    """
    if descriptors == resource.RLIM_INFINITY or most + _OTHER_DESCRIPTORS <= descriptors:
        return most
    fitting = max(descriptors - _OTHER_DESCRIPTORS, descriptors // 4, 1)
    _log.warning("few_descriptors", descriptors=descriptors, connections=fitting, wanted=most)
    return fitting
