"""The gateway's answers, and the bodies that it takes beside the job spec; names as agreed."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from store.states import JobStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from service.jobs.tailer import ProgressSeen
    from store.tables import ApiKey, Artifact, Backbone, Dataset, Job, Tenant
    from store.tenants import Quotas

_BIGGEST = 2**63 - 1
_NO_NUL = r"^[^\x00]*$"  # Postgres stores none
Name = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=_NO_NUL)]
Count = Annotated[int, Field(ge=0, le=_BIGGEST)]


class _Answer(BaseModel):
    """What a caller gets."""

    model_config = ConfigDict(frozen=True)


class _Body(BaseModel):
    """What a caller sends: exact types, no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class FieldProblem(_Answer):
    """What is wrong with one field of a request."""

    param: str | None
    detail: str


class Problem(_Answer):
    """An error (RFC 9457), with the further members that some codes have.

    Attributes:
        errors: every field at fault, where there are several.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: str
    param: str | None
    request_id: str | None
    errors: list[FieldProblem] = Field(default_factory=list)


class Split(_Answer):
    """One split of a data set."""

    rows: int


class DatasetDocument(_Answer):
    """An uploaded data set."""

    id: str
    object: Literal["dataset"] = "dataset"
    name: str | None
    splits: dict[str, Split]
    columns: dict[str, str]
    bytes: int
    sha256: str
    created_at: datetime

    @classmethod
    def of(cls, dataset: Dataset) -> DatasetDocument:
        """Show a row, with its columns as the files have them: Postgres keeps no order of keys."""
        order = [column["name"] for column in dataset.profile.get("columns", ())]
        in_order = {name: dataset.columns[name] for name in order if name in dataset.columns}
        return cls(
            id=dataset.id,
            name=dataset.name,
            splits={name: Split(rows=split["rows"]) for name, split in dataset.splits.items()},
            columns={**in_order, **dataset.columns},
            bytes=dataset.bytes,
            sha256=dataset.sha256,
            created_at=dataset.created_at,
        )


class BackboneDocument(_Answer):
    """A pretrained model that some worker has."""

    id: str
    object: Literal["backbone"] = "backbone"
    architecture: str
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_size: int
    parameters: int
    fingerprint: str

    @classmethod
    def of(cls, backbone: Backbone) -> BackboneDocument:
        """Show a row."""
        return cls.model_validate(backbone, from_attributes=True)


_IDLE = frozenset({JobStatus.QUEUED, JobStatus.PAUSED, JobStatus.SUCCEEDED})


class JobProgress(_Answer):
    """How far a job is."""

    phase: str | None
    step: int | None
    total_steps: int | None
    fraction: float
    eta_seconds: float | None

    @classmethod
    def of(cls, job: Job | ProgressSeen) -> JobProgress:
        """Show how far a job is; one that has succeeded is through, however it came to that.

        A job at which nobody is at work is in no phase; a failed one shows where it failed.
        """
        share = min((job.step or 0) / job.total_steps, 1.0) if job.total_steps else 0.0
        return cls(
            phase=None if job.status in _IDLE else job.phase,
            step=job.step,
            total_steps=job.total_steps,
            fraction=1.0 if job.status is JobStatus.SUCCEEDED else share,
            eta_seconds=job.eta_seconds,
        )


class JobSelection(_Answer):
    """The heads that a job tunes."""

    heads: list[tuple[int, int]]
    trainable_parameters: int
    fraction: float


class JobResult(_Answer):
    """What a job reached, and how fast."""

    metrics: dict[str, float | None]
    best_step: int | None
    train_seconds: float
    selection_seconds: float
    samples_per_second: float | None


class StoredFile(_Answer):
    """Size and hash of a file."""

    bytes: int
    sha256: str


class JobArtifact(StoredFile):
    """A head delta: as float32, and in every encoding."""

    encodings: dict[str, StoredFile]


class JobFailure(_Answer):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class JobDocument(_Answer):
    """One requested fine-tune."""

    id: str
    object: Literal["job"] = "job"
    status: JobStatus
    tenant: str
    name: str | None
    metadata: dict[str, str]
    spec: dict[str, Any]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    progress: JobProgress
    attempt: int
    selection: JobSelection | None
    result: JobResult | None
    artifact: JobArtifact | None
    error: JobFailure | None

    @classmethod
    def of(cls, job: Job, artifacts: Sequence[Artifact] = ()) -> JobDocument:
        """Show a row with its artifacts."""
        return cls(
            id=job.id,
            status=job.status,
            tenant=job.tenant_id,
            name=job.name,
            metadata=job.meta,
            spec=job.spec,
            created_at=job.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            progress=JobProgress.of(job),
            attempt=job.attempt,
            selection=None if job.selection is None else JobSelection(**job.selection),
            result=None if job.result is None else JobResult(**job.result),
            artifact=_artifact(artifacts),
            error=None if job.error is None else JobFailure(**job.error),
        )


def _artifact(artifacts: Sequence[Artifact]) -> JobArtifact | None:
    files = {
        artifact.encoding: StoredFile(bytes=artifact.bytes, sha256=artifact.sha256)
        for artifact in artifacts
    }
    whole = files.get("float32")
    if whole is None:
        return None
    return JobArtifact(bytes=whole.bytes, sha256=whole.sha256, encodings=files)


class NewTenant(_Body):
    """A tenant to be; a quota that is not given is the server's setting."""

    name: Name
    is_admin: bool = False
    max_queued: Count | None = None
    max_running: Count | None = None
    max_bytes: Count | None = None


