"""Idempotency keys: a request sent twice does its work once, and both get the one answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from store.database.connection import database_now, is_sqlite
from store.errors import IdempotencyKeyReusedError, RequestTakenOverError
from store.tables import IdempotencyRecord

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

KEPT = timedelta(hours=24)


@dataclass(frozen=True, kw_only=True)
class RequestKey:
    """One use of a key: the same key elsewhere, or another tenant's, is another request."""

    tenant_id: str
    method: str
    path: str
    key: str


def begin(
    session: Session, key: RequestKey, *, request_sha256: str, lock_seconds: float
) -> Mapping[str, Any] | Literal["started", "running"]:
    """Start a request, or find its answer.

    Args:
        session: a write transaction of its own: others must see the record at once.
        key: which request.
        request_sha256: of its canonical body.
        lock_seconds: how long the work may take; then a twin takes over.

    Returns:
        ``started``: do the work, and :func:`finish` in its transaction or :func:`forget`;
        ``running``: a twin is at it, ask again soon; else the answer to give again.

    Raises:
        IdempotencyKeyReusedError: the key was used with another body.
    """
    now = database_now(session)
    insert = sqlite.insert if is_sqlite(session) else postgresql.insert
    inserted = session.execute(
        insert(IdempotencyRecord)
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


def finish(session: Session, key: RequestKey, response: Mapping[str, Any]) -> None:
    """Keep the answer, in the transaction that did the work.

    Args:
        session: that transaction.
        key: which request.
        response: ``{"status", "headers", "body"}``, plain JSON.

    Raises:
        RequestTakenOverError: the request was not begun, or took so long that a twin has answered
            it in the meantime: roll the work back, the twin's answer is the one.
    """
    record = _lock(session, key)
    if record is None or record.response is not None:
        raise RequestTakenOverError(f"no request with the key {key.key!r} waits for its answer")
    record.response = dict(response)


def forget(session: Session, key: RequestKey) -> None:
    """Drop a request that was refused: it may be mended and sent again with its key."""
    session.execute(
        sa.delete(IdempotencyRecord).where(*_is(key), IdempotencyRecord.response.is_(None))
    )


def _lock(session: Session, key: RequestKey) -> IdempotencyRecord | None:
    query = sa.select(IdempotencyRecord).where(*_is(key)).with_for_update()
    return session.scalars(query).one_or_none()


def _is(key: RequestKey) -> list[sa.ColumnElement[bool]]:
    return [getattr(IdempotencyRecord, name) == value for name, value in vars(key).items()]
