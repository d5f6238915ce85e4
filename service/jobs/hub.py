"""The Hugging Face hub, asked for what a name stands for at this moment, and for nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol, TypeVar

from store.problems import ProblemError

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import DatasetInfo, ModelInfo

_SECONDS = 4.0  # to connect, and again for the answer
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_WEIGHTS = frozenset({"model.safetensors", "model.safetensors.index.json"})
_PICKLED_WEIGHTS = frozenset({"pytorch_model.bin", "pytorch_model.bin.index.json"})
Info = TypeVar("Info", "ModelInfo", "DatasetInfo")


class Hub(Protocol):
    """What can pin a name to a commit."""

    def pin_model(self, name: str) -> str:
        """Give the commit of a model's default branch.

        Raises:
            ProblemError: 422 ``model_not_found``, ``pickled_weights`` or ``hub_unavailable``.
        """

    def pin_dataset(self, name: str, *, revision: str | None) -> str:
        """Give the commit that a branch, tag or commit of a data set stands for.

        Raises:
            ProblemError: 422 ``dataset_not_found`` or ``hub_unavailable``.
        """


def is_hub_id(name: str) -> bool:
    """Say whether a name could be one of the hub's: ``owner/name``."""
    return _ID.fullmatch(name) is not None and ".." not in name


@dataclass(frozen=True)
class HuggingFaceHub:
    """The hub that ``HF_ENDPOINT`` names, as anybody sees it.

    The operator's own access token is not used: a tenant must not reach what is private to them.
    """

    def pin_model(self, name: str) -> str:
        """Give the commit of a model's default branch, as :class:`Hub` says."""
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
                    f"{name!r} has only pickled weights, which can run code when opened and are "
                    "refused; a model must have model.safetensors",
                    "model",
                )
            raise _refusal("model_not_found", f"{name!r} has no model.safetensors", "model")
        return _commit(found, param="model")

    def pin_dataset(self, name: str, *, revision: str | None) -> str:
        """Give the commit of a data set, as :class:`Hub` says."""
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
    """Ask the hub, which answers, has no such thing, or is away."""
    # Where no hub is allowed none of this is loaded: it takes 40 MB.
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
    except Exception as error:  # the HTTP client below it, and its errors, differ by version
        reason = "the Hugging Face hub does not answer: try again, or use a model of this server"
        raise _refusal("hub_unavailable", reason, param) from error


def _commit(found: ModelInfo | DatasetInfo, *, param: str) -> str:
    if not found.sha:
        raise _refusal("hub_unavailable", f"the hub names no commit of {found.id!r}", param)
    return found.sha


def _refusal(code: str, detail: str, param: str) -> ProblemError:
    return ProblemError(code, status=HTTPStatus.UNPROCESSABLE_ENTITY, detail=detail, param=param)
