"""The breaker: after failures in a row, refuse calls at once instead of waiting for each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from store.errors import ArtifactStorageError, BlobLostError

_FAILURES = 3  # one or two may be chance
# Between two trials: long enough that callers cost nothing, short enough to notice a recovery.
_PAUSE_SECONDS = 5.0


@dataclass
class _Trouble:
    failures: int = 0
    refused_until: float = 0.0


class Breaker:
    """Counts failures in a row, for each tenant: one whose blobs hang does not stop the others.

    After three failures all calls for the tenant are refused for five seconds, then one is tried,
    and so on until one succeeds. Used by any number of threads.

    Args:
        clock: in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._troubles: dict[str, _Trouble] = {}

    @contextmanager
    def watch(self, tenant_id: str) -> Iterator[None]:
        """Count what happens in a block.

        Raises:
            ArtifactStorageError: from the block, where it counts as a failure; or at once.
        """
        self._admit(tenant_id)
        try:
            yield
        except BlobLostError:  # an answer
            self._forget(tenant_id)
            raise
        except ArtifactStorageError:
            self._count(tenant_id)
            raise
        self._forget(tenant_id)

    def _admit(self, tenant_id: str) -> None:
        now = self._clock()
        with self._lock:
            trouble = self._troubles.get(tenant_id)
            if trouble is None or trouble.failures < _FAILURES:
                return
            if now >= trouble.refused_until:
                trouble.refused_until = now + _PAUSE_SECONDS  # the others wait for this trial
                return
            failures, left = trouble.failures, trouble.refused_until - now
        raise ArtifactStorageError(
            f"the artifact store failed {failures} times in a row; retry in {left:.0f} s"
        )

    def _forget(self, tenant_id: str) -> None:
        with self._lock:
            self._troubles.pop(tenant_id, None)

    def _count(self, tenant_id: str) -> None:
        with self._lock:
            trouble = self._troubles.setdefault(tenant_id, _Trouble())
            trouble.failures += 1
            trouble.refused_until = self._clock() + _PAUSE_SECONDS
