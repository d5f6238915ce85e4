"""The tables. This module documents the columns; the module of the same name changes the rows."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from store.states import LEASED, UNFINISHED_PREDICTIONS, JobStatus, PredictionStatus

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect

# Literals, so that the database recognises queries that a partial index covers.
IS_QUEUED = sa.text(f"status = '{JobStatus.QUEUED}'")
IS_LEASED = sa.text("status IN ({})".format(", ".join(f"'{each}'" for each in sorted(LEASED))))
IS_UNFINISHED = sa.text(
    "status IN ({})".format(", ".join(f"'{each}'" for each in sorted(UNFINISHED_PREDICTIONS)))
)

Json = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


class UtcDateTime(sa.TypeDecorator[datetime]):
    """A time in UTC; with its zone in Python, without one in SQLite."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Raise for a time without a zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone")
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(
        self,
        value: datetime | None,
        dialect: Dialect,  # noqa: ARG002 - SQLAlchemy's signature
    ) -> datetime | None:
        """Add the zone that SQLite does not store."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _status_of(kind: type[StrEnum]) -> sa.Enum:
    """Return the type of a status column: its values as texts, which the table checks."""
    return sa.Enum(
        kind,
        native_enum=False,
        create_constraint=True,
        name="status",
        length=16,
        values_callable=lambda statuses: [status.value for status in statuses],
    )


class Base(DeclarativeBase):
    """The base of all tables: it names constraints, so that migrations can refer to them."""

    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - read once by SQLAlchemy
        datetime: UtcDateTime,
        dict[str, Any]: Json,
        list[str]: Json,
        list[dict[str, Any]]: Json,
        int: sa.BigInteger,
    }


class Tenant(Base):
    """An owner of data sets and jobs.

    Attributes:
        max_queued, max_running, max_bytes: its quotas; None is the server's setting.
        last_claim_at: when one of its jobs was last claimed; None if never, so it is first in turn.
        suspended_at: since then its keys are refused and its jobs wait.
        deleted_at: since then it is gone for callers; its rows follow when no job of it runs.
    """

    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    is_admin: Mapped[bool] = mapped_column(default=False)
    max_queued: Mapped[int | None]
    max_running: Mapped[int | None]
    max_bytes: Mapped[int | None]
    last_claim_at: Mapped[datetime | None]
    suspended_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
    created_at: Mapped[datetime]


class ApiKey(Base):
    """A key of a tenant; only the SHA-256 of the secret is stored."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(sa.ForeignKey("tenants.id"), index=True)
    name: Mapped[str | None]
    sha256: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class AuditEvent(Base):
    """Who did what; a trigger refuses to change or remove a row.

    The tenants and keys that it names may be gone, so nothing refers to them.

    Attributes:
        actor_tenant_id, actor_key_id: who; None for the command line on the server.
        tenant_id, subject_id: to what: a tenant, or its key, data set or job.
    """

    __tablename__ = "audit_events"

    id: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime]
    action: Mapped[str]
    actor_tenant_id: Mapped[str | None]
    actor_key_id: Mapped[str | None]
    request_id: Mapped[str | None]
    tenant_id: Mapped[str]
    subject_id: Mapped[str]
    details: Mapped[dict[str, Any]]

    __table_args__ = (
        sa.Index(None, "created_at", "id"),
        sa.Index(None, "tenant_id", "created_at", "id"),
    )


class Backbone(Base):
    """A pretrained model that some worker has: its sizes, and its hash as stored.

    Attributes:
        max_positions: the most tokens that it reads; None if it has no limit.
        weights_per_head: trained weights of one selected head: its rows of query, key and value.
        task_heads: by task type ``{"base", "per_label"}``, the trained weights of a task head
            without labels and per label; unsupported types are left out. ``"file"`` has the bytes
            of a delta file by encoding, ``{"base", "per_head", "per_label"}``; rows of older
            workers do not have it. ``"stored"`` is the checkpoint's own task head of this kind, if
            it has one: ``{"num_labels", "names"}``.
    """

    __tablename__ = "backbones"

    id: Mapped[str] = mapped_column(primary_key=True)
    architecture: Mapped[str]
    num_layers: Mapped[int]
    num_heads: Mapped[int]
    num_key_value_heads: Mapped[int]
    head_dim: Mapped[int]
    hidden_size: Mapped[int]
    parameters: Mapped[int]
    fingerprint: Mapped[str]
    max_positions: Mapped[int | None]
    weights_per_head: Mapped[int]
    task_heads: Mapped[dict[str, Any]]
    updated_at: Mapped[datetime]


