"""Shares: limit how much of a gateway's scarce resources one tenant may hold at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from store.errors import ProblemError


class Share:
    """The limit of one resource that every tenant may hold in this process.

    Used on one event loop.

    Args:
        most: the limit per tenant.
        code: of the problem when the limit is reached.
        what: the resource, in words.
    """

    def __init__(self, most: int, *, code: str, what: str) -> None:
        self._most = most
        self._code = code
        self._what = what
        self._held: Counter[str] = Counter()

    @contextmanager
    def hold(self, tenant_id: str) -> Iterator[None]:
        """Hold one during a block.

        Raises:
            ProblemError: 429, the tenant has reached its limit.
        """
        if self._held[tenant_id] >= self._most:
            raise ProblemError(
                self._code,
                status=HTTPStatus.TOO_MANY_REQUESTS,
                detail=f"you have {self._most} open {self._what} here, which is the limit; close "
                "one, or retry later",
            )
        self._held[tenant_id] += 1
        try:
            yield
        finally:
            self._held[tenant_id] -= 1
            if not self._held[tenant_id]:  # forget tenants that hold nothing
                del self._held[tenant_id]


class Shares:
    """The shares of a tenant in a gateway process.

    Attributes:
        streams: of events; each is an open connection for as long as its job takes.
        uploads: each may fill the disk up to the limit of an upload.
        merges: each uses one of about thirty connections to the inference process, and the memory
            of a model there.
        predictions: requests; each uses one of about a hundred connections.
        large_predictions: requests that may be larger than a mebibyte; each uses several times its
            size in memory.
    """

    def __init__(self) -> None:
        self.streams = Share(100, code="too_many_streams", what="streams of events")
        self.uploads = Share(8, code="too_many_uploads", what="uploads")
        self.merges = Share(4, code="too_many_merges", what="downloads of merged models")
        code = "too_many_predictions"
        self.predictions = Share(16, code=code, what="requests for predictions")
        self.large_predictions = Share(2, code=code, what="large requests for predictions")
