"""Idempotency keys: a request sent twice is executed once, and both get the same response."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa

from store.database.connection import database_now, insert_into
from store.errors import IdempotencyKeyReusedError, RequestTakenOverError
from store.tables import IdempotencyRecord

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

KEPT = timedelta(hours=24)


@dataclass(frozen=True, kw_only=True)
class RequestKey:
    """One use of a key; with another path or tenant the same key is another request."""

    tenant_id: str
    method: str
    path: str
    key: str


def begin(
    session: Session, key: RequestKey, *, request_sha256: str, lock_seconds: float
) -> Mapping[str, Any] | Literal["started", "running"]:
    """Start a request, or return its stored response.

    Args:
        session: a separate write transaction, because others must see the record at once.
        key: of the request.
        request_sha256: of its canonical body.
        lock_seconds: how long the caller may stop working before a duplicate takes over.

    Returns:
        ``started``: do the work, call :func:`extend` meanwhile, and :func:`finish` in its
        transaction or :func:`forget`;
        ``running``: a duplicate is at work, retry soon; otherwise the response to repeat.

    Raises:
        IdempotencyKeyReusedError: the key was used with another body.
    """
    now = database_now(session)
    inserted = session.execute(
        insert_into(session, IdempotencyRecord)
        .values(
            **vars(key),
            request_sha256=request_sha256,
            locked_until=now + timedelta(seconds=lock_seconds),
            created_at=now,
        )
        .on_conflict_do_nothing()
        .returning(IdempotencyRecord.key)
    ).first()
    if inserted is not None:
        return "started"
    record = _lock(session, key)
    if record is None:
        return "running"  # forgotten between the two statements
    is_old = record.created_at < now - KEPT
    if record.request_sha256 != request_sha256 and not is_old:
        raise IdempotencyKeyReusedError(
            f"the key {key.key!r} was used with another body in the last 24 hours",
            param="Idempotency-Key",
        )
    if record.response is not None and not is_old:
        return record.response
    if record.response is None and record.locked_until > now:
        return "running"
    record.request_sha256, record.response, record.created_at = request_sha256, None, now
    record.locked_until = now + timedelta(seconds=lock_seconds)
    return "started"


def is_known(session: Session, key: RequestKey) -> bool:
    """Return whether a request with the key is running or has been answered."""
    query = sa.select(IdempotencyRecord.key).where(*_is(key))
    return session.scalars(query).first() is not None


def extend(session: Session, key: RequestKey, *, lock_seconds: float) -> None:
    """Lock a running request for ``lock_seconds`` seconds from now; a finished one is unchanged."""
    session.execute(
        sa.update(IdempotencyRecord)
        .where(*_is(key), IdempotencyRecord.response.is_(None))
        .values(locked_until=database_now(session) + timedelta(seconds=lock_seconds))
    )


def finish(session: Session, key: RequestKey, response: Mapping[str, Any]) -> None:
    """Store the response ``{"status", "headers", "body"}`` in the transaction that did the work.

    Raises:
        RequestTakenOverError: the request was not begun, or took so long that a duplicate has
            finished it: roll the work back, the duplicate's response counts.
    """
    record = _lock(session, key)
    if record is None or record.response is not None:
        raise RequestTakenOverError(f"no running request has the key {key.key!r}")
    record.response = dict(response)


def forget(session: Session, key: RequestKey) -> None:
    """Delete the record of a refused request, so that it can be corrected and sent again."""
    session.execute(
        sa.delete(IdempotencyRecord).where(*_is(key), IdempotencyRecord.response.is_(None))
    )


def _lock(session: Session, key: RequestKey) -> IdempotencyRecord | None:
    query = sa.select(IdempotencyRecord).where(*_is(key)).with_for_update()
    return session.scalars(query).one_or_none()


def _is(key: RequestKey) -> list[sa.ColumnElement[bool]]:
    return [getattr(IdempotencyRecord, name) == value for name, value in vars(key).items()]
