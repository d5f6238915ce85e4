"""Read Parquet without trusting the file: what it declares is checked against its bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from hifi.data.formats.checks import (
    check_texts,
    first_too_long,
    unnamed_columns,
    wanted_names,
)
from hifi.data.formats.indexes import index_columns, index_metadata
from hifi.data.formats.limits import too_large_row, too_many_characters
from hifi.data.formats.reader import Reader, Unfit
from hifi.data.types import (
    CELLS,
    UnfitError,
    cast_to,
    count_leaves,
    is_bytes,
    is_image,
    is_list,
    is_text,
    kept_type,
)
from hifi.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hifi.data.formats.limits import Budget

_FEATURES_KEY = b"huggingface"
_LIST_FEATURES = ("List", "Sequence")  # by newer and by older versions of ``datasets``
_MAGIC, _ENCRYPTED = b"PAR1", b"PARE"
_TRAILER_BYTES = 8
_FOOTER_BYTES = 32 << 20
_FOOTER_ENTRIES = 4_000_000
_BUFFER_BYTES = 1 << 20
_BATCH_BYTES, _BATCH_ROWS = 8 << 20, 16_384
_CLASS_CHARACTERS = 1 << 20  # of all classes of a column


class ParquetReader(Reader):
    """One split of a Parquet file.

    Dictionary-encoded texts and bytes stay dictionaries until they are counted, so that a value in
    a million rows is stored once.
    """

    def __init__(
        self, path: Path, *, budget: Budget, columns: Collection[str] | None = None
    ) -> None:
        self._budget = budget
        self._rows = 0
        self._are_requested = columns is not None
        _check_footer(path)
        most = budget.limits.max_columns
        try:
            self._file = _open(path)
            declared = self._file.schema_arrow
            _check_declared(self._file.metadata, budget)
        except _UNSOUND as error:
            raise _unsound(error) from error
        wanted = wanted_names(declared.names, columns, most=most)
        kept = {name: _kept(declared.field(name)) for name in wanted}
        unfit = {name: kind for name, kind in kept.items() if isinstance(kind, Unfit)}
        if unfit and (columns is not None or len(unfit) == len(kept)):
            name, found = next(iter(unfit.items()))
            raise found.error(name)
        self.unfit = unfit | (unnamed_columns(declared.names) if columns is None else {})
        self._names = [name for name in wanted if name not in unfit]
        self.schema = pa.schema([(name, kept[name]) for name in self._names])
        leaves = sum(count_leaves(field.type) for field in self.schema)
        if leaves > most:
            raise DataError(f"{leaves} columns and entries; at most {most} are allowed")
        metadata = declared.metadata or {}
        self.index = index_columns(self._names, metadata=metadata)
        are_cells = CELLS.items() <= metadata.items()
        texts = [field.name for field in self.schema if pa.types.is_string(field.type)]
        self.cells = frozenset(texts if are_cells else ())
        features = _kept_features(metadata.get(_FEATURES_KEY), self.schema)
        entries = {column: each.get("feature", each) for column, each in features.items()}
        self.class_names = {
            column: tuple(entry["names"]) for column, entry in entries.items() if "names" in entry
        }
        self.metadata = index_metadata(self.index)
        if self.cells:
            self.metadata |= CELLS
        elif features:
            own = json.dumps({"info": {"features": features}}).encode()
            self.metadata |= {_FEATURES_KEY: own}

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Read all rows once."""
        try:
            for batch in self._file.iter_batches(
                self._batch_rows(), columns=self._leaves(), use_threads=False
            ):
                coded = batch.select(self._names)
                self._check_texts(coded)
                for piece in _cut(coded):
                    yield self._plain(piece)
        except _UNSOUND as error:
            raise _unsound(error, row=self._rows + 1) from error
        declared = self._file.metadata.num_rows
        if self._rows != declared:
            raise DataError(f"the file declares {declared} rows and holds {self._rows}")

    def _leaves(self) -> list[str]:
        """Return the paths of the requested columns and their entries."""
        paths = [column.path for column in _leaf_columns(self._file)]
        wanted = set(self._names)
        starts = tuple(f"{name}." for name in self._names)
        return [path for path in paths if path in wanted or path.startswith(starts)]

    def _batch_rows(self) -> int:
        """Return the number of rows to read at once, from their declared size."""
        metadata = self._file.metadata
        groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
        sizes = [group.total_byte_size / max(1, group.num_rows) for group in groups]
        return int(min(_BATCH_ROWS, max(1, _BATCH_BYTES // max([1, *sizes]))))

    def _check_texts(self, batch: pa.RecordBatch) -> None:
        """Refuse rows of huge texts before a dictionary of them is unpacked.

        A text of a requested column is one that a task reads.
        """
        sizes = np.zeros(batch.num_rows, dtype=np.int64)
        for field, array in zip(self.schema, batch.columns, strict=True):
            if self._are_requested and is_text(field.type):
                found = first_too_long(array, first_row=self._rows + 1)
                if found is not None:
                    row, characters = found
                    reason = too_many_characters(characters)
                    raise DataError(reason, row=row, column=field.name)
            if not is_image(field.type):
                sizes += _row_sizes(array, counts=is_text)
        most = self._budget.limits.max_row_bytes
        if sizes.max(initial=0) > most:
            row = self._rows + 1 + int((sizes > most).argmax())
            raise DataError(f"{too_large_row(most)} of texts", row=row)

    def _plain(self, piece: pa.RecordBatch) -> pa.RecordBatch:
        self._budget.add(rows=piece.num_rows)
        arrays = []
        for field, array in zip(self.schema, piece.columns, strict=True):
            plain = cast_to(array, field.type)
            _check_content(plain, first_row=self._rows + 1, column=field.name)
            check_texts(plain, first_row=self._rows + 1, column=field.name)
            arrays.append(plain)
        self._rows += piece.num_rows
        return pa.record_batch(arrays, schema=self.schema)


# Raised by pyarrow for a damaged file; callers handle memory errors.
_UNSOUND = (
    pa.ArrowInvalid,
    pa.ArrowTypeError,
    pa.ArrowNotImplementedError,
    pa.ArrowKeyError,
    pa.ArrowIndexError,
    pa.ArrowSerializationError,
    OSError,
    OverflowError,
    UnicodeDecodeError,
)


def _unsound(error: BaseException, *, row: int | None = None) -> DataError:
    reason = "the Parquet file is damaged or truncated"
    if isinstance(error, pa.ArrowNotImplementedError):
        reason = "the Parquet file uses an encoding, compression or type that is not supported"
    return DataError(reason, row=row)


def _check_content(array: pa.Array, *, first_row: int, column: str) -> None:
    """Refuse texts that are not UTF-8, which pyarrow does not check while reading."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid as error:
        for index in range(len(array)):
            try:
                pa.concat_arrays([array.slice(index, 1)]).validate(full=True)
            except pa.ArrowInvalid:
                row = first_row + index
                raise DataError("the text is not UTF-8", row=row, column=column) from error
        raise


def _check_footer(path: Path) -> None:
    """Check the start and the end of a file before it is parsed."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(len(_MAGIC))
        file.seek(max(0, size - _TRAILER_BYTES))
        trailer = file.read()
    if size == 0:
        raise DataError("the file is empty")
    if trailer[4:] == _ENCRYPTED:
        raise DataError("the Parquet file is encrypted; decrypt it first")
    length = int.from_bytes(trailer[:4], "little")
    if head != _MAGIC or trailer[4:] != _MAGIC or length > size - _TRAILER_BYTES - len(_MAGIC):
        raise DataError("this is not a Parquet file, or it is truncated")
    if length > _FOOTER_BYTES:
        raise DataError(
            f"the Parquet file's footer has {length} bytes; at most {_FOOTER_BYTES} are allowed"
        )


def _open(path: Path) -> parquet.ParquetFile:
    """Open a file for reading in batches, with texts and bytes as dictionaries."""
    options: dict[str, Any] = {
        "buffer_size": _BUFFER_BYTES,
        "pre_buffer": False,
        "thrift_string_size_limit": _FOOTER_BYTES,
        "thrift_container_size_limit": _FOOTER_ENTRIES,
    }
    plain = parquet.ParquetFile(path, **options)
    coded = [
        column.path
        for column in _leaf_columns(plain)
        if column.physical_type == "BYTE_ARRAY" and column.logical_type.type != "DECIMAL"
    ]
    return parquet.ParquetFile(path, read_dictionary=coded, **options)


def _leaf_columns(file: parquet.ParquetFile) -> list[parquet.ColumnSchema]:
    """Return a file's columns, with the entries of nested columns one by one."""
    return [file.schema.column(index) for index in range(len(file.schema))]


def _check_declared(metadata: parquet.FileMetaData, budget: Budget) -> None:
    """Refuse a file whose declared size is too large or inconsistent."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    if metadata.num_rows < 0 or sum(group.num_rows for group in groups) != metadata.num_rows:
        raise DataError("the Parquet file's rows do not add up: it is damaged")
    size = sum(max(0, group.total_byte_size) for group in groups)
    budget.fork().add(rows=metadata.num_rows, size=size)


def _kept(field: pa.Field) -> pa.DataType | Unfit:
    try:
        return kept_type(field.type)
    except UnfitError as error:
        return Unfit(type=field.type, row=None, reason=str(error))


def _cut(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Split a batch into parts that are small when decompressed; a row is never split."""
    sizes = np.zeros(batch.num_rows, dtype=np.int64)
    for array in batch.columns:
        sizes += _row_sizes(array)
    ends = np.cumsum(sizes)
    start = 0
    while start < batch.num_rows:
        before = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + _BATCH_BYTES, side="right")))
        yield batch.slice(start, end - start)
        start = end


