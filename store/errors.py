"""The store's errors, each with a stable code, and refusals over HTTP (RFC 9457)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar, TypeVar

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 5
_RETRIED = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})

_ACRONYMS = {"json": "JSON", "http": "HTTP"}

_Row = TypeVar("_Row")


class StoreError(Exception):
    """Root of the store's errors.

    Attributes:
        code: stable, snake_case; part of the HTTP contract.
        param: the field of the request at fault, dotted; None if there is none.
    """

    code: ClassVar[str] = "store_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class NotFoundError(StoreError):
    """It does not exist, or belongs to another tenant; callers cannot distinguish the two."""

    code = "not_found"

    def __init__(self, kind: str, identifier: str, *, param: str | None = None) -> None:
        super().__init__(f"there is no {kind} {identifier!r}", param=param)


def found(row: _Row | None, kind: str, identifier: str) -> _Row:
    """Return a row unless it is None.

    Raises:
        NotFoundError: the row is None.
    """
    if row is None:
        raise NotFoundError(kind, identifier)
    return row


class IllegalTransitionError(StoreError):
    """A job cannot move from its state to the requested one."""

    code = "illegal_transition"


class QuotaExceededError(StoreError):
    """A tenant has reached its quota."""

    code = "quota_exceeded"


class SpaceExceededError(QuotaExceededError):
    """A tenant's quota of bytes has no room; waiting does not help, it must delete something."""


class DatasetInUseError(StoreError):
    """An unfinished job still needs the data set."""

    code = "dataset_in_use"


class DatasetAmbiguousError(StoreError):
    """Several data sets of the tenant have the name."""

    code = "dataset_ambiguous"


class LeaseLostError(StoreError):
    """A worker tried to write for a job that it no longer holds."""

    code = "lease_lost"


class ArtifactStorageError(StoreError):
    """The artifact store cannot be reached, or is full.

    Args:
        message: the whole, for the log of the operator.
        detail: what callers are told; None if the message names no address, path or cause.
    """

    code = "artifact_storage"

    def __init__(self, message: str, *, detail: str | None = None) -> None:
        super().__init__(message)
        self.detail = detail or message


class BlobLostError(ArtifactStorageError):
    """A blob that a row names is missing or damaged; a retry does not help."""

    code = "blob_lost"


class SettingsError(StoreError):
    """A setting is invalid."""

    code = "settings"


class SchemaError(StoreError):
    """The tables are not those of this version, or cannot be migrated."""

    code = "tables_version"


class ConflictError(StoreError):
    """The name is already taken."""

    code = "conflict"


class TenantInvalidError(StoreError):
    """A field of a tenant is invalid."""

    code = "invalid_request"


class OwnTenantError(StoreError):
    """An administrator would end their own access."""

    code = "own_tenant"


class KeyInvalidError(StoreError):
    """A key is revoked or expired, or would be."""

    code = "key_invalid"


class IdempotencyKeyReusedError(StoreError):
    """An idempotency key was used before with another body."""

    code = "idempotency_key_reused"


class RequestTakenOverError(StoreError):
    """A request with an idempotency key took so long that a duplicate has finished it."""

    code = "request_taken_over"


def _title_of(code: str) -> str:
    """Return a code in words: ``invalid_json`` is *Invalid JSON*."""
    title = " ".join(_ACRONYMS.get(word, word) for word in code.split("_"))
    return title[0].upper() + title[1:]


class ProblemError(Exception):
    """A request that is refused.

    Args:
        code: stable, snake_case; part of the contract.
        status: of the response.
        detail: for people: what is wrong, with the value and the limit. It must not name paths of
            this machine, because the gateway passes details of the inference process on.
        param: the field of the request at fault, dotted; None if there is none.
        headers: of the response.
        extra: further members of the problem document, plain JSON.

    Attributes:
        headers: of the response; with ``Retry-After`` for 429 and 503.
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
        """Return the problem details document.

        Args:
            members: further members that the process adds to every problem.

        Returns:
            ASCII, so that a lone surrogate in the request cannot break the encoding.
        """
        document = {
            "type": f"urn:hifi:problem:{self.code}",
            "title": _title_of(self.code),
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "param": self.param,
            **members,
            **self.extra,
        }
        return json.dumps(document)
