"""Check whether a job can run on this server, before it is queued."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from hifi.data.profile import DatasetProfile
from hifi.errors import InvalidArgumentError
from service.http.problems import invalid_request, unprocessable
from service.jobs import hub
from service.jobs.task_completion import complete_task, complete_unseen_task, count_labels
from store.datasets import get_dataset
from store.errors import NotFoundError
from store.jobs.actions import NewJob
from store.jobs.spec import HubDataset
from store.tables import Backbone

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from store.jobs.spec import JobSpec, TaskFields
    from store.settings import Settings

_NAMED_MODELS = 10


@dataclass(frozen=True, kw_only=True)
class Admission:
    """A job that can be queued, and the numbers that its estimate needs.

    Attributes:
        new_job: to be submitted.
        backbone: None for a model of the hub that no worker has described.
        task: completed; for a data set of the hub only with the fields of the request.
        train_rows: None if unknown.
        num_labels: logits of the task head; None if unknown.
    """

    new_job: NewJob
    backbone: Backbone | None
    task: TaskFields
    train_rows: int | None
    num_labels: int | None


def admit(session: Session, *, tenant_id: str, spec: JobSpec, settings: Settings) -> Admission:
    """Check whether a job can run on this server, and complete its spec.

    The hub is queried before the session is used, so that no database connection waits for it.

    Args:
        session: a transaction that has done nothing yet.
        tenant_id: owner of the job.
        spec: as the caller wrote it.
        settings: of the server.

    Raises:
        ProblemError: 422 with the invalid field: ``model_not_found``, ``model_not_suitable``,
            ``pickled_weights``, ``hub_not_allowed``, ``hub_unavailable``, ``dataset_not_found``,
            ``dataset_invalid``, ``task_ambiguous``, ``task_not_supported``,
            ``column_not_found``, ``invalid_request``.
        NotFoundError: the data set does not exist, or belongs to another tenant.
    """
    is_pinned = settings.allow_hub and hub.is_hub_id(spec.model)
    revision = hub.pin_model(spec.model) if is_pinned else None
    source = _pin_dataset(spec, settings=settings)
    backbone = _find_backbone(session, spec, is_pinned=is_pinned)
    document = spec.model_dump(mode="json")
    document["xi"] = spec.share
    if source is None:
        profile = _find_profile(session, tenant_id, document["dataset"])
        task = complete_task(spec.task, profile)
        document["n_samples"] = _count_samples(spec, profile)
    else:
        profile = None
        task = complete_unseen_task(spec.task)
        document["dataset"] = source
    document["task"] = task.model_dump(mode="json")
    if backbone is not None:
        _check_backbone(spec, task, backbone)
    return Admission(
        new_job=NewJob(
            spec=document,
            model=spec.model,
            revision=revision,
            needs_hub=is_pinned or source is not None,
            dataset_id=document["dataset"] if source is None else None,
            name=spec.name,
            meta=spec.metadata,
        ),
        backbone=backbone,
        task=task,
        train_rows=None if profile is None else profile.rows["train"],
        num_labels=count_labels(task, profile),
    )


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
    query = sa.select(Backbone.id).order_by(Backbone.id).limit(_NAMED_MODELS + 1)
    names = session.scalars(query).all()
    known = ", ".join([repr(name) for name in names[:_NAMED_MODELS]] or ["none yet"])
    more = ", …" * (len(names) > _NAMED_MODELS)
    if hub.is_hub_id(spec.model):
        reason = f"{spec.model!r} is a model of the hub, which this server does not use"
    elif "/" in spec.model or "\\" in spec.model or spec.model.startswith((".", "~")):
        reason = f"{spec.model!r} is a path; use an id that GET /models lists"
    else:
        reason = f"no model {spec.model!r}"
    detail = f"{reason}; available: {known}{more}"
    raise unprocessable("model_not_found", detail, param="model")


def _count_samples(spec: JobSpec, profile: DatasetProfile) -> int:
    """Return the number of calibration samples; raise if the splits do not allow the settings."""
    try:
        samples = spec.count_samples(rows=profile.rows["train"])
    except InvalidArgumentError as error:
        raise invalid_request(str(error), param="n_samples") from error
    if spec.training.early_stopping_patience is not None and "validation" not in profile.rows:
        raise invalid_request(
            "early stopping needs a validation split",
            param="training.early_stopping_patience",
        )
    return samples


def _find_profile(session: Session, tenant_id: str, dataset_id: str) -> DatasetProfile:
    try:
        dataset = get_dataset(session, tenant_id, dataset_id)
    except NotFoundError as error:
        error.param = "dataset"
        raise
    return DatasetProfile.from_json(dataset.profile)


def _check_backbone(spec: JobSpec, task: TaskFields, backbone: Backbone) -> None:
    """Raise if the backbone does not support the task or the settings."""
    if task.type is not None and task.type not in backbone.task_heads:
        supported = ", ".join(sorted(backbone.task_heads)) or "no task"
        name = f"{backbone.id!r} ({backbone.architecture})"
        reason = f"{name} supports {supported}, not {task.type}"
        raise unprocessable("model_not_suitable", reason, param="model")
    heads = backbone.num_key_value_heads
    if spec.k > heads:
        raise invalid_request(
            f"k={spec.k} is not allowed: a layer of {backbone.id!r} has {heads} selectable heads",
            param="k",
        )
    if spec.strategy == "mid-top" and backbone.num_layers < 2:
        raise invalid_request("mid-top needs a model with at least two layers", param="strategy")
    limit = backbone.max_positions
    if limit is not None and spec.training.max_length > limit:
        raise invalid_request(
            f"max_length={spec.training.max_length} is not allowed: {backbone.id!r} reads at most "
            f"{limit} tokens",
            param="training.max_length",
        )
