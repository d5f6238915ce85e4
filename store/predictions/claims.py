"""Claims and leases of batch predictions: all that the process that runs one writes about it.

There is no reconciler: a prediction whose lease has expired can be claimed like one that waits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.orm import aliased, undefer

from store.database.connection import CLOCK, Database, database_now
from store.errors import LeaseLostError
from store.jobs.leases import MAX_ATTEMPTS
from store.predictions.actions import finish
from store.predictions.spec import PredictionSpec
from store.states import PredictionStatus
from store.tables import IS_UNFINISHED, Prediction, Tenant

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from store.storage import Blob

_S = PredictionStatus
_HELD = (_S.RUNNING, _S.CANCELLING)


@dataclass(frozen=True, kw_only=True)
class ClaimedPrediction:
    """A claimed prediction, as its process gets it.

    Attributes:
        fence: sent with every write to prove that the claim is still valid.
        parts: ``{"rows", "bytes", "sha256"}`` of the answers so far, in the order of the rows.
    """

    id: str
    tenant_id: str
    fence: int
    dataset_id: str
    spec: PredictionSpec
    total_rows: int
    parts: Sequence[Mapping[str, Any]]


def claim_next(
    database: Database, *, lease_seconds: float, most_each: int
) -> ClaimedPrediction | None:
    """Claim the next prediction, in one transaction.

    The tenant with the fewest running predictions comes first; among equals, the oldest prediction.
    Of those whose process was lost, one that was to be cancelled is cancelled now, and one that has
    lost three processes since its newest part fails.

    Args:
        database: where the predictions are.
        lease_seconds: how long the process may be silent.
        most_each: only tenants with fewer running predictions are served.

    Returns:
        The prediction, now ``running``; None if there is none.
    """
    # Every process asks every second: only one that finds something may lock the database.
    with database.read() as session:
        if session.execute(_next(most_each).limit(1)).first() is None:
            return None
    while True:
        with database.write() as session:
            query = _next(most_each).limit(1).with_for_update(of=Prediction, skip_locked=True)
            prediction = session.scalars(query.options(undefer(Prediction.parts))).first()
            if prediction is None:
                return None
            if _take(session, prediction, lease_seconds=lease_seconds):
                return ClaimedPrediction(
                    id=prediction.id,
                    tenant_id=prediction.tenant_id,
                    fence=prediction.fence,
                    dataset_id=prediction.dataset_id,
                    spec=PredictionSpec.model_validate(prediction.spec),
                    total_rows=prediction.total_rows,
                    parts=prediction.parts,
                )


def _next(most_each: int) -> sa.Select[Prediction]:
    """Select what may be claimed, the next in turn first."""
    other = aliased(Prediction)
    running = (
        sa.select(sa.func.count())
        .select_from(other)
        .where(
            other.tenant_id == Prediction.tenant_id,
            other.status.in_(_HELD),
            other.lease_until >= CLOCK,
        )
        .scalar_subquery()
    )
    is_lost = sa.and_(Prediction.status.in_(_HELD), Prediction.lease_until < CLOCK)
    may_run = sa.and_(
        sa.or_(Prediction.status == _S.QUEUED, is_lost),
        Tenant.suspended_at.is_(None),
        running < most_each,
    )
    # One to be cancelled ends also if its tenant is suspended, or deleted.
    to_cancel = sa.and_(Prediction.status == _S.CANCELLING, is_lost)
    return (
        sa.select(Prediction)
        .join(Tenant, Tenant.id == Prediction.tenant_id)
        .where(sa.text(f"predictions.{IS_UNFINISHED.text}"), sa.or_(may_run, to_cancel))
        .order_by(running, Prediction.created_at, Prediction.id)
    )


def _take(session: Session, prediction: Prediction, *, lease_seconds: float) -> bool:
    """Lease a locked prediction; return False if it has ended instead."""
    if prediction.status is _S.CANCELLING:
        finish(session, prediction, _S.CANCELLED)
        return False
    if prediction.status is _S.RUNNING:  # its process was lost
        if prediction.attempt >= MAX_ATTEMPTS:
            message = f"its process was lost {prediction.attempt} times without a further part"
            prediction.error = {"code": "worker_lost", "message": message, "param": None}
            finish(session, prediction, _S.FAILED)
            return False
        prediction.attempt += 1
    now = database_now(session)
    prediction.status = _S.RUNNING
    prediction.started_at = prediction.started_at or now
    prediction.fence += 1
    prediction.lease_until = now + timedelta(seconds=lease_seconds)
    return True


class PredictionLease:
    """The right to write one prediction until another process claims it.

    Every call is one transaction that checks the fence and renews the lease; it raises
    LeaseLostError if the process no longer holds the prediction.

    Args:
        database: where the prediction is.
        claimed: the prediction.
        seconds: how long the process may be silent after each call.
    """

    def __init__(self, database: Database, claimed: ClaimedPrediction, *, seconds: float) -> None:
        self._database = database
        self._id = claimed.id
        self._fence = claimed.fence
        self._seconds = seconds

    def renew(self) -> PredictionStatus:
        """Renew the lease; return the state, ``cancelling`` of which is a request to stop."""
        with self._held() as (_, prediction):
            return prediction.status

    def keep_part(self, part: Blob, *, rows: int, rows_per_second: float | None) -> None:
        """Record the answers to the next ``rows`` rows, which are stored."""
        with self._held() as (_, prediction):
            prediction.parts = [*prediction.parts, {"rows": rows, **vars(part)}]
            prediction.rows += rows
            prediction.rows_per_second = rows_per_second
            prediction.attempt = 1

    def succeed(self, result: Blob) -> None:
        """End with a stored result; a prediction that was to be cancelled is cancelled instead."""
        with self._held() as (session, prediction):
            if prediction.status is _S.CANCELLING:
                finish(session, prediction, _S.CANCELLED)
                return
            prediction.bytes, prediction.sha256 = result.bytes, result.sha256
            finish(session, prediction, _S.SUCCEEDED)

    def fail(self, *, code: str, message: str, param: str | None = None) -> None:
        """End with an error, or cancelled if that was requested."""
        with self._held() as (session, prediction):
            if prediction.status is _S.CANCELLING:
                finish(session, prediction, _S.CANCELLED)
                return
            prediction.error = {"code": code, "message": message, "param": param}
            finish(session, prediction, _S.FAILED)

    def hand_back(self) -> None:
        """Queue the prediction again, or cancel it if that was requested; no attempt is counted."""
        with self._held() as (session, prediction):
            if prediction.status is _S.CANCELLING:
                finish(session, prediction, _S.CANCELLED)
                return
            prediction.status = _S.QUEUED
            prediction.lease_until = prediction.rows_per_second = None

    @contextmanager
    def _held(self) -> Iterator[tuple[Session, Prediction]]:
        query = (
            sa.select(Prediction)
            .where(
                Prediction.id == self._id,
                Prediction.fence == self._fence,
                Prediction.status.in_(_HELD),
            )
            .options(undefer(Prediction.parts))
            .with_for_update()
        )
        with self._database.write() as session:
            prediction = session.scalars(query).one_or_none()
            if prediction is None:
                raise LeaseLostError(f"prediction {self._id} is no longer this process's")
            until: datetime = database_now(session) + timedelta(seconds=self._seconds)
            prediction.lease_until = until
            yield session, prediction
