"""One head delta and its backbone become the files of a plain transformers model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from safetensors import SafetensorError

from hifi.delta import HeadDelta
from hifi.errors import (
    BackboneMismatchError,
    HifiError,
    ModelError,
    StorageError,
    UnsupportedArchitectureError,
)
from hifi.loading import load_backbone_at, write_merged_model
from hifi.models import ModelSource, download_model, identify_folder
from store.errors import ArtifactStorageError
from worker.inference.problems import ProblemError
from worker.models import find_backbones

if TYPE_CHECKING:
    from store.settings import Settings
    from worker.inference.deltas import DeltaCache
    from worker.inference.orders import MergeOrder

_DISK = (StorageError, SafetensorError, OSError)
_log = structlog.get_logger(__name__)


class Merger:
    """Merges head deltas into backbones of this machine.

    Args:
        settings: where backbones are, and whether the hub may be asked.
        deltas: where head deltas come from.
        folder: for merged models, of this process alone.
    """

    def __init__(self, settings: Settings, *, deltas: DeltaCache, folder: Path) -> None:
        self._settings = settings
        self._deltas = deltas
        self._folder = folder

    def merge(self, order: MergeOrder) -> Path:
        """Merge a delta into its backbone, which must be the one it was tuned on.

        Returns:
            A folder with the files that ``hifi merge`` writes; the caller removes it.

        Raises:
            ProblemError: ``model_not_found``, ``backbone_mismatch``, ``delta_invalid``,
                ``artifact_storage`` or ``disk_full``.
        """
        with _problems(order):
            delta = HeadDelta.load(self._deltas.fetch(order.tenant, order.sha256))
            backbone = load_backbone_at(self._find_backbone(order), delta=delta)
            folder = Path(tempfile.mkdtemp(dir=self._folder))
            try:
                write_merged_model(folder, delta=delta, backbone=backbone)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        return folder

    def _find_backbone(self, order: MergeOrder) -> ModelSource:
        """Find a backbone by its id, or by its hub id and commit; never by a path.

        Raises:
            ModelError: there is none.
        """
        if order.revision is None:
            folder = find_backbones(self._settings).get(order.model)
            if folder is None:
                raise ModelError(f"no folder {order.model} in {self._settings.models}")
            return identify_folder(folder)
        if not self._settings.allow_hub:
            raise ModelError(f"{order.model} is a hub id, and HIFI_ALLOW_HUB is not set")
        return download_model(order.model, revision=order.revision)


@contextmanager
def _problems(order: MergeOrder) -> Iterator[None]:
    """Turn what goes wrong into problems; what tells of this machine stays in the log."""
    try:
        yield
    except BackboneMismatchError as error:
        raise _problem("backbone_mismatch", HTTPStatus.CONFLICT, str(error), error) from error
    except (ModelError, UnsupportedArchitectureError) as error:
        detail = f"the inference process has no backbone {order.model!r} that it can load"
        raise _problem("model_not_found", HTTPStatus.NOT_FOUND, detail, error) from error
    except ArtifactStorageError as error:
        detail = "the head delta cannot be had from the artifact store"
        raise _problem(error.code, HTTPStatus.SERVICE_UNAVAILABLE, detail, error) from error
    except _DISK as error:
        detail = "the inference process cannot write the merged model"
        raise _problem("disk_full", HTTPStatus.SERVICE_UNAVAILABLE, detail, error) from error
    except HifiError as error:
        detail = "the head delta cannot be read, or has no task for which a model could be built"
        raise _problem("delta_invalid", HTTPStatus.UNPROCESSABLE_ENTITY, detail, error) from error


def _problem(code: str, status: HTTPStatus, detail: str, cause: Exception) -> ProblemError:
    _log.warning("merge refused", code=code, reason=str(cause))
    return ProblemError(code, status=status, detail=detail)
