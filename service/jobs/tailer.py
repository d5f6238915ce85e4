"""The tailer: one poll of the tables for all jobs that streams of this process follow."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import sqlalchemy as sa
import structlog
from anyio import CapacityLimiter, to_thread
from sqlalchemy.exc import SQLAlchemyError

from service.context import from_state
from store.administration.keys import find_admitted
from store.tables import Job, JobEvent

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from store.database.connection import Database
    from store.states import JobStatus

_log = structlog.get_logger(__name__)
_Answer = TypeVar("_Answer")

_RECHECK_SECONDS = 2.0  # until a stream whose key admits no requests any more ends
_LONGEST_WAIT_SECONDS = 5.0  # between two attempts while the database is unreachable
_RECENT = 256  # events kept per feed, far more than a job writes between two polls
_PAGE = 200  # events per query of a stream that is behind
_READERS = 4  # database connections for all streams that catch up
_IDS_PER_QUERY = 5000  # a sixth of the parameters that both databases allow


@dataclass(frozen=True, slots=True)
class ProgressSeen:
    """A job's progress, from its columns of the same names."""

    status: JobStatus
    phase: str | None
    step: int | None
    total_steps: int | None
    eta_seconds: float | None


@dataclass(frozen=True, slots=True)
class _State:
    last_event: int
    progress: ProgressSeen


@dataclass(frozen=True)
class _Look:
    """A job's state at one time (None if it is deleted) and its next events."""

    state: _State | None
    events: Sequence[JobEvent]


@dataclass(eq=False)
class _KeyedStream:
    """An open stream of a key; refused when the key was found to admit no requests any more.

    The mark is the stream's and not the key's: the tenant of the key may be resumed, and the next
    stream of the key is admitted then.
    """

    key_id: str
    is_refused: bool = False


class _Feed:
    """The result of the last poll for one job, shared by all streams that follow it.

    Attributes:
        streams: the number of streams.
        changed: set, and replaced, when there is something new.
        is_closed: whether nothing more will follow.
        after: number of the newest event seen; None before the first poll.
    """

    def __init__(self) -> None:
        self.streams = 0
        self.changed = asyncio.Event()
        self.is_closed = False
        self._seen: _Look | None = None
        self._recent: deque[JobEvent] = deque(maxlen=_RECENT)

    @property
    def after(self) -> int | None:
        state = self._seen and self._seen.state
        return state.last_event if state else None

    def take(self, seen: _Look) -> None:
        """Store the result of a poll, and wake the streams if it is new."""
        before, self._seen = self._seen, seen
        # An event may arrive between a poll's two queries; the next poll then returns it again.
        newest = self._recent[-1].number if self._recent else 0
        self._recent.extend(event for event in seen.events if event.number > newest)
        if before is None or seen.state != before.state:
            self.wake()

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def look(self, after: int) -> _Look | None:
        """Return the job's news for a stream that has its events up to ``after``.

        Returns:
            None if the stream must query the database itself: there was no poll yet, or its next
            event is too old for the feed.
        """
        seen = self._seen
        if seen is None or seen.state is None or after >= seen.state.last_event:
            return seen and _Look(seen.state, ())
        events = [event for event in self._recent if event.number > after]
        return _Look(seen.state, events) if events and events[0].number == after + 1 else None


