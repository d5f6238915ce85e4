"""What the gateway orders from the inference process: head deltas, merged or to predict with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Self

from pydantic_core import to_json

if TYPE_CHECKING:
    from store.tables import Artifact, Job


@dataclass(frozen=True, kw_only=True)
class DeltaOrder:
    """Which head delta is wanted, on which backbone.

    Attributes:
        tenant: whose blob the delta is.
        job: that made it.
        model: the backbone's id, or a hub id with its pinned ``revision``.
        sha256: of the delta in float32.
    """

    tenant: str
    job: str
    model: str
    revision: str | None
    sha256: str

    @classmethod
    def of(cls, job: Job, delta: Artifact) -> Self:
        """Order what a job has made."""
        return cls(
            tenant=job.tenant_id,
            job=job.id,
            model=job.model,
            revision=job.revision,
            sha256=delta.sha256,
        )

    def to_json(self) -> bytes:
        """Write it as ``POST /merged`` reads it."""
        return to_json(asdict(self))


@dataclass(frozen=True, kw_only=True)
class PredictionOrder:
    """What is to be predicted.

    Attributes:
        deltas: those that are needed.
        items: for each the index of its delta, and its input.
        truncate: whether a text of too many tokens is cut.
        timeout_seconds: after which an item without an answer is given up.
    """

    deltas: Sequence[DeltaOrder]
    items: Sequence[tuple[int, Mapping[str, str]]]
    truncate: bool
    timeout_seconds: float

    def to_json(self) -> bytes:
        """Write it as ``POST /predict`` reads it."""
        return to_json(
            {
                "orders": [asdict(delta) for delta in self.deltas],
                "items": [{"order": order, "input": given} for order, given in self.items],
                "truncate": self.truncate,
                "timeout_seconds": self.timeout_seconds,
            }
        )