def _any(_: pa.DataType) -> bool:
    return True


def _row_sizes(
    array: pa.Array, *, counts: Callable[[pa.DataType], bool] = _any
) -> NDArray[np.int64]:
    """Return the decompressed bytes of every row, ``[rows]``; a dictionary is not unpacked.

    Args:
        array: a column, or entries of one.
        counts: whether values of a type that is not nested are counted.
    """
    kind = array.type
    if pa.types.is_dictionary(kind) and counts(kind.value_type):
        sizes = pc.take(_row_lengths(array.dictionary), array.indices)
        return np.asarray(pc.fill_null(sizes, 0).to_numpy(zero_copy_only=False), dtype=np.int64)
    if pa.types.is_struct(kind):
        total = np.zeros(len(array), dtype=np.int64)
        for entries in array.flatten():
            total += _row_sizes(entries, counts=counts)
        return total
    if is_list(kind):
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        inner = _row_sizes(array.flatten(), counts=counts)
        ends = np.concatenate([[0], np.cumsum(inner)])
        edges = np.concatenate([[0], np.cumsum(lengths)])
        return np.asarray(ends[edges[1:]] - ends[edges[:-1]], dtype=np.int64)
    if not counts(kind):
        return np.zeros(len(array), dtype=np.int64)
    return np.asarray(_row_lengths(array).to_numpy(zero_copy_only=False), dtype=np.int64)


