"""Jobs and data sets by their names, where one is meant without doubt."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from service.client.errors import ClientError

if TYPE_CHECKING:
    from service.client import Client
    from service.client.documents import Dataset, Job, Page

JOB, DATASET = "job_", "ds_"  # the prefixes of ids
_SHOWN = 5

_Item = TypeVar("_Item", "Job", "Dataset")


class UnclearNameError(ClientError):
    """A name means nothing, or several things."""


def job_id(client: Client, reference: str) -> str:
    """Return the id of the job of that id or name.

    Raises:
        UnclearNameError: no job has the name, or several have it.
    """
    if reference.startswith(JOB):
        return reference
    return _only(client.jobs.list(name=reference, limit=_SHOWN), "job", reference)


def dataset_id(client: Client, reference: str) -> str:
    """Return the id of the data set of that id or name.

    Raises:
        UnclearNameError: no data set has the name, or several have it.
    """
    if reference.startswith(DATASET):
        return reference
    return _only(client.datasets.list(name=reference, limit=_SHOWN), "data set", reference)


def _only(page: Page[_Item], kind: str, name: str) -> str:
    ids = [item["id"] for item in page["data"]]
    if not ids:
        raise UnclearNameError(f"no {kind} has the id or the name {name!r}")
    if len(ids) > 1:
        listed = f"{', '.join(ids)}{', …' * page['has_more']}"
        raise UnclearNameError(f"several {kind}s are named {name!r}: use an id ({listed})")
    return ids[0]
