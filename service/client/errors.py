"""Every error that the client raises on purpose."""

from __future__ import annotations


class ClientError(Exception):
    """Root of the client's errors: catch it to catch them all."""


class ApiError(ClientError):
    """The server refuses a request; its text is the server's ``detail``.

    Args:
        code: stable, snake_case.
        detail: what is wrong, for people.
        param: the field at fault, dotted; None where there is none.
        status: of the HTTP answer.
        request_id: by which the server's logs know the request.
        retry_after: seconds after which the server asks to try again; None where it does not.
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


class AddressError(ClientError, ValueError):
    """The server's URL or the key cannot be used as they are."""


class UnreachableError(ClientError):
    """No server answers, or the connection broke more often than it was mended."""


class UnexpectedAnswerError(ClientError):
    """Something answers that is no HiFi server, or one of another version."""


class LocalFileError(ClientError):
    """A file here cannot be read or written."""


class DamagedDownloadError(ClientError):
    """What was downloaded is not what the server has."""
