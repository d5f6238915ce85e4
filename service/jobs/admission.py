"""Check whether a job can run on this server, before it is queued."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from hifi.data.classes.weights import check_labels, check_task
from hifi.data.profile import DatasetProfile
from hifi.data.run_warnings import refuse_to_keep
from hifi.data.task_types import find_task_type
from hifi.errors import InvalidArgumentError
from service.http.problems import invalid_request, unprocessable
from service.jobs import hub
from service.jobs.findings import find_warnings
from service.jobs.task_completion import (
    class_labels,
    complete_task,
    complete_unseen_task,
    count_labels,
)
from store.datasets import find_dataset
from store.errors import DatasetAmbiguousError, NotFoundError, ProblemError
from store.jobs.actions import NewJob
from store.jobs.spec import HubDataset, spec_field
from store.jobs.workers import find_unavailable, live_workers
from store.settings import WHERE_MODELS_GO
from store.tables import Backbone

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from store.jobs.spec import JobSpec, TaskFields
    from store.settings import Settings
    from store.tables import Dataset

_NAMED_MODELS = 10


@dataclass(frozen=True, kw_only=True)
class Admission:
    """A job that can be queued, and the numbers that its estimate needs.

    Attributes:
        new_job: to be submitted.
        backbone: None for a model of the hub that no worker has described.
        task: completed; for a data set of the hub only with the fields of the request.
        train_rows: None if unknown, or if they do not tell the number of training samples.
        num_labels: logits of the task head; None if unknown.
        classes: in the order of the logits; None if the task has none, or the profile does not keep
            them.
    """

    new_job: NewJob
    backbone: Backbone | None
    task: TaskFields
    train_rows: int | None
    num_labels: int | None
    classes: Sequence[str | int] | None = None


def admit(session: Session, *, tenant_id: str, spec: JobSpec, settings: Settings) -> Admission:
    """Check whether a job can run on this server, and complete its spec.

    The hub is queried before the session is used, so that no database connection waits for it.

    Args:
        session: a transaction that has done nothing yet.
        tenant_id: owner of the job.
        spec: as the caller wrote it.
        settings: of the server.

    Raises:
        ProblemError: 503 ``no_worker``; 422 with the invalid field: ``model_not_found``,
            ``model_unusable``, ``model_not_ready``, ``model_not_suitable``, ``pickled_weights``,
            ``hub_not_allowed``, ``hub_unavailable``, ``dataset_not_found``, ``dataset_invalid``,
            ``task_ambiguous``, ``task_not_supported``, ``column_not_found``, ``invalid_request``.
        NotFoundError: the data set does not exist, or belongs to another tenant.
        DatasetAmbiguousError: several data sets of the tenant have the name.
    """
    spec = spec.filled()
    _check_scoring(spec)
    _check_time(spec, settings=settings)
    is_pinned = settings.allow_hub and hub.is_hub_id(spec.model)
    revision = hub.pin_model(spec.model) if is_pinned else None
    source = _pin_dataset(spec, settings=settings)
    backbone = _find_backbone(session, spec, is_pinned=is_pinned)
    document = spec.model_dump(mode="json")
    document["xi"] = spec.share
    document["k"] = spec.allotment.k
    if source is None:
        dataset = _find_dataset(session, tenant_id, document["dataset"])
        document["dataset"] = dataset.id
        profile = DatasetProfile.from_json(dataset.profile)
        task = complete_task(spec.task, profile)
        document["n_samples"] = _count_samples(spec, profile)
    else:
        profile = None
        task = complete_unseen_task(spec.task)
        document["dataset"] = source
    rows = None if profile is None or _reads_windows(task) else profile.rows["train"]
    hidden_size = None if backbone is None else backbone.hidden_size
    document["task"] = task.model_dump(mode="json")
    document["training"] |= spec.training.choose(rows=rows, hidden_size=hidden_size)
    classes = None if profile is None else class_labels(task, profile)
    _check_class_weights(spec, task, classes)
    if backbone is not None:
        _check_backbone(spec, task, backbone)
    warnings = []
    if profile is not None:
        warnings = _find_warnings(spec, task, profile=profile, backbone=backbone)
    return Admission(
        new_job=NewJob(
            spec=document,
            model=spec.model,
            revision=revision,
            needs_hub=is_pinned or source is not None,
            dataset_id=document["dataset"] if source is None else None,
            name=spec.name,
            meta=spec.metadata,
            warnings=warnings,
        ),
        backbone=backbone,
        task=task,
        train_rows=rows,
        num_labels=count_labels(task, profile),
        classes=classes,
    )


@contextmanager
def _as_invalid_request(reason: str = "") -> Iterator[None]:
    """Convert a refusal of the library to a problem that names the field of the job spec."""
    try:
        yield
    except InvalidArgumentError as error:
        raise invalid_request(f"{error}{reason}", param=spec_field(error.param)) from error


def _check_scoring(spec: JobSpec) -> None:
    """Raise if settings of scoring do not go together, on any backbone."""
    with _as_invalid_request():
        _ = spec.allotment


def _check_time(spec: JobSpec, *, settings: Settings) -> None:
    most, given = settings.job_max_seconds, spec.training.max_seconds
    if given is not None and given > most:
        raise invalid_request(
            f"max_seconds={given:,g} is not allowed: a job of this server may run for {most:,g} "
            "seconds",
            param="training.max_seconds",
        )


def _check_class_weights(
    spec: JobSpec, task: TaskFields, classes: Sequence[str | int] | None
) -> None:
    """Raise if class weights do not fit the task, as far as its labels are known."""
    weights = spec.training.class_weights
    if weights is None or task.type is None:
        return
    with _as_invalid_request():
        check_task(weights, has_classes=find_task_type(task.type).has_classes, task=task.type)
        if classes is not None:
            check_labels(weights, labels=classes)


def _pin_dataset(spec: JobSpec, *, settings: Settings) -> dict[str, Any] | None:
    """Return a data set of the hub with its commit; None for an uploaded one."""
    if not isinstance(spec.dataset, HubDataset):
        return None
    source = spec.dataset
    if not settings.allow_hub:
        reason = "this server does not use data sets of the hub: upload the files to /datasets"
        raise unprocessable("hub_not_allowed", reason, param="dataset.hub")
    if "/" in source.hub and not hub.is_hub_id(source.hub):
        raise invalid_request(f"{source.hub!r} is not an id of the hub", param="dataset.hub")
    commit = hub.pin_dataset(source.hub, revision=source.revision)
    return {**source.model_dump(), "revision": commit}


def _find_backbone(session: Session, spec: JobSpec, *, is_pinned: bool) -> Backbone | None:
    backbone = session.get(Backbone, spec.model)
    if backbone is not None or is_pinned:
        return backbone
    if hub.is_hub_id(spec.model):
        reason = f"{spec.model!r} is a model of the hub, which this server does not use"
    elif "/" in spec.model or "\\" in spec.model or spec.model.startswith((".", "~")):
        reason = f"{spec.model!r} is a path; use an id that GET /models (`hifi models list`) lists"
    else:
        _refuse_unavailable(session, spec.model)
        reason = f"no model {spec.model!r}"
    raise unprocessable("model_not_found", f"{reason}; {_available(session)}", param="model")


def _refuse_unavailable(session: Session, model: str) -> None:
    """Refuse a model that workers have found but cannot use, or that no worker can know yet.

    Raises:
        ProblemError: 422 ``model_unusable`` or ``model_not_ready``, 503 ``no_worker``.
    """
    entry = find_unavailable(session).get(model)
    if entry is not None and entry["status"] == "unusable":
        detail = f"the model {model!r} cannot be used: {entry['reason']}"
        raise unprocessable("model_unusable", detail, param="model")
    if entry is not None:
        detail = (
            f"the model {model!r} is not ready: {entry['reason']}; retry when GET /models (`hifi "
            "models list`) lists it"
        )
        raise unprocessable("model_not_ready", detail, param="model")
    if not _names(session) and not live_workers(session):
        raise ProblemError(
            "no_worker",
            status=HTTPStatus.SERVICE_UNAVAILABLE,
            detail="no worker has reported its models yet: a worker that was just started reads "
            "them first, which takes minutes if they are large; if there is none, start one with "
            "`hifi serve` or `hifi worker`",
        )


def _available(session: Session) -> str:
    """Describe the models that a job may name."""
    names = _names(session)
    more = ", …" * (len(names) > _NAMED_MODELS)
    if names:
        return f"available: {', '.join(map(repr, names[:_NAMED_MODELS]))}{more}"
    return f"the workers have none: {WHERE_MODELS_GO}"


def _names(session: Session) -> Sequence[str]:
    query = sa.select(Backbone.id).order_by(Backbone.id).limit(_NAMED_MODELS + 1)
    return session.scalars(query).all()


def _reads_windows(task: TaskFields) -> bool:
    return task.type is not None and find_task_type(task.type).reads_windows


def _count_samples(spec: JobSpec, profile: DatasetProfile) -> int:
    """Return the number of calibration samples; raise if the splits do not allow the settings."""
    with _as_invalid_request():
        samples = spec.count_samples(rows=profile.rows["train"])
    if spec.training.early_stopping_patience is not None and "validation" not in profile.rows:
        raise invalid_request(
            "early stopping needs a validation split",
            param="training.early_stopping_patience",
        )
    return samples


def _find_warnings(
    spec: JobSpec, task: TaskFields, *, profile: DatasetProfile, backbone: Backbone | None
) -> list[dict[str, Any]]:
    """Return the warnings; raise if the backbone's task head shall be kept and does not fit."""
    start = spec.training.head_start
    with _as_invalid_request():
        return find_warnings(task, profile=profile, backbone=backbone, head_start=start)


