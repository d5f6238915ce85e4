"""Warnings of jobs, and the models that workers have found but cannot offer.

Deploy: at any time. The columns are nullable, and earlier versions neither read nor write them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    """Add the columns."""
    op.add_column("jobs", sa.Column("warnings", Json))
    op.add_column("workers", sa.Column("unavailable", Json))


def downgrade() -> None:
    """Remove the columns."""
    op.drop_column("workers", "unavailable")
    op.drop_column("jobs", "warnings")
