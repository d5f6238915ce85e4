"""Pages of a list by cursor: newest first, after a given row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Self, TypeVar

import sqlalchemy as sa

from store.errors import NotFoundError
from store.tables import ApiKey, Base, Dataset, Job, Tenant

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

Row = TypeVar("Row", Job, Dataset, Tenant, ApiKey)
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


def newest_first(
    session: Session,
    query: sa.Select[Row],
    table: type[Row],
    *,
    after: str | None,
    limit: int,
) -> Page[Row]:
    """Return a page of a query's rows: ``limit`` at most, after the row with the id ``after``.

    The query selects the rows that the caller may see.

    Raises:
        NotFoundError: ``after`` is not among the rows.
    """
    if after is not None:
        last = session.scalars(query.where(table.id == after)).one_or_none()
        if last is None:
            raise NotFoundError("entry", after, param="after")
        query = query.where(
            sa.tuple_(table.created_at, table.id) < sa.tuple_(last.created_at, last.id)
        )
    query = query.order_by(table.created_at.desc(), table.id.desc()).limit(limit + 1)
    rows = session.scalars(query).all()
    return Page.of(rows, limit=limit)
