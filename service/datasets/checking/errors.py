"""The refusal of a data set, as the gateway answers it."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from store.errors import ProblemError

if TYPE_CHECKING:
    from hifi.errors import DataError


class DatasetInvalidError(ProblemError):
    """An uploaded data set, or a column that a job wants of it, cannot be used.

    Args:
        error: what is wrong; it names a split.
        param: the field of the request at fault; for an upload the split.
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
