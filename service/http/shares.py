"""Shares: how much of what a gateway has little of one tenant may hold at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus

from store.problems import ProblemError


class Share:
    """What every tenant may hold of one thing, in this process; more of it is refused.

    Used on one event loop.

    Args:
        most: of one tenant.
        code: of the refusal.
        what: is held, for people.
    """

    def __init__(self, most: int, *, code: str, what: str) -> None:
        self._most = most
        self._code = code
        self._what = what
        self._held: Counter[str] = Counter()

    @contextmanager
    def hold(self, tenant_id: str) -> Iterator[None]:
        """Hold one for the time of a block.

        Raises:
            ProblemError: 429, the tenant holds all that it may.
        """
        if self._held[tenant_id] >= self._most:
            raise ProblemError(
                self._code,
                status=HTTPStatus.TOO_MANY_REQUESTS,
                detail=f"{self._most} {self._what} of yours are open here, the most allowed; end "
                "one, or try again later",
            )
        self._held[tenant_id] += 1
        try:
            yield
        finally:
            self._held[tenant_id] -= 1
            if not self._held[tenant_id]:  # tenants that hold nothing are not remembered
                del self._held[tenant_id]


def _streams() -> Share:
    return Share(100, code="too_many_streams", what="streams of events")


def _uploads() -> Share:
    return Share(8, code="too_many_uploads", what="uploads")


def _merges() -> Share:
    return Share(4, code="too_many_merges", what="downloads of merged models")


def _predictions() -> Share:
    return Share(16, code="too_many_predictions", what="requests for predictions")


def _large_predictions() -> Share:
    return Share(2, code="too_many_predictions", what="large requests for predictions")


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What every tenant may hold of a gateway process.

    Attributes:
        streams: of events, each an open connection for as long as its job takes.
        uploads: each may fill as much of the disk as an upload may have.
        merges: each takes a connection to the inference process, which has some thirty, and the
            memory of a model there.
        predictions: requests; each takes one of some hundred connections.
        large_predictions: requests that may have more than a mebibyte, of which each takes some
            times its size of memory.
    """

    streams: Share = field(default_factory=_streams)
    uploads: Share = field(default_factory=_uploads)
    merges: Share = field(default_factory=_merges)
    predictions: Share = field(default_factory=_predictions)
    large_predictions: Share = field(default_factory=_large_predictions)
