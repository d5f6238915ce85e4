"""The owner's actions on batch predictions: submit, list, cancel, delete.

Those on one prediction raise NotFoundError if it does not exist, or belongs to another tenant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from store.database.connection import database_now
from store.database.identifiers import new_identifier
from store.database.pages import Page, delete_listed, matching, newest_first
from store.datasets import keep_dataset
from store.errors import IllegalTransitionError, QuotaExceededError, found
from store.states import UNFINISHED_PREDICTIONS, PredictionStatus
from store.storage.space import end, reserve_for_job
from store.storage.unnamed import release
from store.tables import Prediction
from store.tenants import lock_tenant, quota

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from store.predictions.spec import PredictionSpec


@dataclass(frozen=True, kw_only=True)
class NewPrediction:
    """A checked batch prediction.

    Attributes:
        total_rows: of the split that it reads.
        result_bytes: the estimated size of its result.
    """

    name: str | None
    dataset_id: str
    spec: PredictionSpec
    total_rows: int
    result_bytes: int


def submit(
    session: Session, tenant_id: str, new: NewPrediction, *, max_queued: int, max_bytes: int
) -> Prediction:
    """Queue a batch prediction; an inference process claims it within a second or two.

    Args:
        session: a write transaction.
        tenant_id: the owner.
        new: the prediction.
        max_queued: the quota of waiting predictions of a tenant without its own quota.
        max_bytes: likewise, of stored bytes.

    Raises:
        NotFoundError: the tenant or data set does not exist, or belongs to another tenant.
        QuotaExceededError: too many predictions wait, or the tenant's quota of bytes has no room.
    """
    tenant = lock_tenant(session, tenant_id)
    keep_dataset(session, tenant_id, new.dataset_id)
    limit = quota(tenant.max_queued, default=max_queued)
    waiting = session.scalars(
        sa.select(sa.func.count())
        .select_from(Prediction)
        .where(Prediction.tenant_id == tenant_id, Prediction.status == PredictionStatus.QUEUED)
    ).one()
    if waiting >= limit:
        raise QuotaExceededError(
            f"{waiting:,} predictions are already waiting; the tenant's quota max_queued is "
            f"{limit:,}"
        )
    identifier = new_identifier("pred")
    room = quota(tenant.max_bytes, default=max_bytes)
    reserve_for_job(session, identifier, tenant_id=tenant_id, size=new.result_bytes, limit=room)
    prediction = Prediction(
        id=identifier,
        tenant_id=tenant_id,
        status=PredictionStatus.QUEUED,
        name=new.name,
        dataset_id=new.dataset_id,
        spec=new.spec.model_dump(),
        rows=0,
        total_rows=new.total_rows,
        parts=[],
        created_at=database_now(session),
    )
    session.add(prediction)
    session.flush()
    return prediction


def get_prediction(session: Session, tenant_id: str, prediction_id: str) -> Prediction:
    """Load a tenant's prediction."""
    query = sa.select(Prediction).where(
        Prediction.id == prediction_id, Prediction.tenant_id == tenant_id
    )
    return found(session.scalars(query).one_or_none(), "prediction", prediction_id)


def list_predictions(
    session: Session,
    tenant_id: str,
    *,
    status: PredictionStatus | None = None,
    name: str | None = None,
    after: str | None = None,
    limit: int,
) -> Page[Prediction]:
    """Return a page of a tenant's predictions, newest first: those with that status and name.

    Raises:
        NotFoundError: ``after`` was never one of them.
    """
    return newest_first(
        session,
        sa.select(Prediction).where(Prediction.tenant_id == tenant_id),
        Prediction,
        after=after,
        limit=limit,
        tenant_id=tenant_id,
        filters=matching((Prediction.status, status), (Prediction.name, name)),
        long=(Prediction.spec,),
    )


def cancel(session: Session, tenant_id: str, prediction_id: str) -> Prediction:
    """Cancel a prediction: at once if it waits, otherwise within seconds; its answers are dropped.

    Raises:
        IllegalTransitionError: it is finished or already being cancelled.
    """
    prediction = _lock(session, tenant_id, prediction_id)
    if prediction.status is PredictionStatus.QUEUED:
        finish(session, prediction, PredictionStatus.CANCELLED)
    elif prediction.status is PredictionStatus.RUNNING:
        prediction.status = PredictionStatus.CANCELLING
    else:
        raise IllegalTransitionError(
            f"prediction {prediction_id} is {prediction.status} and cannot be cancelled"
        )
    return prediction


def cancel_all(session: Session, tenant_id: str) -> None:
    """Cancel all unfinished predictions of a tenant."""
    query = sa.select(Prediction).where(
        Prediction.tenant_id == tenant_id, Prediction.status.in_(UNFINISHED_PREDICTIONS)
    )
    for prediction in session.scalars(query.with_for_update()).all():
        if prediction.status is PredictionStatus.QUEUED:
            finish(session, prediction, PredictionStatus.CANCELLED)
        else:
            prediction.status = PredictionStatus.CANCELLING


def delete(session: Session, tenant_id: str, prediction_id: str) -> None:
    """Delete a finished prediction with its result, whose blob is removed soon.

    Raises:
        IllegalTransitionError: it is not finished.
    """
    prediction = _lock(session, tenant_id, prediction_id)
    if not prediction.status.is_finished:
        raise IllegalTransitionError(
            f"prediction {prediction_id} is {prediction.status}: cancel it first"
        )
    if prediction.sha256 is not None and prediction.bytes is not None:
        release(session, tenant_id, {prediction.sha256: prediction.bytes})
    delete_listed(session, prediction)


def finish(session: Session, prediction: Prediction, status: PredictionStatus) -> None:
    """Move a locked prediction to a final state and free what it has reserved."""
    prediction.status = status
    prediction.finished_at = database_now(session)
    prediction.lease_until = prediction.rows_per_second = None
    prediction.parts = []
    end(session, prediction.id, named=[prediction.sha256] if prediction.sha256 else [])


def _lock(session: Session, tenant_id: str, prediction_id: str) -> Prediction:
    query = sa.select(Prediction).where(
        Prediction.id == prediction_id, Prediction.tenant_id == tenant_id
    )
    row = session.scalars(query.with_for_update()).one_or_none()
    return found(row, "prediction", prediction_id)
