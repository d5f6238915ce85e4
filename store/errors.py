"""The store's errors, each with a stable code, and refusals over HTTP (RFC 9457)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar, TypeVar

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 5
_RETRIED = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})

_Row = TypeVar("_Row")


class StoreError(Exception):
    """Root of the store's errors.

    Attributes:
        code: stable, snake_case; part of the HTTP contract.
        param: the field of the request at fault, dotted; None where there is none.
    """

    code: ClassVar[str] = "store_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class NotFoundError(StoreError):
    """There is no such thing, or it belongs to another tenant: nobody can tell which."""

    code = "not_found"

    def __init__(self, kind: str, identifier: str, *, param: str | None = None) -> None:
        super().__init__(f"there is no {kind} {identifier!r}", param=param)


def found(row: _Row | None, kind: str, identifier: str) -> _Row:
    """Return what a query found.

    Raises:
        NotFoundError: it found nothing.
    """
    if row is None:
        raise NotFoundError(kind, identifier)
    return row


class IllegalTransitionError(StoreError):
    """A job cannot move from its state to the one asked for."""

    code = "illegal_transition"


class QuotaExceededError(StoreError):
    """A tenant has as much as it may have."""

    code = "quota_exceeded"


class DatasetInUseError(StoreError):
    """A data set that a live job still needs."""

    code = "dataset_in_use"


class LeaseLostError(StoreError):
    """A worker writes for a job that is no longer its own: the write is refused."""

    code = "lease_lost"


class ArtifactStorageError(StoreError):
    """The artifact store cannot be reached, or is full."""

    code = "artifact_storage"


class BlobLostError(ArtifactStorageError):
    """A blob that a row names is not in the artifact store, or not what its name says.

    Waiting does not bring it back, as it does a store that cannot be reached.
    """

    code = "blob_lost"


class SettingsError(StoreError):
    """A setting that cannot be followed."""

    code = "settings"


class SchemaError(StoreError):
    """The tables are not those of this version, or cannot be made so."""

    code = "schema"


class ConflictError(StoreError):
    """Something of that name is there already."""

    code = "conflict"


class IdempotencyKeyReusedError(StoreError):
    """An idempotency key that came with another body before."""

    code = "idempotency_key_reused"


class RequestTakenOverError(StoreError):
    """A request with an idempotency key took so long that a twin has answered in its place."""

    code = "request_taken_over"


class ProblemError(Exception):
    """A request that is refused.

    Args:
        code: stable, snake_case; part of the contract.
        status: of the answer.
        detail: for people: what is wrong, with the value and the limit. It names no path of this
            machine: the gateway passes on what the inference process writes.
        param: the field of the request at fault, dotted; None where there is none.
        headers: of the answer.
        extra: further members of the problem document, plain JSON.

    Attributes:
        headers: of the answer; a refusal that may pass names the seconds until a retry.
    """

    def __init__(
        self,
        code: str,
        *,
        status: int,
        detail: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.status = int(status)
        self.detail = detail
        self.param = param
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})
        if self.status in _RETRIED:
            self.headers.setdefault("Retry-After", str(RETRY_SECONDS))

    def to_json(self, **members: Any) -> str:  # noqa: ANN401 - plain JSON
        """Write the problem details document.

        Args:
            members: further ones that the process adds to every problem.

        Returns:
            ASCII: half a surrogate pair that somebody sent must not keep the answer from being
            encoded.
        """
        document = {
            "type": f"urn:hifi:problem:{self.code}",
            "title": self.code.replace("_", " ").capitalize(),
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "param": self.param,
            **members,
            **self.extra,
        }
        return json.dumps(document)
