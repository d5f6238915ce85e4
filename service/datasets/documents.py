"""The JSON documents of data sets."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Literal

from hifi.data.classes.names import describe_alike
from hifi.data.inference import infer_label
from hifi.data.profile import DatasetProfile, describe_left_out_rows
from service.http.documents import Answer, Listed, Page

if TYPE_CHECKING:
    from store.tables import Dataset


class Split(Answer):
    """One split of a data set."""

    rows: int


class Note(Answer):
    """Something about a data set that does not prevent its use.

    Attributes:
        code: ``column_left_out``, ``rows_left_out`` or ``classes_alike``.
        message: for people.
        param: the column; for rows the split.
    """

    code: str
    message: str
    param: str


class DatasetDocument(Listed):
    """An uploaded data set; ``columns`` are those of the training split that tasks can use."""

    object: Literal["dataset"] = "dataset"
    name: str | None
    splits: dict[str, Split]
    columns: dict[str, str]
    notes: list[Note]
    bytes: int
    sha256: str
    created_at: datetime

    @classmethod
    def of(cls, dataset: Dataset) -> DatasetDocument:
        """Build the document from a row, with its columns in the files' order.

        Postgres does not keep the order of a JSON object's keys.
        """
        order = [column["name"] for column in dataset.profile.get("columns", ())]
        in_order = {name: dataset.columns[name] for name in order if name in dataset.columns}
        return cls.of_row(
            dataset,
            splits={name: Split(rows=split["rows"]) for name, split in dataset.splits.items()},
            columns={**in_order, **dataset.columns},
            notes=_notes(DatasetProfile.from_json(dataset.profile)),
        )


def _notes(profile: DatasetProfile) -> list[Note]:
    """Return notes on the columns that are left out, and on the classes of a certain label.

    The label may be certain though the task's type is not, as with numbers in mixed notations.
    """
    notes = [
        Note(code="column_left_out", message=note, param=name)
        for name, note in profile.notes.items()
    ]
    notes += [
        Note(
            code="rows_left_out",
            message=describe_left_out_rows(count, split=split),
            param=split,
        )
        for split, count in profile.left_out.items()
    ]
    label = infer_label(profile)
    column = None if label is None else profile.column(label)
    if column is not None and column.classes_alike:
        message = describe_alike(column.classes_alike)
        notes.append(Note(code="classes_alike", message=message, param=column.name))
    return notes


class DatasetList(Page[DatasetDocument]):
    """A page of data sets, newest first."""
