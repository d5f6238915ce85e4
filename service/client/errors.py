"""The errors of the client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ClientError(Exception):
    """Base class of the client's errors."""


class ApiError(ClientError):
    """The server refuses a request; the message is the server's ``detail``.

    Args:
        code: stable, snake_case.
        detail: the reason, for people.
        param: the invalid field, dotted; None if no field is invalid.
        status: of the HTTP response.
        request_id: identifies the request in the server's logs.
        retry_after: the response's Retry-After in seconds; None if it has none.
    """

    def __init__(
        self,
        code: str,
        *,
        detail: str,
        param: str | None = None,
        status: int,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.param = param
        self.status = status
        self.request_id = request_id
        self.retry_after = retry_after

    @property
    def is_busy(self) -> bool:
        """Whether a retry can help; a full quota stays full until the caller acts."""
        return self.status in (429, 503) and self.code != "quota_exceeded"


class AddressError(ClientError, ValueError):
    """The server's URL or the key is invalid."""


class BodyError(ClientError, ValueError):
    """A request's body contains something that JSON does not have."""


class UnreachableError(ClientError):
    """No server answers, or the connection broke too often."""


class UnexpectedAnswerError(ClientError):
    """The response is not from a HiFi server, or from one of another version."""


class LocalFileError(ClientError):
    """A local file cannot be read or written."""


class DamagedDownloadError(ClientError):
    """A downloaded file differs from the server's."""


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Convert the errors of reading a file to a LocalFileError."""
    try:
        yield
    except OSError as error:
        raise LocalFileError(f"cannot read {path}: {error.strerror or error}") from error
