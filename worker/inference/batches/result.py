"""Write answers: a part, as it is stored while the prediction runs, and the result at the end."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import parquet

from hifi.data.answered_rows import answer_cells, answer_entries, arrow_fields, to_json
from hifi.data.task_types import find_task_type

if TYPE_CHECKING:
    from pathlib import Path

    from hifi.data.task_types import AnswerField
    from store.predictions.spec import PredictingJob, PredictionSpec
    from worker.inference.predictions import Answer

Answers = list["Answer"]  # of one row, one per job


def write_part(path: Path, rows: Sequence[Answers]) -> None:
    """Write the answers to some rows, one row per line; equal answers give equal bytes."""
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as file:
        for answers in rows:
            file.write(json.dumps(answers).encode() + b"\n")


def read_parts(paths: Sequence[Path]) -> Iterator[Answers]:
    """Yield the answers of all parts, row by row."""
    for path in paths:
        with gzip.open(path, "rb") as file:
            yield from map(json.loads, file)


def write_result(
    path: Path, *, source: Path, answers: Iterator[Answers], spec: PredictionSpec
) -> None:
    """Write every row of the source with its answers beside it.

    The columns of an answer are ``predicted_label``, … and ``predicted_error``; with several jobs,
    each name ends with a dot and the job's id.

    Args:
        path: of the new file.
        source: the rows, a Parquet file.
        answers: to all rows, in order.
        spec: has the format and the jobs.

    Raises:
        ValueError: there are fewer or more answers than rows.
    """
    endings = [f".{job.id}" if len(spec.jobs) > 1 else "" for job in spec.jobs]
    if spec.format == "parquet":
        _write_parquet(path, source, answers, spec.jobs, endings)
    else:
        _write_json(path, source, answers, endings)
    if next(answers, None) is not None:
        raise ValueError("there are more answers than rows")


def _write_json(
    path: Path, source: Path, answers: Iterator[Answers], endings: Sequence[str]
) -> None:
    with parquet.ParquetFile(source) as file, path.open("w", encoding="utf-8") as out:
        for batch in file.iter_batches(batch_size=256):
            found = list(islice(answers, batch.num_rows))
            for row, own in zip(batch.to_pylist(), found, strict=True):
                whole = dict(row)
                for answer, ending in zip(own, endings, strict=True):
                    whole |= answer_entries(answer, ending=ending)
                out.write(to_json(_plain(whole)) + "\n")


def _write_parquet(
    path: Path,
    source: Path,
    answers: Iterator[Answers],
    jobs: Sequence[PredictingJob],
    endings: Sequence[str],
) -> None:
    kinds: list[Sequence[AnswerField]] = [find_task_type(job.type).answer.fields for job in jobs]
    added = [
        field
        for fields, ending in zip(kinds, endings, strict=True)
        for field in arrow_fields(fields, ending=ending)
    ]
    with ExitStack() as stack:
        file = stack.enter_context(parquet.ParquetFile(source))
        schema = pa.schema([*file.schema_arrow, *added])
        writer = stack.enter_context(parquet.ParquetWriter(path, schema))
        for batch in file.iter_batches(batch_size=_rows_at_once(file.metadata)):
            cells = [
                [
                    cell
                    for fields, answer in zip(kinds, own, strict=True)
                    for cell in answer_cells(fields, answer)
                ]
                for own in islice(answers, batch.num_rows)
            ]
            arrays = [
                pa.array(values, field.type)
                for values, field in zip(zip(*cells, strict=True), added, strict=True)
            ]
            writer.write_batch(pa.record_batch([*batch.columns, *arrays], schema=schema))


def _rows_at_once(metadata: parquet.FileMetaData) -> int:
    """Return how many rows take about 32 MiB; images are large."""
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    size: int = sum(group.total_byte_size for group in groups)
    rows: int = metadata.num_rows
    return min(1 << 13, max(1, (32 << 20) * rows // max(1, size)))


def _plain(value: Any) -> Any:  # noqa: ANN401 - a cell of any type
    """Return a cell as JSON has it: bytes in Base64, times in ISO 8601, NaN as null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    for kind, convert in _CONVERTED.items():
        if isinstance(value, kind):
            return convert(value)
    return value


_CONVERTED: dict[type, Callable[[Any], Any]] = {
    bytes: lambda value: base64.b64encode(value).decode(),
    datetime: datetime.isoformat,
    date: date.isoformat,
    time: time.isoformat,
    timedelta: timedelta.total_seconds,
    Decimal: str,
    str: lambda value: value.encode(errors="backslashreplace").decode(),
}
