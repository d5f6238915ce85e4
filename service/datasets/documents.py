"""The JSON documents of data sets."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Literal

from service.http.documents import Answer, Listed, Page

if TYPE_CHECKING:
    from store.tables import Dataset


class Split(Answer):
    """One split of a data set."""

    rows: int


class DatasetDocument(Listed):
    """An uploaded data set."""

    object: Literal["dataset"] = "dataset"
    name: str | None
    splits: dict[str, Split]
    columns: dict[str, str]
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
        )


class DatasetList(Page[DatasetDocument]):
    """A page of data sets, newest first."""
