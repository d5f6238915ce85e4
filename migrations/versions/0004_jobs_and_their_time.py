"""The time that jobs run, an index to list all tenants' jobs, and the places of deleted rows.

Deploy: while no gateways or workers of the previous version run. Rows are kept: existing jobs have
run for 0 seconds. Adding a column with a constant default does not rewrite the table; building the
index locks it, for seconds per million rows.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, the index and the table."""
    time = sa.DateTime(timezone=True)
    with op.batch_alter_table("jobs") as table:
        table.add_column(sa.Column("claimed_at", time))
        table.add_column(
            sa.Column("ran_seconds", sa.Double(), nullable=False, server_default=sa.text("0"))
        )
    op.create_index(op.f("ix_jobs_created_at_id"), "jobs", ["created_at", "id"])
    op.create_table(
        "deleted_rows",
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("created_at", time, nullable=False),
        sa.Column("deleted_at", time, nullable=False),
        sa.PrimaryKeyConstraint("kind", "id", name=op.f("pk_deleted_rows")),
    )
    op.create_index(op.f("ix_deleted_rows_deleted_at"), "deleted_rows", ["deleted_at"])


def downgrade() -> None:
    """Remove the table, the index and the columns."""
    op.drop_table("deleted_rows")
    op.drop_index(op.f("ix_jobs_created_at_id"), table_name="jobs")
    with op.batch_alter_table("jobs", recreate="never") as table:
        table.drop_column("ran_seconds")
        table.drop_column("claimed_at")
