"""Read one split of a data set: files, the hub, or what is in memory already.

Files are parsed by pyarrow and the standard json module into an in-memory ``datasets.Dataset``,
and not by ``datasets.load_dataset``: that one caches by path, expands ``[`` and ``*`` in file
names, fills short CSV rows silently, reads the text ``NA`` as nothing, and cannot say which row
of a file is wrong. CSV does not say what its cells are: they stay the texts that they are, with a
mark of what they look like, and ``columns`` reads them as what the task needs. A Parquet file whose
schema metadata has the entry ``hifi.cells`` = ``1`` holds such cells: its texts are read as a CSV
file's are, so that a CSV file can be kept as Parquet and lose nothing.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import pandas as pd
import pyarrow as pa
from datasets import Dataset
from pyarrow import csv, parquet

from hifi.data.columns import cells_feature
from hifi.errors import DataError

Source: TypeAlias = (
    str | Path | Dataset | pd.DataFrame | Sequence[Mapping[str, Any]] | Mapping[str, Any]
)

_HUB_KEYS = frozenset({"hub", "config", "revision", "split"})
_DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_HEADER_LETTERS = 10_000  # of a header that is looked at for its delimiter
_CELLS = (b"hifi.cells", b"1")  # the mark of a Parquet file that holds a CSV file's cells
_BLOCK_BYTES = 1 << 30  # one block where the file fits: blocks end a row in mid-quote
# No column can hold these: what pyarrow raises, and datasets and Pillow for images among them.
_UNFIT = (pa.ArrowException, ValueError, TypeError, OverflowError, AttributeError, OSError)


def load_split(source: Source, *, split: str, columns: Sequence[str] | None = None) -> Dataset:
    """Load one split into memory.

    Args:
        source: the path of a ``.jsonl``, ``.csv``, ``.tsv`` or ``.parquet`` file (UTF-8, CSV with a
            header); ``{"hub": id, "config": …, "revision": …, "split": …}`` (all but ``hub``
            optional, ``split`` is this split's name without it); a ``datasets.Dataset``; a list
            of rows; a dict of columns; a pandas DataFrame.
        split: ``train``, ``validation`` or ``test``; for messages and for the hub.
        columns: those that are needed: they must be there and well-formed, others are left out.
            Without it all columns are kept.

    Returns:
        A data set of at least one row.

    Raises:
        DataError: the split cannot be read; it names row and column where they are to blame.
    """
    if isinstance(source, str | Path):
        dataset = _read_file(Path(source), split=split, columns=columns)
    elif isinstance(source, Mapping) and isinstance(source.get("hub"), str):
        dataset = _read_hub(source, split=split)
    else:
        dataset = _read_memory(source, split=split, columns=columns)
    if len(dataset) == 0:
        raise DataError("there are no rows", split=split)
    if columns is None:
        return dataset
    check_columns(dataset, columns, split=split)
    return dataset.select_columns(list(dict.fromkeys(columns)))


def check_columns(dataset: Dataset, columns: Sequence[str], *, split: str) -> None:
    """Refuse a split that lacks a column.

    Raises:
        DataError: it names the column, and those that are there.
    """
    for name in columns:
        if name not in dataset.column_names:
            there = ", ".join(map(repr, dataset.column_names))
            raise DataError(
                f"there is no such column; there are: {there}", split=split, column=name
            )


def _read_file(path: Path, *, split: str, columns: Sequence[str] | None) -> Dataset:
    with suppress(RuntimeError, ValueError):  # "~stranger/x" may be a file as it is written
        path = path.expanduser()
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{str(path)!r} has not one of the endings {', '.join(_READERS)}; a hub data set is "
            'given with --hub on the command line and as {"hub": "owner/name", "config": …} in '
            "Python",
            split=split,
        )
    try:
        if not path.exists():
            raise DataError(f"there is no file {str(path)!r}", split=split)
        return reader(path, split, columns)
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error}", split=split) from error


def _read_jsonl(path: Path, split: str, columns: Sequence[str] | None) -> Dataset:
    rows = []
    with path.open("rb") as lines:
        for number, line in enumerate(_filled(lines), start=1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else "not JSON"
                raise DataError(f"{reason}: {error}", split=split, row=number) from error
            if not isinstance(row, dict):
                kind = type(row).__name__
                raise DataError(
                    f"a JSON object is needed in every line, here is a {kind}",
                    split=split,
                    row=number,
                )
            rows.append(row)
    return _from_rows(rows, split=split, columns=columns)


def _filled(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Skip blank lines and the mark that some editors put at the beginning."""
    for number, line in enumerate(lines):
        text = line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
        if text.strip():
            yield text


def _read_csv(path: Path, split: str, columns: Sequence[str] | None) -> Dataset:
    return _read_delimited(path, delimiter=",", split=split, columns=columns)


def _read_tsv(path: Path, split: str, columns: Sequence[str] | None) -> Dataset:
    return _read_delimited(path, delimiter="\t", split=split, columns=columns)


def _read_delimited(
    path: Path, *, delimiter: str, split: str, columns: Sequence[str] | None
) -> Dataset:
    _check_utf8(path, split=split)
    _check_header(path, delimiter=delimiter, split=split)
    bad: list[csv.InvalidRow] = []

    def remember(row: csv.InvalidRow) -> str:
        bad.append(row)
        return "error"

    def parse(*, texts: Sequence[str]) -> pa.Table:
        return csv.read_csv(
            path,
            read_options=csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
            parse_options=csv.ParseOptions(
                delimiter=delimiter, newlines_in_values=True, invalid_row_handler=remember
            ),
            convert_options=csv.ConvertOptions(column_types=dict.fromkeys(texts, pa.string())),
        )

    try:
        # Twice, as only a type that is asked for by the column's name is not guessed.
        table = parse(texts=parse(texts=()).column_names)
    except pa.ArrowInvalid as error:
        if bad:
            raise _ragged_row(bad[0], split=split) from error
        raise DataError(f"{path.name} cannot be parsed: {error}", split=split) from error
    table = _select(table, split=split, columns=columns)
    features = {name: cells_feature(table[name]) for name in table.column_names}
    return _to_dataset(table, split=split, features=datasets.Features(features))


def _check_utf8(path: Path, *, split: str) -> None:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"line {number} of {path.name} is not UTF-8 ({error.reason} at its byte "
                    f"{error.start + 1}): save the file as UTF-8",
                    split=split,
                ) from error