class NewQuotas(_Body):
    """A tenant's quotas to be: null is the server's setting, one that is not given stays."""

    max_queued: Count | None = None
    max_running: Count | None = None
    max_bytes: Count | None = None

    def changes(self) -> Mapping[str, int | None]:
        """Give those that are to change."""
        return self.model_dump(exclude_unset=True)


class QuotasDocument(_Answer):
    """What a tenant may have: its own quotas, or else the server's."""

    max_queued: int
    max_running: int
    max_bytes: int

    @classmethod
    def of(cls, quotas: Quotas) -> QuotasDocument:
        """Show what holds for a tenant."""
        return cls.model_validate(quotas, from_attributes=True)


class TenantDocument(_Answer):
    """Who owns data sets and jobs."""

    id: str
    object: Literal["tenant"] = "tenant"
    name: str
    is_admin: bool
    quotas: QuotasDocument
    created_at: datetime

    @classmethod
    def of(cls, tenant: Tenant, quotas: Quotas) -> TenantDocument:
        """Show a row, with what holds for it."""
        return cls(
            id=tenant.id,
            name=tenant.name,
            is_admin=tenant.is_admin,
            quotas=QuotasDocument.of(quotas),
            created_at=tenant.created_at,
        )


class UsageDocument(_Answer):
    """What a tenant has, and may have."""

    object: Literal["tenant.usage"] = "tenant.usage"
    tenant: str
    jobs: dict[JobStatus, int]
    stored_bytes: int
    quotas: QuotasDocument

    @classmethod
    def of(
        cls, tenant_id: str, *, jobs: Mapping[JobStatus, int], stored_bytes: int, quotas: Quotas
    ) -> UsageDocument:
        """Show what was counted; every state is there, also one without a job."""
        return cls(
            tenant=tenant_id,
            jobs={status: jobs.get(status, 0) for status in JobStatus},
            stored_bytes=stored_bytes,
            quotas=QuotasDocument.of(quotas),
        )


class NewKey(_Body):
    """A key to be."""

    name: Name | None = None


class KeyDocument(_Answer):
    """A key as a list shows it, without its secret."""

    id: str
    object: Literal["api_key"] = "api_key"
    tenant: str
    name: str | None
    created_at: datetime
    revoked_at: datetime | None

    @classmethod
    def of(cls, key: ApiKey) -> KeyDocument:
        """Show a row."""
        return cls(
            id=key.id,
            tenant=key.tenant_id,
            name=key.name,
            created_at=key.created_at,
            revoked_at=key.revoked_at,
        )


class NewKeyDocument(KeyDocument):
    """A new key, with its secret: this answer alone shows it."""

    secret: str

    @classmethod
    def of_new(cls, key: ApiKey, *, secret: str) -> NewKeyDocument:
        """Show a new row and its secret."""
        return cls(**vars(KeyDocument.of(key)), secret=secret)


class _List(_Answer):
    """An envelope of some rows, and where to go on."""

    object: Literal["list"] = "list"
    has_more: bool
    first_id: str | None
    last_id: str | None


class JobList(_List):
    """A page of jobs, newest first."""

    data: list[JobDocument]


class DatasetList(_List):
    """A page of data sets, newest first."""

    data: list[DatasetDocument]


class BackboneList(_List):
    """A page of backbones."""

    data: list[BackboneDocument]


class TenantList(_List):
    """A page of tenants, newest first."""

    data: list[TenantDocument]


class KeyList(_List):
    """A page of a tenant's keys, newest first."""

    data: list[KeyDocument]


def envelope(data: Sequence[Any], *, has_more: bool) -> dict[str, Any]:
    """Put documents with an ``id`` into the members of a list's answer."""
    return {
        "data": list(data),
        "has_more": has_more,
        "first_id": data[0].id if data else None,
        "last_id": data[-1].id if data else None,
    }
