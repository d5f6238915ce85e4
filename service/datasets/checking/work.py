"""The child's work: every split read, looked at and written as Parquet, batch by batch."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from pyarrow import parquet

from hifi.data.budget import Budget
from hifi.data.delimited import DelimitedReader
from hifi.data.jsonl import JsonlReader
from hifi.data.parquet import ParquetReader
from hifi.data.profiling import Columns, check_splits, make_profile
from hifi.data.seen import see
from service.datasets.checking.exchange import SPLITS, Refusal, Request, parquet_name

_MOST_DISTINCT, _ALL_DISTINCT = 10_000, 200_000  # of a column, and of all columns of a split
_TOO_LARGE = "the file needs more memory than an upload may use: a row or a page of it is huge"
_TOO_MUCH = "unpacked, the file is larger than an upload may be"


class Reader(Protocol):
    """One split, whatever its format.

    Attributes:
        schema: plain types, known before the first batch.
        cells: columns of a delimited file, whose texts may be anything.
        class_names: of columns that name their classes.
        metadata: what the Parquet file is to say of its columns.
    """

    schema: pa.Schema
    cells: frozenset[str]
    class_names: Mapping[str, tuple[str, ...]]
    metadata: Mapping[bytes, bytes]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Give all rows, a few at a time."""


def use_one_thread() -> None:
    """Keep pyarrow from using the machine's other cores, and memory for each."""
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)


def convert_all(request: Request, *, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Convert all splits.

    Args:
        request: what to convert.
        tell: told of each split before it is opened.

    Returns:
        The last message: rows, columns and profile.

    Raises:
        Refusal: a file cannot be used.
    """
    budget = Budget(request.limits)
    seen: dict[str, Columns] = {}
    rows: dict[str, int] = {}
    for split in (name for name in SPLITS if name in request.files):
        tell({"kind": "split", "split": split})
        try:
            seen[split], rows[split] = _convert(request, split, budget)
        except Refusal as refusal:
            refusal.split = split
            raise
        except MemoryError as error:
            raise Refusal(_TOO_LARGE, split=split) from error
        except OSError as error:
            if error.errno == errno.EFBIG:
                raise Refusal(_TOO_MUCH, split=split) from error
            raise
    check_splits(seen)
    profile = make_profile(seen, rows=rows)
    return {
        "kind": "done",
        "rows": rows,
        "columns": {column.name: column.type for column in profile.columns},
        "profile": profile.to_json(),
    }


def _convert(request: Request, split: str, budget: Budget) -> tuple[Columns, int]:
    """Convert one split; give what was seen of its columns, and its rows."""
    folder = Path(request.folder)
    path, ending = request.files[split]
    reader = _open(Path(path), ending, budget=budget, spool=folder / f"{split}.spool")
    names = reader.schema.names
    columns = see(
        reader.schema,
        cell_columns=reader.cells,
        class_names=dict(reader.class_names),
        most_distinct=max(100, min(_MOST_DISTINCT, _ALL_DISTINCT // max(1, len(names)))),
    )
    schema = reader.schema.with_metadata(dict(reader.metadata))
    rows = 0
    with parquet.ParquetWriter(
        folder / parquet_name(split),
        schema,
        compression="zstd",
        use_dictionary=[field.name for field in reader.schema if pa.types.is_string(field.type)],
        write_statistics=False,  # they would hold values of the data
    ) as writer:
        for batch in reader.batches():
            budget.add_bytes(batch.nbytes)
            for seen, array in zip(columns, batch.columns, strict=True):
                seen.add(array, rows + 1)
            writer.write_batch(batch.cast(schema))
            rows += batch.num_rows
    if rows == 0:
        raise Refusal("there are no rows")
    return dict(zip(names, columns, strict=True)), rows


def _open(path: Path, ending: str, *, budget: Budget, spool: Path) -> Reader:
    if ending == ".jsonl":
        return JsonlReader(path, budget=budget, spool=spool)
    if ending == ".parquet":
        return ParquetReader(path, budget=budget)
    return DelimitedReader(path, delimiter="\t" if ending == ".tsv" else ",", budget=budget)
