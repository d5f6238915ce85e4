"""Follow a job's events over one or more connections; each event is yielded exactly once."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import httpx2

from service.client.errors import ApiError, UnexpectedAnswerError, UnreachableError
from store.states import FINISHED

if TYPE_CHECKING:
    from service.client.connection import Connection
    from service.client.documents import Event, Job, Progress

PATIENCE_SECONDS = 120.0  # for a server that was reachable before: a restart takes less
_READ_SECONDS = 45.0  # longer than the pause between two messages of a live stream
_PAUSE_SECONDS = 0.2  # before the first retry; doubled each time
_MOST_DOUBLINGS = 10
_LONGEST_WAIT_SECONDS = 5.0


@dataclass
class Watcher:
    """Follows the stream of the job at ``path``, and reopens it when the connection breaks.

    Attributes:
        last: id of the newest event that is known; only later ones are yielded.
        on_progress: called with the job's progress when it changes.
        lost_at: when the server became unreachable.
    """

    connection: Connection
    path: str
    last: str | None
    on_progress: Callable[[Progress], None] | None
    seen: set[str] = field(default_factory=set)
    failures: int = 0
    lost_at: float | None = None

    def run(self) -> Iterator[Event]:
        """Yield the job's events until it is finished.

        Raises:
            ApiError: the server refuses.
            UnreachableError: the server cannot be reached, or did not come back.
            UnexpectedAnswerError: the response is not a stream of events.
        """
        self._status()  # raises at once for a wrong id or an unreachable server
        while True:
            before = len(self.seen)
            try:
                has_ended = yield from self._follow()
                # A stream can end without the job's last event: if all events were before
                # `after`, or if the server is shutting down.
                if has_ended or (self._status() in FINISHED and len(self.seen) == before):
                    return
                self.connection.sleep(_PAUSE_SECONDS)
            except (httpx2.TransportError, UnreachableError, ApiError) as error:
                self._wait_after(error)

    def _status(self) -> str:
        job: Job = self.connection.ask("GET", self.path)
        self.lost_at = None
        return job["status"]

    def _follow(self) -> Generator[Event, None, bool]:
        """Yield the events of one connection; return whether the job's last one was among them."""
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if self.last is not None:
            headers["Last-Event-ID"] = self.last
        with self.connection.stream(
            f"{self.path}/events", headers=headers, timeout=_READ_SECONDS
        ) as response:
            self.lost_at = None
            for message in httpx2.EventSource(response):
                self.failures = 0
                if message.event == "progress" and self.on_progress is not None:
                    progress = _read(message, "phase", "step", "total_steps", "eta_seconds")
                    self.on_progress(cast("Progress", progress))
                if message.event != "message" or not message.data:
                    continue
                event = cast("Event", _read(message, "id", "type", "message", "data"))
                if event["id"] in self.seen:
                    continue
                self.last = message.id or event["id"]
                self.seen.add(event["id"])
                yield event
                if event["type"] == "status" and event["data"].get("status") in FINISHED:
                    return True
        return False

    def _wait_after(self, error: httpx2.TransportError | UnreachableError | ApiError) -> None:
        """Wait, longer each time; raise if the error is permanent or lasts too long."""
        if isinstance(error, httpx2.SSEError):
            raise UnexpectedAnswerError(f"{self.connection.url}: {error}") from error
        if isinstance(error, ApiError) and not error.is_busy:
            raise error
        now = time.monotonic()
        self.lost_at = now if self.lost_at is None else self.lost_at
        if now - self.lost_at > PATIENCE_SECONDS:
            if isinstance(error, httpx2.TransportError):
                raise self.connection.unreachable(error) from error
            raise error
        wait = min(_PAUSE_SECONDS * 2**self.failures, _LONGEST_WAIT_SECONDS)
        self.failures = min(self.failures + 1, _MOST_DOUBLINGS)
        self.connection.sleep(wait * random.uniform(1.0, 1.2))  # noqa: S311 - no secret


def _read(message: httpx2.ServerSentEvent, *names: str) -> dict[str, Any]:
    """Parse a message's document, which must have these fields."""
    try:
        document = json.loads(message.data)
    except ValueError:
        document = None
    if not isinstance(document, dict) or not document.keys() >= set(names):
        raise UnexpectedAnswerError(
            "the server's events have an unknown format: client and server versions do not match"
        )
    return document
