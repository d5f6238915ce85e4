"""Columns for admission and estimates of jobs, counters, and indexes for claims.

Deploy: while no gateways or workers of the previous version run, since they can no longer write
backbones and data sets. Rows are kept. Existing rows get empty values: a backbone's are renewed
when a worker describes it, a data set's profile never. Building the new indexes locks the table of
jobs, for seconds per million rows.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_IS_QUEUED = sa.text("status = 'queued'")
_IS_LEASED = sa.text("status IN ('cancelling', 'pausing', 'selecting', 'training', 'validating')")


def upgrade() -> None:
    """Add the columns, counters and indexes."""
    with op.batch_alter_table("backbones") as table:
        table.add_column(sa.Column("max_positions", sa.BigInteger()))
        table.add_column(
            sa.Column("weights_per_head", sa.BigInteger(), nullable=False, server_default="0")
        )
        table.add_column(sa.Column("task_heads", Json, nullable=False, server_default="{}"))
    with op.batch_alter_table("datasets") as table:
        table.add_column(sa.Column("profile", Json, nullable=False, server_default="{}"))
    # The defaults were for existing rows; new rows must have a value.
    with op.batch_alter_table("backbones") as table:
        table.alter_column("weights_per_head", server_default=None)
        table.alter_column("task_heads", server_default=None)
    with op.batch_alter_table("datasets") as table:
        table.alter_column("profile", server_default=None)
    with op.batch_alter_table("jobs") as table:
        table.add_column(sa.Column("steps_per_second", sa.Double()))
    op.create_table(
        "counters",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_counters")),
    )
    op.drop_index(op.f("ix_jobs_status_lease_until"), table_name="jobs")
    op.create_index(
        "ix_jobs_queued",
        "jobs",
        ["tenant_id", "created_at", "id"],
        postgresql_where=_IS_QUEUED,
        sqlite_where=_IS_QUEUED,
    )
    op.create_index(
        "ix_jobs_leased",
        "jobs",
        ["tenant_id"],
        postgresql_where=_IS_LEASED,
        sqlite_where=_IS_LEASED,
    )


def downgrade() -> None:
    """Remove the columns, counters and indexes."""
    op.drop_index("ix_jobs_leased", table_name="jobs")
    op.drop_index("ix_jobs_queued", table_name="jobs")
    op.drop_table("counters")
    with op.batch_alter_table("jobs") as table:
        table.drop_column("steps_per_second")
    op.create_index(op.f("ix_jobs_status_lease_until"), "jobs", ["status", "lease_until"])
    with op.batch_alter_table("datasets") as table:
        table.drop_column("profile")
    with op.batch_alter_table("backbones") as table:
        table.drop_column("task_heads")
        table.drop_column("weights_per_head")
        table.drop_column("max_positions")
