"""Resolve names on the hub at ``HF_ENDPOINT`` to commits; nothing else is requested from it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from service.http.problems import unprocessable

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import DatasetInfo, ModelInfo

    from store.errors import ProblemError

_SECONDS = 4.0  # to connect, and again for the answer
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_WEIGHTS = frozenset({"model.safetensors", "model.safetensors.index.json"})
_PICKLED_WEIGHTS = frozenset({"pytorch_model.bin", "pytorch_model.bin.index.json"})
Info = TypeVar("Info", "ModelInfo", "DatasetInfo")


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form of a hub id: ``owner/name``."""
    return _ID.fullmatch(name) is not None and ".." not in name


def pin_model(name: str) -> str:
    """Return the commit of a model's default branch.

    Raises:
        ProblemError: 422 ``model_not_found``, ``pickled_weights`` or ``hub_unavailable``.
    """
    found = _ask(
        lambda api: api.model_info(name, timeout=_SECONDS, token=False),
        missing=unprocessable("model_not_found", f"the hub has no model {name!r}", param="model"),
        param="model",
    )
    files = {entry.rfilename for entry in found.siblings or ()}
    if not files & _WEIGHTS:
        if files & _PICKLED_WEIGHTS:
            raise unprocessable(
                "pickled_weights",
                f"{name!r} has only pickled weights, which are refused because opening them "
                "can run code; a model must have model.safetensors",
                param="model",
            )
        reason = f"{name!r} has no model.safetensors"
        raise unprocessable("model_not_found", reason, param="model")
    return _commit(found, param="model")


def pin_dataset(name: str, *, revision: str | None) -> str:
    """Return the commit of a data set's branch, tag or commit.

    Raises:
        ProblemError: 422 ``dataset_not_found`` or ``hub_unavailable``.
    """
    at = "" if revision is None else f" at revision {revision!r}"
    reason = f"the hub has no data set {name!r}{at}"
    found = _ask(
        lambda api: api.dataset_info(name, revision=revision, timeout=_SECONDS, token=False),
        missing=unprocessable("dataset_not_found", reason, param="dataset.hub"),
        param="dataset.hub",
    )
    return _commit(found, param="dataset.hub")


def _ask(call: Callable[[HfApi], Info], *, missing: ProblemError, param: str) -> Info:
    """Send a request to the hub; raise if the name does not exist or the hub does not answer.

    Callers do not use the operator's access token: tenants must not reach the operator's private
    models.
    """
    # Imported here: it takes 40 MB, and gateways without access to the hub never need it.
    from huggingface_hub import HfApi  # noqa: PLC0415
    from huggingface_hub.errors import (  # noqa: PLC0415
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return call(HfApi())
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise missing from error
    except Exception as error:  # its HTTP client, and so its errors, differ by version
        reason = "the Hugging Face hub does not answer: retry, or use a model of this server"
        raise unprocessable("hub_unavailable", reason, param=param) from error


def _commit(found: ModelInfo | DatasetInfo, *, param: str) -> str:
    if not found.sha:
        reason = f"the hub returned no commit of {found.id!r}"
        raise unprocessable("hub_unavailable", reason, param=param)
    return found.sha