class Dataset(Base):
    """An uploaded data set; its splits are Parquet blobs in the artifact store.

    Attributes:
        splits: ``{"train": {"rows", "bytes", "sha256"}, …}``; the hash is the blob's name.
        columns: ``{name: type}``.
        profile: by column, facts about its values; job specs are checked against them.
        sha256: over the splits' names and hashes.
    """

    __tablename__ = "datasets"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(sa.ForeignKey("tenants.id"))
    name: Mapped[str | None]
    splits: Mapped[dict[str, Any]]
    columns: Mapped[dict[str, Any]]
    profile: Mapped[dict[str, Any]]
    bytes: Mapped[int]
    sha256: Mapped[str]
    created_at: Mapped[datetime]

    __table_args__ = (sa.Index(None, "tenant_id", "created_at", "id"),)


class Job(Base):
    """One requested fine-tune.

    Attributes:
        spec: the validated spec, with defaults filled in.
        model: the backbone's id, or a hub id; revision: of a hub id, pinned at admission.
        needs_hub: only a worker that may use the hub can run it.
        phase, step, total_steps, eta_seconds, steps_per_second: its progress and speed.
        attempt: attempts since the newest checkpoint; crashes count, hand-backs do not.
        fence: grows with every claim; a write with an older fence is refused.
        token_at: when a token was last published for it.
        lease_until: the time, by the database's clock, until which its worker may be silent.
        claimed_at: when its worker claimed it; None without a worker.
        ran_seconds: how long workers have had it, over all its claims.
        checkpoint: ``{"step", "files": {name: {"bytes", "sha256"}}}`` of the newest one.
        heads: scores and selection, in the form of ``GET /jobs/{id}/heads``.
        warnings: ``[{"code", "message", "param"}]``; None of jobs of earlier versions.
        last_event: number of its newest event.
    """

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(sa.ForeignKey("tenants.id"))
    status: Mapped[JobStatus] = mapped_column(_status_of(JobStatus))
    name: Mapped[str | None]
    meta: Mapped[dict[str, Any]] = mapped_column("metadata")
    spec: Mapped[dict[str, Any]]
    dataset_id: Mapped[str | None]
    model: Mapped[str]
    revision: Mapped[str | None]
    needs_hub: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    phase: Mapped[str | None]
    step: Mapped[int | None]
    total_steps: Mapped[int | None]
    eta_seconds: Mapped[float | None]
    steps_per_second: Mapped[float | None]
    attempt: Mapped[int] = mapped_column(default=1)
    fence: Mapped[int] = mapped_column(default=0)
    token_at: Mapped[datetime]
    worker_id: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    claimed_at: Mapped[datetime | None]
    ran_seconds: Mapped[float] = mapped_column(server_default=sa.text("0"))
    checkpoint: Mapped[dict[str, Any] | None]
    selection: Mapped[dict[str, Any] | None]
    heads: Mapped[dict[str, Any] | None] = mapped_column(deferred=True)
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    warnings: Mapped[list[dict[str, Any]] | None]
    last_event: Mapped[int] = mapped_column(default=0)

    __table_args__ = (
        sa.Index(None, "tenant_id", "created_at", "id"),
        sa.Index(None, "tenant_id", "status", "created_at", "id"),
        sa.Index(
            "ix_jobs_queued",
            *("tenant_id", "created_at", "id"),
            postgresql_where=IS_QUEUED,
            sqlite_where=IS_QUEUED,
        ),
        sa.Index("ix_jobs_leased", "tenant_id", postgresql_where=IS_LEASED, sqlite_where=IS_LEASED),
        sa.Index(None, "dataset_id"),
        sa.Index(None, "created_at", "id"),
    )


class JobEvent(Base):
    """An event of a job, numbered per job without gaps.

    Attributes:
        step: of a step event; unique per job and type, so that a resumed job repeats none.
    """

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(
        sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    type: Mapped[str]
    step: Mapped[int | None]
    level: Mapped[str]
    message: Mapped[str]
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]

    __table_args__ = (sa.UniqueConstraint("job_id", "type", "step"),)


class Artifact(Base):
    """One encoding of a job's head delta; its blob is ``tenant/sha256``."""

    __tablename__ = "artifacts"

    job_id: Mapped[str] = mapped_column(
        sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    )
    encoding: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(sa.ForeignKey("tenants.id"), index=True)
    sha256: Mapped[str] = mapped_column(index=True)
    bytes: Mapped[int]
    created_at: Mapped[datetime]