class Tailer:
    """Live events for any number of streams, for the cost of one query per poll.

    It polls, in a thread, only while streams follow a job, and holds no session between polls.
    Streams have no queues that could overflow. Each stream has its own position among the job's
    numbered events, takes later events from the poll, and reads those that it missed from the
    database. So no event is lost or repeated, however long either side is unreachable.

    Everything except the queries runs on one event loop.

    Args:
        database: where the jobs are.
        interval: seconds between two polls.
    """

    def __init__(self, database: Database, *, interval: float = 0.2) -> None:
        self._database = database
        self._interval = interval
        self._feeds: dict[str, _Feed] = {}
        self._keyed: set[_KeyedStream] = set()
        self._polling: asyncio.Task[None] | None = None
        self._is_away = False
        self._pollers = CapacityLimiter(1)
        self._readers = CapacityLimiter(_READERS)

    async def follow(
        self, job_id: str, *, after: int = 0, key_id: str | None = None
    ) -> AsyncGenerator[JobEvent | ProgressSeen, None]:
        """Yield a job's events after a number, and its progress when that changes.

        The events arrive in order, each once, and end with the job's last event. The stream also
        ends when the job is deleted, the key ends, its tenant is suspended or the tailer is closed.

        Args:
            job_id: of the job; the caller has been checked to own it.
            after: number of the last event that the stream already has.
            key_id: the key that opened the stream; None if none was required.
        """
        shown: ProgressSeen | None = None
        stream = None if key_id is None else _KeyedStream(key_id)
        with self._joined(job_id, stream) as feed:
            while not feed.is_closed and not (stream and stream.is_refused):
                changed = feed.changed
                seen = feed.look(after)
                if seen is None:
                    catch_up = partial(_read, job_id=job_id, after=after)
                    seen = await self._ask(catch_up, self._readers)
                state = seen.state
                if state is None:
                    return
                # A poll older than our own read must not set the progress back. Old events are
                # sent before it, so that clients do not mistake them for newer ones.
                is_news = state.progress != shown and state.last_event >= after
                for event in seen.events:
                    if is_news and event.number == state.last_event:
                        is_news, shown = False, state.progress
                        yield shown
                    after = event.number
                    yield event
                if is_news and not seen.events:
                    shown = state.progress
                    yield shown
                # If events before the last one are missing, the job is being deleted: the next poll
                # will show it.
                if after >= state.last_event or not seen.events:
                    if state.progress.status.is_finished:
                        return
                    await changed.wait()

    def stop(self) -> None:
        """End all streams."""
        if self._polling is not None:
            self._polling.cancel()

    async def close(self) -> None:
        """Stop, and wait until all work has ended."""
        self.stop()
        if self._polling is not None:
            await asyncio.wait([self._polling])

    @contextmanager
    def _joined(self, job_id: str, stream: _KeyedStream | None) -> Iterator[_Feed]:
        feed = self._feeds.setdefault(job_id, _Feed())
        feed.streams += 1
        keyed = set() if stream is None else {stream}
        self._keyed |= keyed
        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(self._poll_while_followed())
            self._polling.add_done_callback(self._end)
        try:
            yield feed
        finally:
            feed.streams -= 1
            if not feed.streams and self._feeds.get(job_id) is feed:
                del self._feeds[job_id]
            self._keyed -= keyed

    async def _poll_while_followed(self) -> None:
        clock = asyncio.get_running_loop().time
        checked_at = clock()
        while self._feeds:
            cursors = {job_id: feed.after for job_id, feed in self._feeds.items()}
            seen = await self._ask(partial(_poll, cursors=cursors), self._pollers)
            for job_id, look in seen.items():
                # All streams may have left during the poll; later ones have queried the database.
                if job_id in self._feeds:
                    self._feeds[job_id].take(look)
            if self._keyed and clock() - checked_at >= _RECHECK_SECONDS:
                await self._recheck()
                checked_at = clock()
            await asyncio.sleep(self._interval)

    def _end(self, polling: asyncio.Task[None]) -> None:
        """End the streams when polling ends, so that they do not hang.

        After an unexpected error the clients reconnect, which starts a new poll.
        """
        if not polling.cancelled() and (error := polling.exception()) is not None:
            _log.error("event_poll_failed", exc_info=error)
        if self._polling is not polling:
            return  # a stream arrived just as it ended
        self._polling = None
        feeds, self._feeds = self._feeds, {}
        for feed in feeds.values():
            feed.is_closed = True
            feed.wake()

    async def _recheck(self) -> None:
        """End the streams whose keys admit no requests any more.

        Streams that open during the query are left to the next one: their keys were valid later.
        """
        asked = list(self._keyed)
        keys = {stream.key_id for stream in asked}
        admitted = await self._ask(partial(find_admitted, key_ids=keys), self._pollers)
        refused = [stream for stream in asked if stream.key_id not in admitted]
        for stream in refused:
            stream.is_refused = True
        if refused:
            for feed in self._feeds.values():
                feed.wake()

    async def _ask(
        self, question: Callable[[Session], _Answer], limiter: CapacityLimiter
    ) -> _Answer:
        """Query the database in a thread; retry while it is unreachable."""
        wait = self._interval
        while True:
            try:
                answer = await to_thread.run_sync(
                    self._answer, question, limiter=limiter, abandon_on_cancel=True
                )
            except SQLAlchemyError as error:
                if not self._is_away:
                    _log.warning("event_streams_wait_for_database", error=str(error))
                self._is_away = True
                await asyncio.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
            else:
                self._is_away = False
                return answer

    def _answer(self, question: Callable[[Session], _Answer]) -> _Answer:
        with self._database.read() as session:
            return question(session)


_COLUMNS = (
    *(Job.id, Job.last_event),
    # The fields of ProgressSeen:
    *(Job.status, Job.phase, Job.step, Job.total_steps, Job.eta_seconds),
)


def _poll(session: Session, *, cursors: Mapping[str, int | None]) -> dict[str, _Look]:
    """Read many jobs at once: one query, and a second one if there are new events."""
    ids = list(cursors)
    states: dict[str, _State] = {}
    for start in range(0, len(ids), _IDS_PER_QUERY):
        query = sa.select(*_COLUMNS).where(Job.id.in_(ids[start : start + _IDS_PER_QUERY]))
        states |= {row.id: _state(row) for row in session.execute(query)}
    moved = [
        (job_id, after)
        for job_id, after in cursors.items()
        if after is not None and job_id in states and states[job_id].last_event > after
    ]
    events: dict[str, list[JobEvent]] = {}
    for start in range(0, len(moved), _IDS_PER_QUERY):
        rows = session.scalars(_events_behind(moved[start : start + _IDS_PER_QUERY]))
        events |= {job_id: list(group) for job_id, group in groupby(rows, lambda row: row.job_id)}
    return {job_id: _Look(states.get(job_id), events.get(job_id, ())) for job_id in ids}


def _events_behind(cursors: Sequence[tuple[str, int]]) -> sa.Select[JobEvent]:
    rows = sa.values(
        sa.column("job_id", sa.String), sa.column("after", sa.BigInteger), name="cursors"
    )
    cursor = rows.data(cursors).cte("cursors").c
    return (
        sa.select(JobEvent)
        .where(JobEvent.job_id == cursor.job_id, JobEvent.number > cursor.after)
        .order_by(JobEvent.job_id, JobEvent.number)
    )


def _read(session: Session, *, job_id: str, after: int) -> _Look:
    """Read one job and its next events."""
    row = session.execute(sa.select(*_COLUMNS).where(Job.id == job_id)).one_or_none()
    if row is None:
        return _Look(None, ())
    events = sa.select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.number > after)
    return _Look(_state(row), session.scalars(events.order_by(JobEvent.number).limit(_PAGE)).all())


def _state(row: sa.Row[*tuple[Any, ...]]) -> _State:
    _, last_event, *progress = row
    return _State(last_event, ProgressSeen(*progress))


TailerDep = Annotated[Tailer, from_state("tailer")]
