"""Convert failures with a head delta or its backbone to problems for callers."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING

import structlog
from safetensors import SafetensorError

from hifi.errors import (
    BackboneMismatchError,
    HifiError,
    ModelError,
    StorageError,
    UnsupportedArchitectureError,
)
from store.errors import ArtifactStorageError, ProblemError
from worker.memory import is_out_of_memory

if TYPE_CHECKING:
    from store.orders import DeltaOrder

_DISK = (StorageError, SafetensorError, OSError)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_log = structlog.get_logger(__name__)


@contextmanager
def as_problems(order: DeltaOrder) -> Iterator[None]:
    """Turn errors into problems; details about this machine stay in the log.

    Raises:
        ProblemError: ``model_not_found``, ``backbone_mismatch``, ``delta_invalid``,
            ``artifact_storage``, ``blob_lost``, ``disk_full``, ``disk_failed`` or
            ``out_of_memory``.
    """
    try:
        yield
    except BackboneMismatchError as error:
        raise _problem("backbone_mismatch", HTTPStatus.CONFLICT, str(error), error) from error
    except (ModelError, UnsupportedArchitectureError) as error:
        detail = f"the inference process cannot load the backbone {order.model!r}"
        raise _problem("model_not_found", HTTPStatus.NOT_FOUND, detail, error) from error
    except ArtifactStorageError as error:
        detail = "the head delta cannot be read from the artifact store"
        raise _problem(error.code, HTTPStatus.SERVICE_UNAVAILABLE, detail, error) from error
    except _DISK as error:
        is_full = not isinstance(error, OSError) or error.errno in _FULL
        code = "disk_full" if is_full else "disk_failed"
        detail = "the inference process cannot use its disk"
        raise _problem(code, HTTPStatus.SERVICE_UNAVAILABLE, detail, error) from error
    except HifiError as error:
        detail = "the head delta cannot be read, or does not record a task that can be served"
        raise _problem("delta_invalid", HTTPStatus.UNPROCESSABLE_ENTITY, detail, error) from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        detail = "the inference process has too little memory for this backbone or head delta"
        raise _problem("out_of_memory", HTTPStatus.SERVICE_UNAVAILABLE, detail, error) from error


def _problem(code: str, status: HTTPStatus, detail: str, cause: Exception) -> ProblemError:
    _log.warning("refused", code=code, reason=str(cause))
    return ProblemError(code, status=status, detail=detail)
