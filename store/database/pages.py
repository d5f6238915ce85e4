"""Pages of a list by cursor: newest first, after a given row, also a deleted one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from itertools import accumulate
from operator import add
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import sqlalchemy as sa

from store.database.connection import CLOCK, database_now
from store.errors import NotFoundError
from store.tables import ApiKey, AuditEvent, Base, Dataset, DeletedRow, Job, Prediction, Tenant

if TYPE_CHECKING:
    from sqlalchemy.orm import InstrumentedAttribute, Session

_MOST_CHARACTERS = 1 << 20  # of long columns in a page; the rows take ten times that in memory

Row = TypeVar("Row", Job, Dataset, Prediction, Tenant, ApiKey, AuditEvent)
Listed = TypeVar("Listed", bound=Base)


@dataclass(frozen=True)
class Page(Generic[Listed]):
    """Some rows of a list, and whether more follow."""

    rows: Sequence[Listed]
    has_more: bool

    @classmethod
    def of(cls, rows: Sequence[Listed], *, limit: int) -> Self:
        """Make a page of ``limit`` rows from a query for one row more."""
        return cls(rows[:limit], has_more=len(rows) > limit)


def matching(
    *wanted: tuple[InstrumentedAttribute[Any], str | None],
) -> list[sa.ColumnElement[bool]]:
    """Return the criteria that columns equal wanted values; None stands for any value."""
    return [column == value for column, value in wanted if value is not None]


def newest_first(
    session: Session,
    query: sa.Select[Row],
    table: type[Row],
    *,
    after: str | None,
    limit: int,
    tenant_id: str | None = None,
    filters: Sequence[sa.ColumnElement[bool]] = (),
    long: Sequence[InstrumentedAttribute[Any]] = (),
) -> Page[Row]:
    """Return a page of a query's rows: ``limit`` at most, after the row with the id ``after``.

    Args:
        session: a transaction.
        query: selects the rows that the caller may see.
        table: of the rows.
        after: a row that the caller may see, or could see before it was deleted.
        limit: of the rows.
        tenant_id: whose deleted rows the caller could see; None for those of all tenants.
        filters: which of the rows are listed; ``after`` may be another one, such as a job whose
            status has changed since the page before.
        long: columns of texts or JSON that may be long: the page ends before they have a million
            characters together, but not before the first row.

    Raises:
        NotFoundError: the caller could never see ``after``.
    """
    if after is not None:
        last = session.scalars(
            query.with_only_columns(table.created_at).where(table.id == after)
        ).one_or_none()
        last = last or _place_of_deleted(session, table, after, tenant_id=tenant_id)
        if last is None:
            raise NotFoundError("entry", after, param="after")
        query = query.where(sa.tuple_(table.created_at, table.id) < sa.tuple_(last, after))
    query = (
        query.where(*filters).order_by(table.created_at.desc(), table.id.desc()).limit(limit + 1)
    )
    if not long:
        return Page.of(session.scalars(query).all(), limit=limit)
    sizes = session.execute(query.with_only_columns(table.id, _characters(long))).all()
    ends = accumulate(size for _, size in sizes)
    count = max(1, min(limit, sum(end <= _MOST_CHARACTERS for end in ends)))
    chosen = [identifier for identifier, _ in sizes[:count]]
    rows = session.scalars(query.where(table.id.in_(chosen))).all()
    return Page(rows, has_more=len(sizes) > count)


def _characters(columns: Sequence[InstrumentedAttribute[Any]]) -> sa.ColumnElement[int]:
    lengths = (sa.func.coalesce(sa.func.length(sa.cast(each, sa.Text)), 0) for each in columns)
    return reduce(add, lengths)


def delete_listed(session: Session, row: Job | Dataset | Prediction) -> None:
    """Delete a row of a list, and keep its place for callers that are paging through the list."""
    session.delete(row)
    session.add(
        DeletedRow(
            kind=row.__tablename__,
            id=row.id,
            tenant_id=row.tenant_id,
            created_at=row.created_at,
            deleted_at=database_now(session),
        )
    )


def delete_all_listed(
    session: Session,
    table: type[Row],
    *criteria: sa.ColumnElement[bool],
    owner: InstrumentedAttribute[str],
) -> None:
    """Delete all rows of a list that meet the criteria, and keep their places for ``owner``."""
    places = sa.select(
        sa.literal(table.__tablename__), table.id, owner, table.created_at, CLOCK
    ).where(*criteria)
    names = ["kind", "id", "tenant_id", "created_at", "deleted_at"]
    session.execute(sa.insert(DeletedRow).from_select(names, places))
    session.execute(sa.delete(table).where(*criteria))


def forget_deleted(session: Session, *, before: datetime) -> None:
    """Forget the places of rows that were deleted before a time."""
    session.execute(sa.delete(DeletedRow).where(DeletedRow.deleted_at < before))


def _place_of_deleted(
    session: Session, table: type[Row], identifier: str, *, tenant_id: str | None
) -> datetime | None:
    query = sa.select(DeletedRow.created_at).where(
        DeletedRow.kind == table.__tablename__, DeletedRow.id == identifier
    )
    if tenant_id is not None:
        query = query.where(DeletedRow.tenant_id == tenant_id)
    return session.scalars(query).one_or_none()
