"""Batch predictions.

Deploy: before the processes of this version start. Those of the previous version do not know the
results: their sweep would remove results older than a day, so do not let both run for that long.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_STATUSES = ("queued", "running", "cancelling", "succeeded", "failed", "cancelled")
_IS_UNFINISHED = sa.text("status IN ('cancelling', 'queued', 'running')")


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "predictions",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column(
            "status",
            sa.Enum(
                *_STATUSES, native_enum=False, create_constraint=True, name="status", length=16
            ),
            nullable=False,
        ),
        sa.Column("name", sa.String()),
        sa.Column("dataset_id", sa.String(), nullable=False),
        sa.Column("spec", Json, nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("total_rows", sa.BigInteger(), nullable=False),
        sa.Column("rows_per_second", sa.Double()),
        sa.Column("parts", Json, nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True)),
        sa.Column("bytes", sa.BigInteger()),
        sa.Column("sha256", sa.String()),
        sa.Column("error", Json),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True)),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_predictions_tenant_id_tenants")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_predictions")),
    )
    op.create_index(
        op.f("ix_predictions_tenant_id_created_at_id"),
        "predictions",
        ["tenant_id", "created_at", "id"],
    )
    op.create_index(
        "ix_predictions_unfinished",
        "predictions",
        ["created_at", "id"],
        postgresql_where=_IS_UNFINISHED,
        sqlite_where=_IS_UNFINISHED,
    )
    op.create_index(op.f("ix_predictions_dataset_id"), "predictions", ["dataset_id"])


def downgrade() -> None:
    """Remove the table."""
    op.drop_table("predictions")
