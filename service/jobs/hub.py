"""Resolve names on the Hugging Face hub to commits; nothing else is requested from it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol, TypeVar

from store.errors import ProblemError

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import DatasetInfo, ModelInfo

_SECONDS = 4.0  # to connect, and again for the answer
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_WEIGHTS = frozenset({"model.safetensors", "model.safetensors.index.json"})
_PICKLED_WEIGHTS = frozenset({"pytorch_model.bin", "pytorch_model.bin.index.json"})
Info = TypeVar("Info", "ModelInfo", "DatasetInfo")


class Hub(Protocol):
    """Pins names to commits."""

    def pin_model(self, name: str) -> str:
        """Return the commit of a model's default branch.

        Raises:
            ProblemError: 422 ``model_not_found``, ``pickled_weights`` or ``hub_unavailable``.
        """

    def pin_dataset(self, name: str, *, revision: str | None) -> str:
        """Return the commit of a data set's branch, tag or commit.

        Raises:
            ProblemError: 422 ``dataset_not_found`` or ``hub_unavailable``.
        """


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form of a hub id: ``owner/name``."""
    return _ID.fullmatch(name) is not None and ".." not in name


@dataclass(frozen=True)
class HuggingFaceHub:
    """The hub at ``HF_ENDPOINT``, accessed anonymously.

    The operator's access token is not used: tenants must not reach the operator's private models.
    """

    def pin_model(self, name: str) -> str:
        """Return the commit of a model's default branch; see :class:`Hub`."""
        found = _ask(
            lambda api: api.model_info(name, timeout=_SECONDS, token=False),
            missing=_refusal("model_not_found", f"the hub has no model {name!r}", "model"),
            param="model",
        )
        files = {entry.rfilename for entry in found.siblings or ()}
        if not files & _WEIGHTS:
            if files & _PICKLED_WEIGHTS:
                raise _refusal(
                    "pickled_weights",
                    f"{name!r} has only pickled weights, which are refused because opening them "
                    "can run code; a model must have model.safetensors",
                    "model",
                )
            raise _refusal("model_not_found", f"{name!r} has no model.safetensors", "model")
        return _commit(found, param="model")

    def pin_dataset(self, name: str, *, revision: str | None) -> str:
        """Return the commit of a data set; see :class:`Hub`."""
        at = "" if revision is None else f" at revision {revision!r}"
        found = _ask(
            lambda api: api.dataset_info(name, revision=revision, timeout=_SECONDS, token=False),
            missing=_refusal(
                "dataset_not_found", f"the hub has no data set {name!r}{at}", "dataset.hub"
            ),
            param="dataset.hub",
        )
        return _commit(found, param="dataset.hub")


def _ask(call: Callable[[HfApi], Info], *, missing: ProblemError, param: str) -> Info:
    """Send a request to the hub; raise if the name does not exist or the hub does not answer."""
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
        raise _refusal("hub_unavailable", reason, param) from error


def _commit(found: ModelInfo | DatasetInfo, *, param: str) -> str:
    if not found.sha:
        raise _refusal("hub_unavailable", f"the hub returned no commit of {found.id!r}", param)
    return found.sha


def _refusal(code: str, detail: str, param: str) -> ProblemError:
    return ProblemError(code, status=HTTPStatus.UNPROCESSABLE_ENTITY, detail=detail, param=param)