def _row_lengths(values: pa.Array) -> pa.Array:
    if is_text(values.type) or is_bytes(values.type):
        return pc.fill_null(pc.binary_length(values.cast(pa.large_binary())), 0)
    return pa.array(np.full(len(values), 8, dtype=np.int64))


def _kept_features(features: bytes | None, schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Return the features of class labels and images from the metadata that ``datasets`` wrote.

    Class labels may be in lists.
    """
    found: dict[str, dict[str, Any]] = {}
    for column, feature in _features(features).items():
        place = schema.get_field_index(column)
        if place < 0 or not isinstance(feature, dict):
            continue
        kind = schema.field(place).type
        if feature.get("_type") == "Image" and pa.types.is_struct(kind):
            found[column] = {"_type": "Image"}
        elif kind == pa.int64():
            found |= _named(column, feature)
        elif kind == pa.list_(pa.int64()) and feature.get("_type") in _LIST_FEATURES:
            entry = _named(column, feature.get("feature"))
            found |= {name: {"feature": each, "_type": "List"} for name, each in entry.items()}
    return found


def _named(column: str, feature: object) -> dict[str, dict[str, Any]]:
    """Return the feature of a class label by its column; nothing if it is another feature."""
    if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel":
        return {}
    names = feature.get("names")
    if not isinstance(names, list) or not names:
        return {}
    return {column: {"names": _check_classes(names, column), "_type": "ClassLabel"}}


def _check_classes(names: list[Any], column: str) -> list[str]:
    if not all(isinstance(name, str) and name.strip() and "\0" not in name for name in names):
        raise DataError("the class names are not all texts", column=column)
    if len(set(names)) < len(names):
        raise DataError("the class names are not unique", column=column)
    if sum(map(len, names)) > _CLASS_CHARACTERS:
        raise DataError("the class names are too long", column=column)
    return names


def _features(features: bytes | None) -> Mapping[str, Any]:
    try:
        found = json.loads(features or b"{}")["info"]["features"]
    except (ValueError, RecursionError, TypeError, KeyError):
        return {}
    return found if isinstance(found, dict) else {}
