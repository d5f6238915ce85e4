"""Form batches of samples of similar length, fairly between tenants."""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Work = TypeVar("Work")

# The least share of real tokens in a batch; the rest is padding. Lengths of MRPC's pairs, 1,024
# tasks, batches of 1,024 tokens, in a simulation of two CPU cores (10 ms a pass, 0.36 ms a token):
# 0.6, 0.7, 0.8, 0.9 and 0.95 give 37, 38, 42, 46 and 48 samples a second, and at 31/s a p95 of 371,
# 324, 244, 207 and 211 ms; with 1 it is 314 ms.
_LEAST_FILL = 0.9

# One of this many batches begins with the oldest sample of all. A tenant that sends more than its
# share may get no turn for long, and its samples of a rare length fit no other tenant's batch. In
# the same simulation, with 128 clients that send without pause, a tenant with a seventh of the load
# waits 36 s at most, and 31 s with one of 4 batches; without this and the next bound it was 79 s.
_OLDEST_EVERY = 8

# How long a tenant that has sent something counts as a neighbour of the others. While it does, no
# tenant alone fills a pass, since a pass is never interrupted.
_NEIGHBOUR_SECONDS = 10.0

# While samples that somebody waits for keep coming, one of this many batches is of the background,
# so that a batch prediction goes on, if slowly, on a machine that is always busy.
_BACKGROUND_EVERY = 16

# How far a tenant's account may be ahead, in batches of tokens. It gets more than its share while
# no other tenant's samples fit a batch; without a bound it would pay for that long afterwards.
_MOST_AHEAD = 4


@dataclass(eq=False, slots=True)
class Ticket(Generic[Work]):
    """One sample that waits to be computed.

    Attributes:
        group: the backbone; a batch has samples of one group only.
        tenant: the owner.
        length: in tokens.
        work: passed to the thread that computes it.
        is_background: whether samples that somebody waits for go first.
        came_at: by the scheduler's clock.
    """

    group: Hashable
    tenant: str
    length: int
    work: Work
    is_background: bool = False
    came_at: float = field(default=0.0, init=False)


