"""The first tables.

Deploy: before any process starts; there is no data to keep.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

Moment = sa.DateTime(timezone=True)
Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_STATUSES = (
    "'queued', 'validating', 'selecting', 'training', 'pausing', 'paused', 'cancelling', "
    "'succeeded', 'failed', 'cancelled'"
)


def upgrade() -> None:
    """Create the tables."""
    _create_tenants()
    _create_workers()
    _create_datasets()
    _create_jobs()
    _create_outcomes()


def downgrade() -> None:
    """Drop the tables with all rows."""
    for table in (
        *("job_events", "artifacts", "jobs", "datasets", "backbones", "workers"),
        *("idempotency_records", "api_keys", "tenants"),
    ):
        op.drop_table(table)


def _create_tenants() -> None:
    op.create_table(
        "tenants",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("is_admin", sa.Boolean(), nullable=False),
        sa.Column("max_queued", sa.BigInteger()),
        sa.Column("max_running", sa.BigInteger()),
        sa.Column("max_bytes", sa.BigInteger()),
        sa.Column("last_claim_at", Moment),
        sa.Column("created_at", Moment, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tenants")),
        sa.UniqueConstraint("name", name=op.f("uq_tenants_name")),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("name", sa.String()),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("revoked_at", Moment),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_api_keys_tenant_id_tenants")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("sha256", name=op.f("uq_api_keys_sha256")),
    )
    op.create_index(op.f("ix_api_keys_tenant_id"), "api_keys", ["tenant_id"])
    op.create_table(
        "idempotency_records",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("method", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("request_sha256", sa.String(), nullable=False),
        sa.Column("response", Json),
        sa.Column("locked_until", Moment, nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenants.id"],
            name=op.f("fk_idempotency_records_tenant_id_tenants"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "tenant_id", "method", "path", "key", name=op.f("pk_idempotency_records")
        ),
    )
    op.create_index(
        op.f("ix_idempotency_records_created_at"), "idempotency_records", ["created_at"]
    )


def _create_workers() -> None:
    op.create_table(
        "workers",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("backbones", Json, nullable=False),
        sa.Column("allows_hub", sa.Boolean(), nullable=False),
        sa.Column("started_at", Moment, nullable=False),
        sa.Column("seen_at", Moment, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )
    op.create_table(
        "backbones",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("architecture", sa.String(), nullable=False),
        sa.Column("num_layers", sa.BigInteger(), nullable=False),
        sa.Column("num_heads", sa.BigInteger(), nullable=False),
        sa.Column("num_key_value_heads", sa.BigInteger(), nullable=False),
        sa.Column("head_dim", sa.BigInteger(), nullable=False),
        sa.Column("hidden_size", sa.BigInteger(), nullable=False),
        sa.Column("parameters", sa.BigInteger(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("updated_at", Moment, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_backbones")),
    )


def _create_datasets() -> None:
    op.create_table(
        "datasets",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("name", sa.String()),
        sa.Column("splits", Json, nullable=False),
        sa.Column("columns", Json, nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_datasets_tenant_id_tenants")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_datasets")),
    )
    op.create_index(
        op.f("ix_datasets_tenant_id_created_at_id"), "datasets", ["tenant_id", "created_at", "id"]
    )


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("name", sa.String()),
        sa.Column("metadata", Json, nullable=False),
        sa.Column("spec", Json, nullable=False),
        sa.Column("dataset_id", sa.String()),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("revision", sa.String()),
        sa.Column("needs_hub", sa.Boolean(), nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("started_at", Moment),
        sa.Column("finished_at", Moment),
        sa.Column("phase", sa.String()),
        sa.Column("step", sa.BigInteger()),
        sa.Column("total_steps", sa.BigInteger()),
        sa.Column("eta_seconds", sa.Double()),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("token_at", Moment, nullable=False),
        sa.Column("worker_id", sa.String()),
        sa.Column("lease_until", Moment),
        sa.Column("checkpoint", Json),
        sa.Column("selection", Json),
        sa.Column("heads", Json),
        sa.Column("result", Json),
        sa.Column("error", Json),
        sa.Column("last_event", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(f"status IN ({_STATUSES})", name=op.f("ck_jobs_status")),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_jobs_tenant_id_tenants")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index(op.f("ix_jobs_dataset_id"), "jobs", ["dataset_id"])
    op.create_index(op.f("ix_jobs_status_lease_until"), "jobs", ["status", "lease_until"])
    op.create_index(
        op.f("ix_jobs_tenant_id_created_at_id"), "jobs", ["tenant_id", "created_at", "id"]
    )
    op.create_index(
        op.f("ix_jobs_tenant_id_status_created_at_id"),
        "jobs",
        ["tenant_id", "status", "created_at", "id"],
    )


def _create_outcomes() -> None:
    op.create_table(
        "job_events",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("step", sa.BigInteger()),
        sa.Column("level", sa.String(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("data", Json, nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_job_events_job_id_jobs"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_job_events")),
        sa.UniqueConstraint("job_id", "type", "step", name=op.f("uq_job_events_job_id_type_step")),
    )
    op.create_table(
        "artifacts",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("encoding", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_artifacts_job_id_jobs"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_artifacts_tenant_id_tenants")
        ),
        sa.PrimaryKeyConstraint("job_id", "encoding", name=op.f("pk_artifacts")),
    )
    op.create_index(op.f("ix_artifacts_sha256"), "artifacts", ["sha256"])
    op.create_index(op.f("ix_artifacts_tenant_id"), "artifacts", ["tenant_id"])
