"""Check whether a job can run on this server, before it is queued."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from hifi.data.profile import DatasetProfile
from hifi.errors import InvalidArgumentError
from service.http.problems import invalid_request
from service.jobs.hub import Hub, HuggingFaceHub, is_hub_id
from service.jobs.task_completion import complete_task, complete_unseen_task, count_labels
from store.datasets import get_dataset
from store.errors import NotFoundError, ProblemError
from store.jobs.actions import NewJob
from store.jobs.spec import HubDataset
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
        dataset: None for a data set of the hub.
        task: completed; for a data set of the hub only with the fields of the request.
        train_rows: None if unknown.
        num_labels: logits of the task head; None if unknown.
    """

    new_job: NewJob
    backbone: Backbone | None
    dataset: Dataset | None
    task: TaskFields
    train_rows: int | None
    num_labels: int | None


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A task completed from a data set's columns, with facts about the data set's rows."""

    task: TaskFields
    num_labels: int | None
    rows: int
    has_validation: bool

    @classmethod
    def of(cls, fields: TaskFields, dataset: Dataset) -> Completion:
        """Complete a task.

        Raises:
            ProblemError: as :func:`service.jobs.task_completion.complete_task`.
        """
        profile = DatasetProfile.from_json(dataset.profile)
        task = complete_task(fields, profile)
        return cls(
            task=task,
            num_labels=count_labels(task, profile),
            rows=profile.rows["train"],
            has_validation="validation" in profile.rows,
        )


def admit(
    session: Session,
    *,
    tenant_id: str,
    spec: JobSpec,
    settings: Settings,
    hub: Hub | None = None,
) -> Admission:
    """Check whether a job can run on this server, and complete its spec.

    The hub is queried before the session is used, so that no database connection waits for it.

    Args:
        session: a transaction that has done nothing yet.
        tenant_id: owner of the job.
        spec: as the caller wrote it.
        settings: of the server.
        hub: by default the Hugging Face hub.

    Raises:
        ProblemError: 422 with the invalid field: ``model_not_found``, ``model_not_suitable``,
            ``pickled_weights``, ``hub_not_allowed``, ``hub_unavailable``, ``dataset_not_found``,
            ``dataset_invalid``, ``task_ambiguous``, ``task_not_supported``,
            ``column_not_found``, ``invalid_request``.
        NotFoundError: the data set does not exist, or belongs to another tenant.
    """
    hub = hub or HuggingFaceHub()
    revision = _pin_model(spec, settings=settings, hub=hub)
    source = _pin_dataset(spec, settings=settings, hub=hub)
    backbone = _find_backbone(session, spec, is_pinned=revision is not None)
    if source is None:
        dataset = _find_dataset(session, tenant_id, str(spec.dataset))
        completed = Completion.of(spec.task, dataset)
        admission = _admit_dataset(
            spec, dataset, completed=completed, backbone=backbone, revision=revision
        )
    else:
        task = complete_unseen_task(spec.task)
        admission = Admission(
            new_job=_new_job(
                spec, task, dataset=source, n_samples=spec.n_samples, revision=revision
            ),
            backbone=backbone,
            dataset=None,
            task=task,
            train_rows=None,
            num_labels=count_labels(task, None),
        )
    if backbone is not None:
        _check_backbone(spec, admission.task, backbone)
    return admission


def _pin_model(spec: JobSpec, *, settings: Settings, hub: Hub) -> str | None:
    """Return the commit of a model of the hub; None for any other name."""
    if not settings.allow_hub or not is_hub_id(spec.model):
        return None
    return hub.pin_model(spec.model)


def _pin_dataset(spec: JobSpec, *, settings: Settings, hub: Hub) -> dict[str, Any] | None:
    """Return a data set of the hub with its commit; None for an uploaded one."""
    if not isinstance(spec.dataset, HubDataset):
        return None
    source = spec.dataset
    if not settings.allow_hub:
        raise ProblemError(
            "hub_not_allowed",
            status=HTTPStatus.UNPROCESSABLE_ENTITY,
            detail="this server does not use data sets of the hub: upload the files to /datasets",
            param="dataset.hub",
        )
    if "/" in source.hub and not is_hub_id(source.hub):
        raise invalid_request(f"{source.hub!r} is not an id of the hub", param="dataset.hub")
    commit = hub.pin_dataset(source.hub, revision=source.revision)
    return {**source.model_dump(), "revision": commit}


def _find_backbone(session: Session, spec: JobSpec, *, is_pinned: bool) -> Backbone | None:
    backbone = session.get(Backbone, spec.model)
    if backbone is not None or is_pinned:
        return backbone
    names = session.scalars(
        sa.select(Backbone.id).order_by(Backbone.id).limit(_NAMED_MODELS + 1)
    ).all()
    known = ", ".join([repr(name) for name in names[:_NAMED_MODELS]] or ["none yet"])
    more = ", …" * (len(names) > _NAMED_MODELS)
    if is_hub_id(spec.model):
        reason = f"{spec.model!r} is a model of the hub, which this server does not use"
    elif "/" in spec.model or "\\" in spec.model or spec.model.startswith((".", "~")):
        reason = f"{spec.model!r} is a path; use an id that GET /models lists"
    else:
        reason = f"no model {spec.model!r}"
    raise ProblemError(
        "model_not_found",
        status=HTTPStatus.UNPROCESSABLE_ENTITY,
        detail=f"{reason}; available: {known}{more}",
        param="model",
    )


def _admit_dataset(
    spec: JobSpec,
    dataset: Dataset,
    *,
    completed: Completion,
    backbone: Backbone | None,
    revision: str | None,
) -> Admission:
    rows = completed.rows
    try:
        samples = spec.count_samples(rows=rows)
    except InvalidArgumentError as error:
        raise invalid_request(str(error), param="n_samples") from error
    if spec.training.early_stopping_patience is not None and not completed.has_validation:
        raise invalid_request(
            "early stopping needs a validation split",
            param="training.early_stopping_patience",
        )
    return Admission(
        new_job=_new_job(
            spec, completed.task, dataset=dataset.id, n_samples=samples, revision=revision
        ),
        backbone=backbone,
        dataset=dataset,
        task=completed.task,
        train_rows=rows,
        num_labels=completed.num_labels,
    )


def _find_dataset(session: Session, tenant_id: str, dataset_id: str) -> Dataset:
    try:
        return get_dataset(session, tenant_id, dataset_id)
    except NotFoundError as error:
        error.param = "dataset"
        raise


def _check_backbone(spec: JobSpec, task: TaskFields, backbone: Backbone) -> None:
    """Raise if the backbone does not support the task or the settings."""
    if task.type is not None and task.type not in backbone.task_heads:
        supported = ", ".join(sorted(backbone.task_heads)) or "no task"
        raise ProblemError(
            "model_not_suitable",
            status=HTTPStatus.UNPROCESSABLE_ENTITY,
            detail=f"{backbone.id!r} ({backbone.architecture}) supports {supported}, not "
            f"{task.type}",
            param="model",
        )
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


def _new_job(
    spec: JobSpec,
    task: TaskFields,
    *,
    dataset: str | Mapping[str, Any],
    n_samples: int | None,
    revision: str | None,
) -> NewJob:
    """Build the job, with all defaults in its spec."""
    document = spec.model_dump(mode="json")
    document["task"] = task.model_dump(mode="json")
    document["dataset"] = dataset
    document["xi"] = spec.share
    document["n_samples"] = n_samples
    return NewJob(
        spec=document,
        model=spec.model,
        revision=revision,
        needs_hub=revision is not None or not isinstance(dataset, str),
        dataset_id=dataset if isinstance(dataset, str) else None,
        name=spec.name,
        meta=spec.metadata,
    )
