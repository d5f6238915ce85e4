"""The error for an invalid data set."""

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
            extra={"split": error.split, "row": error.row, "column": error.column},
        )
        self.reason = error.reason
        self.split = error.split
        self.row = error.row
        self.column = error.column
