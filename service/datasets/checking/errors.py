"""The refusal of a data set, as the gateway answers it."""

from __future__ import annotations

from http import HTTPStatus

from store.problems import ProblemError


class DatasetInvalidError(ProblemError):
    """An uploaded data set, or a column that a job wants of it, cannot be used.

    Args:
        reason: what is wrong and what is allowed.
        split: ``train``, ``validation`` or ``test``.
        row: from 1, header and blank lines not counted; None for the whole split.
        column: the offending column.
        param: the field of the request at fault; for an upload the split.
    """

    def __init__(
        self,
        reason: str,
        *,
        split: str,
        row: int | None = None,
        column: str | None = None,
        param: str | None = None,
    ) -> None:
        place = [split]
        if row is not None:
            place.append(f"row {row}")
        if column is not None:
            place.append(f"column {column!r}")
        super().__init__(
            "dataset_invalid",
            status=HTTPStatus.UNPROCESSABLE_ENTITY,
            detail=f"{', '.join(place)}: {reason}",
            param=param or split,
            extra={"split": split, "row": row, "column": column},
        )
        self.reason = reason
        self.split = split
        self.row = row
        self.column = column