class Scheduler(Generic[Work]):
    """Forms batches of samples.

    Each tenant has an account of computed tokens. The next batch begins with the oldest sample of
    the tenants in turn: those that wait with the smallest account, or at most half of
    ``tenant_tokens`` more. Tenants do not save up turns while they have nothing waiting. Further
    samples are added, each from the tenant with the smallest account at that point, as long as the
    batch stays within its limit of tokens and has little padding. While there are other tenants,
    one tenant adds at most ``tenant_tokens`` to a batch: so a tenant with one sample waits for a
    short batch or two, however many samples another has. One batch in eight begins with the oldest
    sample of all tenants, so that a sample that fits no batch does not wait forever.

    Samples of the background (of batch predictions) are computed when no others wait, and one batch
    in sixteen besides; they have accounts of their own. While others have been sent lately, their
    batches have at most ``tenant_tokens``, since a pass is never interrupted.

    May be used by any number of threads.

    Args:
        max_tokens: of a batch, including padding; a single longer sample is a batch by itself.
        tenant_tokens: of one tenant in a batch while other tenants send samples, at least one
            sample.
        max_wait_seconds: how long a sample waits for others if nothing else is being computed.
        clock: in seconds.
    """

    def __init__(
        self,
        *,
        max_tokens: int,
        tenant_tokens: int,
        max_wait_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_tokens = max_tokens
        self._tenant_tokens = min(tenant_tokens, max_tokens)
        self._max_wait = max_wait_seconds
        self._clock = clock
        self._changed = threading.Condition()
        self._awaited = _Lane[Work](max_tokens=self._max_tokens)
        self._background = _Lane[Work](max_tokens=self._max_tokens)
        self._passed_over = 0  # batches formed while the background waited
        self._is_closed = False
        self._seen_at: dict[str, float] = {}  # when each tenant last added awaited samples

    def __len__(self) -> int:
        """Return the number of waiting samples that somebody waits for."""
        with self._changed:
            return len(self._awaited)

    def add(self, tickets: Collection[Ticket[Work]]) -> None:
        """Add samples to the queues."""
        with self._changed:
            now = self._clock()
            for ticket in tickets:
                ticket.came_at = now
                if ticket.is_background:
                    self._background.add(ticket)
                else:
                    self._seen_at[ticket.tenant] = now
                    self._awaited.add(ticket)
            self._changed.notify()

    def withdraw(self, tickets: Collection[Ticket[Work]]) -> None:
        """Remove samples; those that are already in a batch are computed nevertheless."""
        with self._changed:
            for lane in (self._awaited, self._background):
                lane.withdraw(tickets)

    def close(self) -> None:
        """Start no further batch."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def take(self) -> list[Ticket[Work]]:
        """Wait for a batch.

        Returns:
            At least one sample; none if the scheduler is closed.
        """
        with self._changed:
            while not self._is_closed:
                if not self._awaited and not self._background:
                    self._changed.wait()
                    continue
                patience = self._patience()
                if patience <= 0.0:
                    return self._form()
                self._changed.wait(patience)
            return []

    def _patience(self) -> float:
        """Return how many seconds the next batch may still wait for more samples."""
        lane = self._awaited or self._background
        if lane.tokens >= self._max_tokens:
            return 0.0
        return lane.oldest + self._max_wait - self._clock()

    def _form(self) -> list[Ticket[Work]]:
        """Take the next batch out of the queues."""
        has_neighbours = self._has_neighbours()
        is_turn = self._passed_over >= _BACKGROUND_EVERY - 1
        if not self._awaited or (self._background and is_turn):
            self._passed_over = 0
            is_alone = not self._seen_at
            return self._background.form(self._max_tokens if is_alone else self._tenant_tokens)
        self._passed_over = self._passed_over + 1 if self._background else 0
        return self._awaited.form(self._tenant_tokens if has_neighbours else self._max_tokens)

    def _has_neighbours(self) -> bool:
        """Return whether several tenants have sent samples lately; forget those that have not."""
        oldest = self._clock() - _NEIGHBOUR_SECONDS
        self._seen_at = {
            tenant: seen
            for tenant, seen in self._seen_at.items()
            if seen > oldest or tenant in self._awaited
        }
        return len(self._seen_at) > 1


class _Lane(Generic[Work]):
    """Waiting samples of one urgency, with the accounts of their tenants.

    Args:
        max_tokens: of a batch.
    """

    def __init__(self, *, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._queues: dict[str, deque[Ticket[Work]]] = {}  # of tenants with waiting samples
        self._tokens: dict[str, float] = {}  # virtual: each tenant's account
        self._now = 0.0  # virtual: the account of the last tenant
        self._formed = 0  # number of batches

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __bool__(self) -> bool:
        return bool(self._queues)

    def __contains__(self, tenant: str) -> bool:
        return tenant in self._queues

    @property
    def tokens(self) -> int:
        """The length of all waiting samples."""
        return sum(ticket.length for queue in self._queues.values() for ticket in queue)

    @property
    def oldest(self) -> float:
        """When the oldest sample came."""
        return min(queue[0].came_at for queue in self._queues.values())

    def add(self, ticket: Ticket[Work]) -> None:
        queue = self._queues.get(ticket.tenant)
        if queue is None:
            queue = self._queues[ticket.tenant] = deque()
            had = self._tokens.get(ticket.tenant, 0.0)
            self._tokens[ticket.tenant] = max(had, self._now)
        queue.append(ticket)

    def withdraw(self, tickets: Collection[Ticket[Work]]) -> None:
        gone = set(map(id, tickets))
        for tenant in {ticket.tenant for ticket in tickets}:
            left = deque(t for t in self._queues.get(tenant, ()) if id(t) not in gone)
            self._replace(tenant, left)

    def form(self, each: int) -> list[Ticket[Work]]:
        """Take the next batch out of the queues, with at most ``each`` tokens of a tenant."""
        self._formed += 1
        self._now = min(self._tokens[tenant] for tenant in self._queues)
        limit = self._now + each / 2  # the largest account of a tenant in turn
        most = self._now + _MOST_AHEAD * self._max_tokens
        first = self._find_first(limit if self._formed % _OLDEST_EVERY else math.inf)
        batch = _Batch[Work](max_tokens=self._max_tokens)
        lines = {tenant: _Line(queue) for tenant, queue in self._queues.items()}
        order = [(-1.0 if tenant == first else self._tokens[tenant], tenant) for tenant in lines]
        heapq.heapify(order)
        added: Counter[str] = Counter()
        while order and not batch.is_full:
            _, tenant = heapq.heappop(order)
            ticket = lines[tenant].next_fitting(batch)
            if ticket is not None:
                batch.add(ticket)
                self._tokens[tenant] += ticket.length
                added[tenant] += ticket.length
                if added[tenant] < each:
                    heapq.heappush(order, (self._tokens[tenant], tenant))
        for tenant, line in lines.items():
            self._replace(tenant, line.rest())
            self._tokens[tenant] = min(self._tokens[tenant], most)
        self._forget_idle()
        return batch.tickets

    def _find_first(self, limit: float) -> str:
        """Return the tenant of the oldest sample among tenants with accounts up to ``limit``."""
        turns = [tenant for tenant in self._queues if self._tokens[tenant] <= limit]
        return min(turns, key=lambda tenant: self._queues[tenant][0].came_at)

    def _replace(self, tenant: str, queue: deque[Ticket[Work]]) -> None:
        if queue:
            self._queues[tenant] = queue
        else:
            self._queues.pop(tenant, None)

    def _forget_idle(self) -> None:
        """Forget tenants whose account is not above that of a new tenant.

        When nothing waits any more, all accounts are equal.
        """
        if not self._queues:
            self._now = max(self._tokens.values(), default=self._now)
        self._tokens = {
            tenant: tokens
            for tenant, tokens in self._tokens.items()
            if tenant in self._queues or tokens > self._now
        }


class _Batch(Generic[Work]):
    """A batch under construction."""

    def __init__(self, *, max_tokens: int) -> None:
        self.tickets: list[Ticket[Work]] = []
        self._max_tokens = max_tokens
        self._longest = 0
        self._real = 0

    @property
    def is_full(self) -> bool:
        return bool(self.tickets) and (len(self.tickets) + 1) * self._longest > self._max_tokens

    def fits(self, ticket: Ticket[Work]) -> bool:
        if not self.tickets:
            return True
        if ticket.group != self.tickets[0].group:
            return False
        padded = (len(self.tickets) + 1) * max(self._longest, ticket.length)
        real = self._real + ticket.length
        return padded <= self._max_tokens and real >= _LEAST_FILL * padded

    def add(self, ticket: Ticket[Work]) -> None:
        self.tickets.append(ticket)
        self._longest = max(self._longest, ticket.length)
        self._real += ticket.length


class _Line(Generic[Work]):
    """One tenant's queue while a batch is formed; iterated once, in order."""

    def __init__(self, queue: deque[Ticket[Work]]) -> None:
        self._ahead = queue
        self._passed: deque[Ticket[Work]] = deque()

    def next_fitting(self, batch: _Batch[Work]) -> Ticket[Work] | None:
        while self._ahead:
            ticket = self._ahead.popleft()
            if batch.fits(ticket):
                return ticket
            self._passed.append(ticket)
        return None

    def rest(self) -> deque[Ticket[Work]]:
        """Return the samples that were not taken, in order."""
        self._passed.extend(self._ahead)
        return self._passed