def _check_header(path: Path, *, delimiter: str, split: str) -> None:
    """Refuse a header whose fields are separated by something else."""
    with path.open(encoding="utf-8-sig") as lines:
        header = lines.readline(_HEADER_LETTERS).strip("\r\n")
    others = [sign for sign in _DELIMITERS if sign in header]
    if others and delimiter not in header:
        raise DataError(
            f"{path.name} has one column, {header!r}: fields of a {path.suffix} file are "
            f"separated by {_DELIMITERS[delimiter]}, not by {_DELIMITERS[others[0]]}",
            split=split,
        )


def _ragged_row(row: csv.InvalidRow, *, split: str) -> DataError:
    return DataError(
        f"{row.actual_columns} fields, the header has {row.expected_columns}: {row.text[:80]!r}",
        split=split,
        row=None if row.number is None else row.number - 1,  # pyarrow counts the header
    )


def _read_parquet(path: Path, split: str, columns: Sequence[str] | None) -> Dataset:
    try:
        table = parquet.ParquetFile(path).read()  # read_table reads meaning into the folder's name
    except (pa.ArrowException, ValueError) as error:
        if isinstance(error, OSError):
            raise
        raise DataError(f"{path.name} is not a sound Parquet file: {error}", split=split) from error
    table = _select(table, split=split, columns=columns)
    if _CELLS not in (table.schema.metadata or {}).items():
        return _to_dataset(table, split=split)
    cells = {
        field.name: cells_feature(table[field.name])
        for field in table.schema
        if pa.types.is_string(field.type)
    }
    features = datasets.Features.from_arrow_schema(table.schema)
    return _to_dataset(table, split=split, features=datasets.Features({**features, **cells}))


_READERS: dict[str, Callable[[Path, str, Sequence[str] | None], Dataset]] = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}


def _select(table: pa.Table, *, split: str, columns: Sequence[str] | None) -> pa.Table:
    """Keep the wanted columns; where one is missing all, so that it is reported with them."""
    _refuse_twice(table.column_names, split=split)
    names = [name for name in table.column_names if columns is None or name in columns]
    return table if columns is not None and len(names) < len(set(columns)) else table.select(names)


