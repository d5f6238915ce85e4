"""The child's work: read, check and write each split as Parquet, batch by batch."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import parquet

from hifi.data.formats.limits import Budget
from hifi.data.formats.reader import Reader, find_lines, open_reader
from hifi.data.profile import no_rows
from hifi.data.profiling import (
    Columns,
    add_lines,
    check_splits,
    make_profile,
    rows_with_problems,
)
from hifi.data.scan import scan_beside_texts, scan_columns, unfit_scans
from hifi.data.spec import SPLITS
from hifi.data.types import cast_to
from hifi.errors import DataError, in_split
from service.datasets.checking.exchange import Request, needs_memory, parquet_name

if TYPE_CHECKING:
    from hifi.data.profile import DatasetProfile

_TOO_MUCH = "the unpacked file exceeds the size limit of an upload"


def use_one_thread() -> None:
    """Limit pyarrow to one thread: each further one takes memory."""
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)


def convert_all(request: Request, *, send: Callable[[dict[str, Any]], None]) -> DatasetProfile:
    """Convert all splits; send a message with each split's name before it is opened.

    Raises:
        DataError: a file cannot be used.
    """
    budget = Budget(request.limits, scratch=Path(request.folder))
    scans: dict[str, Columns] = {}
    rows: dict[str, int] = {}
    left_out: dict[str, int] = {}
    for split in (name for name in SPLITS if name in request.files):
        send({"kind": "split", "split": split})
        with in_split(split):
            scans[split], rows[split], left_out[split] = _convert(request, split, budget)
    check_splits(scans)
    return _with_lines(make_profile(scans, rows=rows, left_out=left_out), request)


def _with_lines(profile: DatasetProfile, request: Request) -> DatasetProfile:
    """Add the lines of the rows that a profile names, because only the rows are stored."""
    lines = {
        split: find_lines(Path(path), ending=ending, rows=rows_with_problems(profile, split=split))
        for split, (path, ending) in request.files.items()
    }
    return add_lines(profile, lines)


def _convert(request: Request, split: str, budget: Budget) -> tuple[Columns, int, int]:
    """Convert one split; return the scans of its columns, its rows, and those left out."""
    path, ending = request.files[split]
    try:
        reader = open_reader(Path(path), ending=ending, budget=budget)
        return _write(reader, Path(request.folder, parquet_name(split)), split, budget=budget)
    except DataError as error:
        if error.row is not None:
            error.line = find_lines(Path(path), ending=ending, rows={error.row}).get(error.row)
        raise
    except MemoryError as error:
        raise DataError(f"the file {needs_memory(request.limits)}") from error
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise DataError(_TOO_MUCH) from error
        raise


def _with_schema(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    pairs = zip(batch.columns, schema, strict=True)
    return pa.record_batch([cast_to(array, field.type) for array, field in pairs], schema=schema)


def _write(reader: Reader, target: Path, split: str, *, budget: Budget) -> tuple[Columns, int, int]:
    scans = scan_columns(
        reader.schema, cells=reader.cells, class_names=reader.class_names, index=reader.index
    )
    schema = reader.schema.with_metadata(dict(reader.metadata))
    rows = 0
    with parquet.ParquetWriter(
        target,
        schema,
        compression="zstd",
        use_dictionary=[field.name for field in reader.schema if pa.types.is_string(field.type)],
        write_statistics=False,  # they would contain values of the data
    ) as writer:
        for batch in reader.batches():
            budget.add(size=batch.nbytes)
            arrays = dict(zip(scans, batch.columns, strict=True))
            for name, scan in scans.items():
                scan.add(arrays[name], rows + 1)
            scan_beside_texts(scans, arrays, first_row=rows + 1)
            writer.write_batch(_with_schema(batch, schema))
            rows += batch.num_rows
    if rows == 0:
        raise DataError(no_rows(reader.left_out, split=split))
    return scans | unfit_scans(reader.unfit), rows, reader.left_out
