"""Load one split of a data set from a file, the hub or memory.

Files are read by ``hifi.data.formats`` into an in-memory ``datasets.Dataset``, and not by
``datasets.load_dataset``, which caches by path, expands ``[`` and ``*`` in file names, fills short
CSV rows silently, reads the text ``NA`` as null, and cannot report the row of an error. The cells
of a delimited file have no types: they are loaded as texts with a mark, and ``columns`` converts
them to what the task needs. A Parquet file whose schema metadata has the entry ``hifi.cells`` =
``1`` holds such cells; its texts are read like those of a CSV file, so that a CSV file can be
stored as Parquet without loss.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import datasets
import pandas as pd
import pyarrow as pa
from datasets import Dataset
from PIL import Image

from hifi.data.columns import CELLS_FEATURE, profile_split
from hifi.data.formats import ENDINGS
from hifi.data.formats.checks import first_misfit
from hifi.data.formats.limits import UNLIMITED, Budget
from hifi.data.formats.reader import Reader, Unfit, find_lines, open_reader
from hifi.data.images import upright
from hifi.data.profile import no_rows
from hifi.errors import DataError, MissingColumnError, in_split, quoted

if TYPE_CHECKING:
    from hifi.data.profile import DatasetProfile

Source: TypeAlias = (
    str | Path | Dataset | pd.DataFrame | Sequence[Mapping[str, Any]] | Mapping[str, Any]
)

_HUB_KEYS = frozenset({"hub", "config", "revision", "split"})
# Raised by pyarrow, datasets or Pillow (for images) for values that do not fit into a column.
_UNFIT = (pa.ArrowException, ValueError, TypeError, OverflowError, AttributeError, OSError)


@dataclass(frozen=True, kw_only=True)
class LoadedSplit:
    """One split.

    Attributes:
        dataset: its rows.
        unfit: further columns of the source, which no task can use.
        index: the columns that are a table's index; None if only their names can show it.
        left_out: the rows of a labelling tool that nobody accepted.
    """

    dataset: Dataset
    unfit: Mapping[str, Unfit]
    index: Collection[str] | None
    left_out: int = 0

    @property
    def profile(self) -> DatasetProfile:
        """The profile of the split, if it is the training split."""
        return profile_split(
            self.dataset, unfit=self.unfit, index=self.index, left_out=self.left_out
        )


@contextmanager
def named_lines(sources: Mapping[str, Source | None]) -> Iterator[None]:
    """Add the line of the file to every :class:`DataError` from the block that names a row.

    Args:
        sources: by split.
    """
    try:
        yield
    except DataError as error:
        source = sources.get(error.split or "")
        if isinstance(source, str | Path) and error.row is not None and error.line is None:
            path, ending = _find_file(Path(source))
            with suppress(OSError):
                error.line = find_lines(path, ending=ending, rows={error.row}).get(error.row)
        raise


def has_split(source: Source, *, split: str) -> bool:
    """Return whether a data set of the hub has a split; True for any other source.

    Args:
        source: as for :func:`read_split`.
        split: used if the source names no other.

    Raises:
        DataError: the data set cannot be loaded.
    """
    if not isinstance(source, Mapping) or not isinstance(source.get("hub"), str):
        return True
    return (source.get("split") or split) in _load_hub(source, split=split, wanted=None)


def load_split(source: Source, *, split: str, columns: Sequence[str] | None = None) -> Dataset:
    """Load the rows of one split into memory, as :func:`read_split` does."""
    return read_split(source, split=split, columns=columns).dataset


def read_split(source: Source, *, split: str, columns: Sequence[str] | None = None) -> LoadedSplit:
    """Load one split into memory.

    Args:
        source: the path of a ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet`` file (UTF-8,
            CSV with a header); ``{"hub": id, "config": …, "revision": …, "split": …}`` (all but
            ``hub`` optional, ``split`` is this split's name without it); a ``datasets.Dataset``; a
            list of rows; a dict of columns; a pandas DataFrame.
        split: ``train``, ``validation`` or ``test``; for messages and for the hub.
        columns: the required columns, which must exist and be well-formed; others are dropped. By
            default all columns that a task can use are kept.

    Returns:
        At least one row.

    Raises:
        DataError: the split cannot be read; the error has row and column if they are the cause.
    """
    unfit: dict[str, Unfit] = {}
    index: Collection[str] | None = None
    left_out = 0
    if isinstance(source, str | Path):
        with named_lines({split: source}), in_split(split):
            dataset, reader = _read_file(Path(source), columns=columns)
            unfit, index, left_out = dict(reader.unfit), reader.index, reader.left_out
    elif isinstance(source, Mapping) and isinstance(source.get("hub"), str):
        dataset = _read_hub(source, split=split)
    else:
        with in_split(split):
            dataset, unfit = _read_memory(source, columns=columns)
    if len(dataset) == 0:
        raise DataError(no_rows(left_out, split=split), split=split)
    if columns is not None:
        for name in columns:
            if name not in dataset.column_names:
                raise MissingColumnError(name, there=dataset.column_names, split=split)
        dataset = dataset.select_columns(list(dict.fromkeys(columns)))
    return LoadedSplit(dataset=dataset, unfit=unfit, index=index, left_out=left_out)


def _read_file(path: Path, *, columns: Sequence[str] | None) -> tuple[Dataset, Reader]:
    path, ending = _find_file(path)
    if ending not in ENDINGS:
        raise DataError(
            f"{str(path)!r} does not end with one of {', '.join(ENDINGS)}; for a hub data set use "
            '--hub on the command line, or {"hub": "owner/name", "config": …} in Python'
        )
    try:
        if not path.exists():
            raise DataError(f"the file {str(path)!r} does not exist")
        reader = open_reader(path, ending=ending, budget=Budget(UNLIMITED), columns=columns)
        table = pa.Table.from_batches(reader.batches(), schema=reader.schema)
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error}") from error
    table = table.replace_schema_metadata(dict(reader.metadata))
    features = datasets.Features.from_arrow_schema(table.schema)
    cells = dict.fromkeys(reader.cells, CELLS_FEATURE)
    dataset = Dataset(
        datasets.table.InMemoryTable(table),
        info=datasets.DatasetInfo(features=datasets.Features({**features, **cells})),
        fingerprint="in-memory",
    )
    return dataset, reader


def _find_file(path: Path) -> tuple[Path, str]:
    """Return the path that a user means, and its ending."""
    with suppress(RuntimeError, ValueError):  # a file may be called "~stranger/x" literally
        path = path.expanduser()
    return path, path.suffix.lower()


def _refuse_twice(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise DataError("the column occurs more than once", column=name)


def _read_hub(source: Mapping[str, Any], *, split: str) -> Dataset:
    unknown = set(source) - _HUB_KEYS
    if unknown:
        raise DataError(
            f"unknown entries {sorted(map(str, unknown))} of a hub data set; known are "
            f"{sorted(_HUB_KEYS)}",
            split=split,
        )
    return _load_hub(source, split=split, wanted=source.get("split") or split)


def _load_hub(source: Mapping[str, Any], *, split: str, wanted: str | None) -> Any:  # noqa: ANN401 - datasets has no types
    """Return one split, or all of them by name if none is wanted."""
    try:
        return datasets.load_dataset(
            source["hub"], source.get("config"), split=wanted, revision=source.get("revision")
        )
    except Exception as error:  # datasets can raise anything, and so can the hub's HTTP client
        raise DataError(
            f"{source['hub']!r} (config {source.get('config')!r}, split {wanted or split!r}) "
            f"cannot be loaded from the Hugging Face hub: {error}",
            split=split,
        ) from error


def _read_memory(
    source: object, *, columns: Sequence[str] | None
) -> tuple[Dataset, dict[str, Unfit]]:
    if isinstance(source, datasets.DatasetDict):
        raise DataError(f"several splits were passed, {sorted(source)}; pass one")
    if isinstance(source, Dataset):
        return source, {}
    if isinstance(source, pd.DataFrame):
        _refuse_twice([str(name) for name in source.columns])
        whole = source.astype(object).where(source.notna(), None)
        source = {str(name): whole[name].tolist() for name in whole.columns}
    elif isinstance(source, Sequence) and all(isinstance(row, Mapping) for row in source):
        names = dict.fromkeys(name for row in source for name in row)
        source = {name: [row.get(name) for row in source] for name in names}
    if not isinstance(source, Mapping):
        raise DataError(
            f"a {type(source).__name__} is not a data set; pass a path, a hub data set, a "
            "datasets.Dataset, a list of rows, a dict of columns or a DataFrame"
        )
    for name, values in source.items():
        if isinstance(values, str | bytes) or not isinstance(values, Iterable):
            raise DataError("a list of values is needed", column=str(name))
    table = {name: list(values) for name, values in source.items()}
    return _from_columns(table, columns=columns)


def _from_columns(
    table: Mapping[Any, list[Any]], *, columns: Sequence[str] | None
) -> tuple[Dataset, dict[str, Unfit]]:
    _refuse_twice([str(name) for name in table])
    kept = {str(name): [_upright(value) for value in values] for name, values in table.items()}
    lengths = {name: len(values) for name, values in kept.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"columns of different lengths: {lengths}")
    if columns is not None and set(columns) <= set(kept):  # a missing column is reported later
        kept = {name: kept[name] for name in columns}
    try:
        return Dataset.from_dict(kept), {}
    except _UNFIT as error:
        unfit = {name: _find_misfit(values) for name, values in kept.items() if not _fits(values)}
        if not unfit:
            raise DataError(f"the columns cannot be converted: {error}") from error
        if columns is not None or len(unfit) == len(kept):
            name, found = next(iter(unfit.items()))
            raise found.error(name) from error
    return Dataset.from_dict({name: kept[name] for name in kept if name not in unfit}), unfit


def _upright(value: object) -> object:
    """Turn a decoded image upright; its EXIF data would not be stored."""
    return upright(value, like=value) if isinstance(value, Image.Image) else value


def _find_misfit(values: Sequence[Any]) -> Unfit:
    place = first_misfit(values, fit=_fits)
    value = values[place]
    why = "does not fit the rows above it" if place else "cannot be stored in a column"
    above = Dataset.from_dict({"column": values[:place]}).features.arrow_schema.field(0).type
    reason = f"{quoted(value)} ({type(value).__name__}) {why}"
    return Unfit(type=above, row=place + 1, reason=reason)


def _fits(values: Sequence[Any]) -> bool:
    try:
        Dataset.from_dict({"column": values})
    except _UNFIT:
        return False
    return True