def _to_dataset(
    table: pa.Table, *, split: str, features: datasets.Features | None = None
) -> Dataset:
    try:
        return Dataset(
            datasets.table.InMemoryTable(table),
            info=datasets.DatasetInfo(features=features),
            fingerprint="in-memory",
        )
    except (ValueError, TypeError, KeyError, AttributeError, pa.ArrowException) as error:
        raise DataError(f"the columns cannot be understood: {error}", split=split) from error


def _refuse_twice(names: Sequence[str], *, split: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise DataError("the column occurs more than once", split=split, column=name)


def _read_hub(source: Mapping[str, Any], *, split: str) -> Dataset:
    unknown = set(source) - _HUB_KEYS
    if unknown:
        raise DataError(
            f"unknown entries {sorted(map(str, unknown))} of a hub data set; known are "
            f"{sorted(_HUB_KEYS)}",
            split=split,
        )
    wanted = source.get("split") or split
    try:
        dataset = datasets.load_dataset(
            source["hub"], source.get("config"), split=wanted, revision=source.get("revision")
        )
    except Exception as error:  # datasets runs much, and the hub's HTTP client has its own errors
        raise DataError(
            f"{source['hub']!r} (config {source.get('config')!r}, split {wanted!r}) cannot be had "
            f"from the Hugging Face hub: {error}",
            split=split,
        ) from error
    return dataset


def _read_memory(source: object, *, split: str, columns: Sequence[str] | None) -> Dataset:
    if isinstance(source, datasets.DatasetDict):
        raise DataError(f"several splits were given, {sorted(source)}; give one", split=split)
    if isinstance(source, Dataset):
        return source
    if isinstance(source, pd.DataFrame):
        _refuse_twice([str(name) for name in source.columns], split=split)
        whole = source.astype(object).where(source.notna(), None)
        source = {str(name): whole[name].tolist() for name in whole.columns}
    if isinstance(source, Mapping):
        for name, values in source.items():
            if isinstance(values, str | bytes) or not isinstance(values, Iterable):
                raise DataError("a list of values is needed", split=split, column=str(name))
        table = {name: list(values) for name, values in source.items()}
        return _from_columns(table, split=split, columns=columns)
    if isinstance(source, Sequence) and all(isinstance(row, Mapping) for row in source):
        return _from_rows(source, split=split, columns=columns)
    raise DataError(
        f"a {type(source).__name__} is no data set; give a path, a hub data set, a "
        "datasets.Dataset, a list of rows, a dict of columns or a DataFrame",
        split=split,
    )


def _from_rows(
    rows: Sequence[Mapping[str, Any]], *, split: str, columns: Sequence[str] | None
) -> Dataset:
    names = dict.fromkeys(name for row in rows for name in row)
    table = {name: [row.get(name) for row in rows] for name in names}
    return _from_columns(table, split=split, columns=columns)


def _from_columns(
    table: Mapping[Any, list[Any]], *, split: str, columns: Sequence[str] | None
) -> Dataset:
    _refuse_twice([str(name) for name in table], split=split)
    table = {str(name): values for name, values in table.items()}
    lengths = {name: len(values) for name, values in table.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"columns of different lengths: {lengths}", split=split)
    kept = table
    if columns is not None and set(columns) <= set(table):  # one that is missing is reported later
        kept = {name: table[name] for name in columns}
    try:
        return Dataset.from_dict(dict(kept))
    except _UNFIT as error:
        for name, values in kept.items():
            _check_column(values, split=split, column=name)
        raise DataError(f"the columns cannot be understood: {error}", split=split) from error


def _check_column(values: list[Any], *, split: str, column: str) -> None:
    """Refuse a column that cannot be stored, naming the first row that does not fit."""
    if _fits(values):
        return
    low, high = 0, len(values)  # the first `low` values fit, the first `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _fits(values[:middle]) else (low, middle)
    value = values[high - 1]
    reason = "does not fit the rows above it" if high > 1 else "cannot be stored in a column"
    raise DataError(
        f"{_shorten(value)} ({type(value).__name__}) {reason}",
        split=split,
        row=high,
        column=column,
    )


def _fits(values: list[Any]) -> bool:
    try:
        Dataset.from_dict({"column": values})
    except _UNFIT:
        return False
    return True


def _shorten(value: object) -> str:
    text = ascii(value)  # what cannot be stored may not be printable either
    return text if len(text) <= 60 else text[:57] + "..."