class Prediction(Base):
    """A batch prediction: the rows of a data set, answered by the head deltas of some jobs.

    Attributes:
        spec: ``{"split", "format", "truncate", "jobs": [{"id", "type", "columns"}]}``, where the
            columns are those of the data set by the fields of an input.
        rows, total_rows: how many rows have their answers stored, and how many there are.
        rows_per_second: lately; None while no process has it.
        parts: ``[{"rows", "bytes", "sha256"}]``, the answers so far, in the order of the rows; the
            blobs are held by its reservation.
        attempt: attempts since the newest part; crashes count, hand-backs do not.
        fence: grows with every claim; a write with an older fence is refused.
        lease_until: the time, by the database's clock, until which its process may be silent.
        bytes, sha256: of the result; its blob is ``tenant/sha256``.
    """

    __tablename__ = "predictions"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(sa.ForeignKey("tenants.id"))
    status: Mapped[PredictionStatus] = mapped_column(_status_of(PredictionStatus))
    name: Mapped[str | None]
    dataset_id: Mapped[str]
    spec: Mapped[dict[str, Any]]
    rows: Mapped[int] = mapped_column(default=0)
    total_rows: Mapped[int]
    rows_per_second: Mapped[float | None]
    parts: Mapped[list[dict[str, Any]]] = mapped_column(deferred=True)
    attempt: Mapped[int] = mapped_column(default=1)
    fence: Mapped[int] = mapped_column(default=0)
    lease_until: Mapped[datetime | None]
    bytes: Mapped[int | None]
    sha256: Mapped[str | None]
    error: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        sa.Index(None, "tenant_id", "created_at", "id"),
        sa.Index(
            "ix_predictions_unfinished",
            *("created_at", "id"),
            postgresql_where=IS_UNFINISHED,
            sqlite_where=IS_UNFINISHED,
        ),
        sa.Index(None, "dataset_id"),
    )


class Reservation(Base):
    """Space in a tenant's quota, for what is stored before a row names it.

    Attributes:
        id: of a job or batch prediction until it is finished; random for an upload.
        bytes: count against the quota.
        blobs: ``{sha256: bytes}`` of those stored under it; None until they are known.
        expires_at: by the database's clock, if its holder does not renew it; None for a job and a
            batch prediction.
    """

    __tablename__ = "reservations"

    id: Mapped[str] = mapped_column(primary_key=True)
    # No foreign key: checking it would wait for a locked tenant while the job is locked.
    tenant_id: Mapped[str] = mapped_column(index=True)
    bytes: Mapped[int]
    blobs: Mapped[dict[str, Any] | None]
    expires_at: Mapped[datetime | None]


class UnnamedBlob(Base):
    """A blob that lost the row that named it, until it is removed; it counts against the quota.

    Attributes:
        removed_until: while a process removes it; after that time another may try.
    """

    __tablename__ = "unnamed_blobs"

    tenant_id: Mapped[str] = mapped_column(primary_key=True)  # as in Reservation
    sha256: Mapped[str] = mapped_column(primary_key=True)
    bytes: Mapped[int]
    removed_until: Mapped[datetime | None]


class Worker(Base):
    """A worker process that is, or was, alive.

    Attributes:
        backbones: the ids that it can load.
        unavailable: other folders of models that it has found, by id: ``{"status", "reason"}``;
            None of workers of earlier versions.
    """

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    device: Mapped[str]
    backbones: Mapped[list[str]]
    unavailable: Mapped[dict[str, Any] | None]
    allows_hub: Mapped[bool]
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime]


class DeletedRow(Base):
    """The place that a deleted row had in its list, kept for callers that are paging through it.

    Attributes:
        kind: the row's table.
        created_at: of the row; with its id this is its place.
    """

    __tablename__ = "deleted_rows"

    kind: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime] = mapped_column(index=True)


class Counter(Base):
    """A monotonic counter for the metrics, incremented in the transaction that it counts."""

    __tablename__ = "counters"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[int]


class IdempotencyRecord(Base):
    """The response to a request with an ``Idempotency-Key``, stored for replay.

    Attributes:
        request_sha256: of the canonical body.
        response: ``{"status", "headers", "body"}``; None while the first request is running.
        locked_until: extended while that request runs; after that another may take over.
    """

    __tablename__ = "idempotency_records"

    tenant_id: Mapped[str] = mapped_column(
        sa.ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True
    )
    method: Mapped[str] = mapped_column(primary_key=True)
    path: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_sha256: Mapped[str]
    response: Mapped[dict[str, Any] | None]
    locked_until: Mapped[datetime]
    created_at: Mapped[datetime] = mapped_column(index=True)
