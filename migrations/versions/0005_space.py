"""Reservations of space in a tenant's quota, and blobs that wait to be removed.

Deploy: before the processes of this version start. What those of the previous version store has no
reservation: do not let both run for long. Unfinished jobs get a reservation of no bytes. Blobs that
lost their rows before are removed by the sweep.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    """Add the tables."""
    op.create_table(
        "reservations",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("blobs", Json),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reservations")),
    )
    op.create_index(op.f("ix_reservations_tenant_id"), "reservations", ["tenant_id"])
    op.create_table(
        "unnamed_blobs",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("removed_until", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("tenant_id", "sha256", name=op.f("pk_unnamed_blobs")),
    )
    op.execute(
        "INSERT INTO reservations (id, tenant_id, bytes) SELECT id, tenant_id, 0 FROM jobs "
        "WHERE status NOT IN ('succeeded', 'failed', 'cancelled')"
    )


def downgrade() -> None:
    """Remove the tables."""
    op.drop_table("unnamed_blobs")
    op.drop_table("reservations")
