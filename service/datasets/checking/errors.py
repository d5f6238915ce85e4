"""The errors for an invalid data set, and for one that takes too long to read."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from store.errors import ProblemError

if TYPE_CHECKING:
    from hifi.errors import DataError


class DatasetInvalidError(ProblemError):
    """An uploaded data set, or one of its columns that a job needs, cannot be used.

    Args:
        error: the reason; it names a split.
        param: the invalid field of the request; by default the split.
    """

    def __init__(self, error: DataError, *, param: str | None = None) -> None:
        super().__init__(
            "dataset_invalid",
            status=HTTPStatus.UNPROCESSABLE_ENTITY,
            detail=str(error),
            param=param or error.split,
            extra={
                "split": error.split,
                "row": error.row,
                "line": error.line,
                "column": error.column,
            },
        )
        self.reason = error.reason
        self.split = error.split
        self.row = error.row
        self.line = error.line
        self.column = error.column


class UploadTooSlowError(ProblemError):
    """Reading an upload takes longer than it may.

    Args:
        split: the one that was being read.
        seconds: the limit.
    """

    def __init__(self, split: str, *, seconds: float) -> None:
        super().__init__(
            "upload_too_slow",
            status=HTTPStatus.UNPROCESSABLE_ENTITY,
            detail=f"{split}: reading the upload takes more than {seconds:g} seconds, the most "
            "allowed: upload fewer rows, or fewer columns",
            param=split,
            extra={"split": split},
        )
