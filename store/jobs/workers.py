"""Workers and the backbones that they have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from store.database.connection import Database, database_now, insert_into, is_sqlite
from store.database.pages import Page
from store.errors import found
from store.tables import Backbone, Worker

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

_LOCK = 0x48694670  # Postgres's advisory lock of offers
LIVE_SECONDS = 15.0  # a worker sends a heartbeat every few seconds


@dataclass(frozen=True, kw_only=True)
class BackboneDescription:
    """A backbone as a worker describes it; the fields are those of the table."""

    id: str
    architecture: str
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_size: int
    parameters: int
    fingerprint: str
    max_positions: int | None
    weights_per_head: int
    task_heads: Mapping[str, Mapping[str, Any]]


def register(
    database: Database,
    *,
    worker_id: str,
    device: str,
    backbones: Sequence[str],
    allows_hub: bool,
) -> None:
    """Register a worker under an id that no other process has or had."""
    with database.write() as session:
        now = database_now(session)
        session.add(
            Worker(
                id=worker_id,
                device=device,
                backbones=list(backbones),
                allows_hub=allows_hub,
                started_at=now,
                seen_at=now,
            )
        )


def beat(database: Database, worker_id: str) -> datetime | None:
    """Record a worker's heartbeat; return its time, or None if the worker is not registered."""
    with database.write() as session:
        now = database_now(session)
        noted = sa.update(Worker).where(Worker.id == worker_id).values(seen_at=now)
        known = session.scalars(noted.returning(Worker.id)).one_or_none()
        return None if known is None else now


def leave(database: Database, worker_id: str) -> None:
    """Unregister a worker."""
    with database.write() as session:
        session.execute(sa.delete(Worker).where(Worker.id == worker_id))


def live_workers(session: Session) -> Sequence[Worker]:
    """Return the workers seen in the last ``LIVE_SECONDS``."""
    since = database_now(session) - timedelta(seconds=LIVE_SECONDS)
    return session.scalars(sa.select(Worker).where(Worker.seen_at >= since)).all()


def find_live_workers(database: Database) -> Sequence[str]:
    """Return the ids of :func:`live_workers`, whatever the revision of the tables."""
    if not sa.inspect(database.engine).has_table(Worker.__tablename__):
        return ()
    with database.read() as session:
        since = database_now(session) - timedelta(seconds=LIVE_SECONDS)
        return session.scalars(
            sa.select(Worker.id).where(Worker.seen_at >= since).order_by(Worker.id)
        ).all()


def put_backbone(database: Database, description: BackboneDescription) -> None:
    """Store a backbone's description; replace an older one."""
    with database.write() as session:
        _put(session, description)


def _put(session: Session, description: BackboneDescription) -> None:
    values = {**vars(description), "updated_at": database_now(session)}
    added = insert_into(session, Backbone).values(**values)
    # Workers that start at the same time describe the same backbones.
    session.execute(added.on_conflict_do_update(index_elements=[Backbone.id], set_=values))


def change_offer(
    database: Database,
    worker_id: str,
    *,
    backbones: Sequence[BackboneDescription],
    unavailable: Mapping[str, Mapping[str, str]],
) -> None:
    """Store what a worker has now; remove the backbones that no registered worker has.

    Args:
        database: where the tables are.
        worker_id: its row in the table of workers; nothing happens if there is none.
        backbones: that it can load.
        unavailable: other models that it has found, by id: ``status`` (``reading`` or ``unusable``)
            and ``reason``.
    """
    with database.write() as session:
        if not is_sqlite(session):  # otherwise a withdrawal might miss another worker's offer
            session.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        names = [description.id for description in backbones]
        offer = {
            "backbones": sorted(names),
            "unavailable": {name: dict(entry) for name, entry in unavailable.items()},
        }
        mine = sa.update(Worker).where(Worker.id == worker_id).values(**offer)
        if session.scalars(mine.returning(Worker.id)).one_or_none() is None:
            return
        for description in backbones:
            _put(session, description)
        offered = {name for each in session.scalars(sa.select(Worker.backbones)) for name in each}
        session.execute(sa.delete(Backbone).where(Backbone.id.not_in(offered)))


def find_unavailable(session: Session) -> Mapping[str, Mapping[str, str]]:
    """Return the models that live workers have found and none can use, by id.

    Each has ``status`` (``reading`` or ``unusable``) and ``reason``.
    """
    models: dict[str, Mapping[str, str]] = {}
    for worker in live_workers(session):
        for name, entry in (worker.unavailable or {}).items():
            if name not in models or entry["status"] == "reading":
                models[name] = entry
    usable = set(session.scalars(sa.select(Backbone.id).where(Backbone.id.in_(models))))
    return {name: models[name] for name in sorted(models.keys() - usable)}


def get_backbone(session: Session, backbone_id: str) -> Backbone:
    """Load a backbone.

    Raises:
        NotFoundError: no worker has described it.
    """
    return found(session.get(Backbone, backbone_id), "model", backbone_id)


def list_backbones(session: Session, *, after: str | None, limit: int) -> Page[Backbone]:
    """Return a page of the backbones, by id: those after an id, whether it is there or not."""
    query = sa.select(Backbone).order_by(Backbone.id).limit(limit + 1)
    if after is not None:
        query = query.where(Backbone.id > after)
    rows = session.scalars(query).all()
    return Page.of(rows, limit=limit)