def _find_dataset(session: Session, tenant_id: str, reference: str) -> Dataset:
    try:
        return find_dataset(session, tenant_id, reference)
    except (DatasetAmbiguousError, NotFoundError) as error:
        error.param = "dataset"
        raise


def _check_backbone(spec: JobSpec, task: TaskFields, backbone: Backbone) -> None:
    """Raise if the backbone does not support the task or the settings."""
    if task.type is not None and task.type not in backbone.task_heads:
        supported = ", ".join(sorted(backbone.task_heads)) or "no task"
        name = f"{backbone.id!r} ({backbone.architecture})"
        reason = f"{name} supports {supported}, not {task.type}"
        raise unprocessable("model_not_suitable", reason, param="model")
    keeps_head = task.type is not None and spec.training.head_start == "keep"
    if keeps_head and not backbone.task_heads[str(task.type)].get("stored"):
        with _as_invalid_request():
            raise refuse_to_keep(backbone.id, head=None, classes=None)
    layers, heads = backbone.num_layers, backbone.num_key_value_heads
    with _as_invalid_request(
        f" (a layer of {backbone.id!r} has {heads} selectable heads, layers: {layers})"
    ):
        spec.allotment.fitted(num_layers=layers, num_heads=heads)
    limit = backbone.max_positions
    if limit is not None and spec.training.max_length > limit:
        raise invalid_request(
            f"max_length={spec.training.max_length} is not allowed: {backbone.id!r} reads at most "
            f"{limit} tokens",
            param="training.max_length",
        )
