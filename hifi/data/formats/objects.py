"""Make columns of JSON objects in constant memory: once to infer their types, once for the rows."""

from __future__ import annotations

import tempfile
from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from hifi.data.formats.checks import (
    check_names,
    check_texts,
    first_misfit,
    unnamed_columns,
    wanted_names,
)
from hifi.data.formats.indexes import index_columns
from hifi.data.formats.json_text import word_for
from hifi.data.formats.labelling_tools import Convert, Row, find_conversion
from hifi.data.formats.limits import UNLIMITED
from hifi.data.formats.reader import Reader, Unfit
from hifi.data.types import (
    UnfitError,
    cast_to,
    count_leaves,
    first_true,
    kept_type,
    merged_type,
    type_name,
)
from hifi.errors import DataError, quoted

if TYPE_CHECKING:
    from hifi.data.formats.json_text import Entry
    from hifi.data.formats.limits import Budget

_BATCH_BYTES, _BATCH_ROWS = 2 << 20, 16_384
_SEEN_OBJECTS, _SEEN_BYTES = 1000, 1 << 20  # that show which tool has written a file
# Raised by pyarrow for values that do not fit into a column.
_UNFIT = (pa.ArrowException, UnfitError, ValueError, TypeError, OverflowError)
_ROUNDED = (
    "the column has fractions and whole numbers beyond 2**53, which a floating-point number would "
    "round"
)
_TYPES = {int: pa.int64(), dict: pa.struct([])}  # of values that do not fit into any column


class ObjectReader(Reader):
    """One split of JSON objects, in a file of any layout.

    A labelling tool's objects are converted to rows, and some of them left out. Integers become
    floating-point numbers if others in their column are; a missing key is null. A column with a
    value that does not fit the rows above is no longer read from there on.
    """

    def __init__(
        self, path: Path, *, budget: Budget, columns: Collection[str] | None = None
    ) -> None:
        self._types: dict[str, pa.DataType] = {}
        self._unfit: dict[str, Unfit] = {}
        self._budget = budget
        self._scanned = budget.fork()
        self._columns = columns
        self._names: dict[str, None] = {}  # of all columns, requested or not
        self._rows = 0
        self._counts: list[int] = []
        # It has no name, so it is deleted when it is closed or the process ends.
        self._spool: IO[bytes] = tempfile.TemporaryFile(dir=budget.scratch)  # noqa: SIM115
        try:
            self.schema = self._read_schema(path)
        except BaseException:
            self._spool.close()
            raise

    def _read_schema(self, path: Path) -> pa.Schema:
        for rows in self._batches_of_rows(path):
            self._budget.add(rows=len(rows))
            batch = self._to_batch(rows)
            with pa.ipc.new_stream(self._spool, batch.schema) as stream:
                stream.write_batch(batch)
            self._rows += len(rows)
            self._counts.append(len(rows))
        names = list(self._names)
        if self._rows:
            if self._unfit and not self._types:
                name, found = next(iter(self._unfit.items()))
                raise found.error(name)
            wanted = wanted_names(names, self._columns, most=self._budget.limits.max_columns)
            names = [name for name in wanted if name not in self._unfit]
        unnamed = unnamed_columns(list(self._names)) if self._columns is None else {}
        self.unfit = self._unfit | unnamed
        self.index = index_columns(names)
        return pa.schema([(name, kept_type(self._types[name])) for name in names])

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Read all rows once, in the types of the whole column."""
        first_row = 1
        self._spool.seek(0)
        with self._spool:
            for count in self._counts:
                with pa.ipc.open_stream(self._spool) as stream:
                    for batch in stream:
                        yield self._fit(batch, first_row, count)
                first_row += count

    @classmethod
    @abstractmethod
    def read(cls, path: Path, *, most: int) -> Iterator[Entry]:
        """Yield the objects of a file, before a labelling tool's are converted.

        Args:
            path: the file.
            most: the bytes of an object, at most.

        Raises:
            DataError: the next object cannot be used; the error has its line and not its row. One
                without a line is about the whole file.
        """

    @classmethod
    def entries(cls, path: Path, *, most: int) -> Iterator[Entry]:
        """Yield the objects of a file as :meth:`read` does; errors have the row too.

        Raises:
            DataError: the next object cannot be used; its row counts all objects before it.
        """
        number = 0
        try:
            for number, entry in enumerate(cls.read(path, most=most), start=1):  # noqa: B007
                yield entry
        except DataError as error:
            if error.line is not None:
                error.row = number + 1
            raise

    @classmethod
    def row_lines(cls, path: Path) -> Iterator[int]:
        """Yield the line of each row."""
        convert = cls._find_conversion(path)
        try:
            for entry in cls.read(path, most=UNLIMITED.max_row_bytes):
                if convert is None or convert(entry.values) is not None:
                    yield entry.line
        except DataError as error:
            if error.line is not None:
                yield error.line

    @classmethod
    def _find_conversion(cls, path: Path) -> Convert | None:
        """Return the conversion of a labelling tool's rows; None for other rows."""

        def read() -> Iterator[Row]:
            with suppress(DataError):  # reported when the row is read
                for entry in islice(cls.read(path, most=_SEEN_BYTES), _SEEN_OBJECTS):
                    yield entry.values

        return find_conversion(read())

    def _fit(self, batch: pa.RecordBatch, first_row: int, count: int) -> pa.RecordBatch:
        arrays = []
        for field in self.schema:
            place = batch.schema.get_field_index(field.name)
            if place < 0:
                arrays.append(pa.nulls(count, field.type))
                continue
            try:
                arrays.append(cast_to(batch.column(place), field.type))
            except pa.ArrowInvalid:
                _refuse_large_integer(batch.column(place), field, first_row)
        return pa.record_batch(arrays, schema=self.schema)

    def _batches_of_rows(self, path: Path) -> Iterator[list[Row]]:
        rows: list[Row] = []
        size = 0
        convert = self._find_conversion(path)
        try:
            for entry in self.entries(path, most=self._budget.limits.max_row_bytes):
                kept = entry.values if convert is None else convert(entry.values)
                if kept is None:
                    self.left_out += 1
                    continue
                rows.append(kept)
                size += entry.size
                if size >= _BATCH_BYTES or len(rows) >= _BATCH_ROWS:
                    yield rows
                    rows, size = [], 0
        except DataError as error:
            if error.row is not None:
                error.row -= self.left_out
            raise
        if rows:
            yield rows

    def _to_batch(self, rows: list[Row]) -> pa.RecordBatch:
        """Convert rows to columns, and update the columns' types."""
        found = dict.fromkeys(name for row in rows for name in row)
        self._names.update(found)
        names = [name for name in found if self._is_read(name)]
        for name in names:
            if name not in self._types:
                self._add_column(name, rows)
        arrays = {}
        for name in names:
            values = [row.get(name) for row in rows]
            array = self._column(name, values)
            if isinstance(array, Unfit):
                if self._columns is not None:
                    raise array.error(name)
                self._unfit[name] = array
                del self._types[name]
                continue
            check_texts(array, first_row=self._rows + 1, column=name)
            self._check_numbers(array, name)
            self._scanned.add(size=array.nbytes)
            arrays[name] = array
        self._check_width(rows)
        return pa.record_batch(list(arrays.values()), names=list(arrays))

    def _is_read(self, name: str) -> bool:
        if self._columns is not None:
            return name in self._columns
        return bool(name.strip()) and name not in self._unfit

    def _add_column(self, name: str, rows: list[Row]) -> None:
        """Check the name of a new column and add it."""
        try:
            check_names([*self._types, name], most=self._budget.limits.max_columns)
        except DataError as error:
            place = next(index for index, row in enumerate(rows) if name in row)
            error.row = self._rows + 1 + place
            raise
        self._types[name] = pa.null()

    def _check_width(self, rows: list[Row]) -> None:
        leaves = sum(map(count_leaves, self._types.values()))
        most = self._budget.limits.max_columns
        if leaves > most:
            raise DataError(
                f"the objects in this row or in one of the {len(rows)} after it bring the columns "
                f"and their entries to {leaves}; at most {most} are allowed",
                row=self._rows + 1,
            )

    def _column(self, name: str, values: list[Any]) -> pa.Array | Unfit:
        """Convert values to an array, and update the column's type."""
        known = self._types[name]
        try:
            array = pa.array(values)
            merged = merged_type(known, array.type)
            kept_type(merged)
        except _UNFIT as error:
            place = first_misfit(values, fit=lambda some: _fits(some, known))
            above = merged_type(known, pa.array(values[:place]).type)
            value, row = values[place], self._rows + 1 + place
            if isinstance(error, UnicodeEncodeError):
                raise DataError(_why(value, above), row=row, column=name) from error
            return Unfit(type=_shown_type(value, above), row=row, reason=_why(value, above))
        self._types[name] = merged
        return array

    def _check_numbers(self, array: pa.Array, name: str) -> None:
        """Refuse numbers that json parses as infinite: 1e999."""
        if not pa.types.is_floating(array.type):
            return
        row = first_true(pc.is_inf(array), start=self._rows + 1)
        if row is not None:
            reason = "the number does not fit in a 64-bit float"
            raise DataError(reason, row=row, column=name)


def _fits(values: Sequence[Any], known: pa.DataType) -> bool:
    try:
        kept_type(merged_type(known, pa.array(values).type))
    except _UNFIT:
        return False
    return True


def _why(value: object, above: pa.DataType) -> str:
    """Return why a value does not fit into a column, or not with the rows above it."""
    if not _fits([value], pa.null()):
        return _why_alone(value)
    if type(value) in (int, float) and above in (pa.int64(), pa.float64()):
        return _ROUNDED
    word = word_for(value)
    if isinstance(value, list | dict):
        return f"{word} does not fit the rows above, which hold {type_name(above)}"
    return f"{quoted(value)} is {word}, the rows above hold {type_name(above)}"


def _shown_type(value: object, above: pa.DataType) -> pa.DataType:
    """Return the type of the rows above a value; without any that of the value itself."""
    if not pa.types.is_null(above):
        return above
    try:
        return pa.array([value]).type
    except _UNFIT:
        return _TYPES.get(type(value), pa.list_(pa.null()))


def _why_alone(value: object) -> str:
    """Return why a value does not fit into any column."""
    try:
        kept_type(pa.array([value]).type)
    except UnfitError as error:
        return str(error)
    except OverflowError:
        return f"{quoted(value)} does not fit in a 64-bit integer"
    except UnicodeEncodeError:
        return f"{quoted(value)} holds half a surrogate pair, which is not valid text"
    except _UNFIT:
        pass
    return f"{quoted(value)} mixes types, which no column can hold"


def _refuse_large_integer(array: pa.Array, field: pa.Field, first_row: int) -> NoReturn:
    for index in range(len(array)):
        try:
            array.slice(index, 1).cast(field.type)
        except pa.ArrowInvalid as error:
            raise DataError(_ROUNDED, row=first_row + index, column=field.name) from error
    raise DataError(_ROUNDED, column=field.name)
