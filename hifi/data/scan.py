"""Scan the columns of one split for the first row of each problem that a task may have."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hifi.data.answers import read_answers
from hifi.data.cells import MOST_FLOAT32, Appearance
from hifi.data.formats.checks import first_too_long
from hifi.data.list_scan import ListScan
from hifi.data.profile import Kind, Problem, first_problem, misfit
from hifi.data.spans import read_spans
from hifi.data.types import (
    are_answers,
    are_blank,
    are_spans,
    first_true,
    is_image,
    is_list,
    is_text,
    type_name,
)
from hifi.errors import quoted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hifi.data.formats.reader import Unfit
    from hifi.data.task_types import Use

Value = str | int | float | bool

NO_BYTES = "the image has no bytes (paths are not followed)"
NO_IMAGE = "these bytes are not an image of a known format"
_LABEL_BYTES = 1024  # longer texts are not classes
_DISTINCT_BYTES = 1 << 20
_MOST_DISTINCT, _ALL_DISTINCT = 10_000, 200_000  # of a column, and of all columns of a split
# First bytes of the common image formats; others are opened with Pillow.
_HEADS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*")
_HEAD_BYTES = 12
_MOST_TEXTS = 8  # columns beside which spans are checked
_CLASS_TYPES = (is_text, pa.types.is_integer, pa.types.is_boolean, pa.types.is_floating)


def _is_entry(kind: pa.DataType) -> bool:
    """Return whether lists of a type can be lists of labels; a column of empty lists has null."""
    return is_text(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)


_BY_LOOKS: dict[str, Kind] = {
    "null": "null",
    "int64": "integer",
    "float64": "float",
    "bool": "boolean",
    "string": "text",
}
_BY_TYPE: dict[Kind, Callable[[pa.DataType], bool]] = {
    "text": is_text,
    "image": is_image,
    "null": pa.types.is_null,
    "boolean": pa.types.is_boolean,
    "integer": pa.types.is_integer,
    "list": lambda kind: is_list(kind) and _is_entry(kind.value_type),
    "spans": are_spans,
    "answers": are_answers,
}
# Check a row of a column beside its text, by the column's kind.
_BESIDE_TEXTS: dict[Kind, Callable[[str, Any], object]] = {
    "spans": read_spans,
    "answers": read_answers,
}


@dataclass
class FirstRows:
    """Distinct values, the first row of each and the number of its rows, up to a limit.

    Attributes:
        most: the limit.
        rows: the first row, by value.
        counts: the number of rows, by value.
        is_full: whether there are more values.
    """

    most: int
    rows: dict[Value, int] = field(default_factory=dict)
    counts: Counter[Value] = field(default_factory=Counter)
    is_full: bool = False
    _bytes: int = 0

    def add(self, array: pa.Array, rows: NDArray[np.int64]) -> None:
        """Add a batch of values; nulls are skipped.

        Args:
            array: the values.
            rows: of each value.
        """
        if self.is_full:
            return
        if is_text(array.type):
            longest = pc.max(pc.binary_length(array)).as_py() or 0
            if longest > _LABEL_BYTES:
                self.is_full = True
                return
        if pa.types.is_float16(array.type):
            array = array.cast(pa.float32())
        codes = array.dictionary_encode()
        places = codes.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        found = np.unique(places, return_index=True, return_counts=True)
        for code, place, count in sorted(zip(*found, strict=True), key=lambda entry: entry[1]):
            if code < 0:
                continue
            value = codes.dictionary[code].as_py()
            if not self._keep(value, int(rows[place])):
                return
            self.counts[value] += int(count)

    def _keep(self, value: Value, row: int) -> bool:
        if value in self.rows or (isinstance(value, float) and math.isnan(value)):
            return True
        self._bytes += len(value) if isinstance(value, str) else 8
        self.is_full = len(self.rows) >= self.most or self._bytes > _DISTINCT_BYTES
        if not self.is_full:
            self.rows[value] = row
        return not self.is_full


@dataclass
class ColumnScan:
    """The scan of a column of one split.

    Rows are numbered from 1; each is the first of its kind, or None.

    Attributes:
        arrow_type: of its values.
        distinct: the distinct values, of lists their entries, in the order of their first rows.
        are_cells: whether the column comes from a delimited file.
        class_names: of a column that names its classes.
        missing: row of a null.
        nan: row of a NaN.
        blank: row of an empty text, or one of only white space.
        too_long: row and characters of a text that is too long for every task.
        not_finite: row and value of a number that is not finite in 32 bits.
        image: the first value that is not an image.
        listed: of a column of lists, the first list that is no set of labels.
        lists: of a column of lists, what words and their tags need.
        beside: of a column of spans or answers, the first row that does not fit a column of
            texts, by the text column's name.
        has_answers: of a column of answers, whether a row has one.
        appearance: of cells; a null is an empty cell.
        are_whole: whether floating-point numbers are all whole.
        is_index: whether the column is a table's index.
        unfit: why no task can use the column, which is not scanned then.
    """

    arrow_type: pa.DataType
    distinct: FirstRows
    are_cells: bool = False
    class_names: tuple[str, ...] | None = None
    missing: int | None = None
    nan: int | None = None
    blank: int | None = None
    too_long: tuple[int, int] | None = None
    not_finite: tuple[int, float] | None = None
    image: Problem | None = None
    listed: Problem | None = None
    lists: ListScan = field(default_factory=ListScan)
    beside: dict[str, Problem | None] = field(default_factory=dict)
    has_answers: bool = False
    appearance: Appearance = field(default_factory=Appearance)
    are_whole: bool = True
    is_index: bool = False
    unfit: Problem | None = None

    @property
    def type(self) -> str:
        """The type's name for messages; for cells the type that all of them look like."""
        if self.are_cells:
            return self.appearance.looks
        return "image" if is_image(self.arrow_type) else type_name(self.arrow_type)

    @property
    def kind(self) -> Kind:
        """How a task can use the column."""
        if self.are_cells:
            looks = self.appearance.looks
            return "whole" if looks == "float64" and self.appearance.are_whole else _BY_LOOKS[looks]
        if pa.types.is_floating(self.arrow_type):
            return "whole" if self.are_whole else "float"
        return next((kind for kind, test in _BY_TYPE.items() if test(self.arrow_type)), "other")

    def misfit(self, use: Use) -> Problem | None:
        """Return the problem if the column's kind excludes a use."""
        return misfit(use, self.kind, self.type, are_cells=self.are_cells)

    def add(self, array: pa.Array, first_row: int) -> None:
        """Add a batch of the column."""
        if self.are_cells:
            self.appearance.add(array.fill_null(""), first_row)
        if self.missing is None:
            self.missing = first_true(array.is_null(), start=first_row)
        if is_text(self.arrow_type):
            if self.blank is None:
                self.blank = first_true(are_blank(array), start=first_row)
            if self.too_long is None:
                self.too_long = first_too_long(array, first_row=first_row)
        elif pa.types.is_floating(self.arrow_type):
            self._add_floats(array, first_row)
        elif is_image(self.arrow_type):
            self._add_images(array, first_row)
        else:
            self._add_entries(array, first_row)
        if self.are_whole and any(test(self.arrow_type) for test in _CLASS_TYPES):
            self.distinct.add(array, np.arange(first_row, first_row + len(array)))

    def _add_entries(self, array: pa.Array, first_row: int) -> None:
        if self.kind == "list":
            self._add_lists(array, first_row)
        elif self.kind == "spans":
            self._add_labels(array, first_row)
        elif self.kind == "answers" and not self.has_answers:
            self.has_answers = any(map(has_answer, array.to_pylist()))

    def _add_floats(self, array: pa.Array, first_row: int) -> None:
        wide = array.cast(pa.float64())
        if self.nan is None:
            self.nan = first_true(pc.is_nan(wide), start=first_row)
        if self.not_finite is None:
            within = pc.less_equal(pc.abs(wide), MOST_FLOAT32)  # false for NaN
            place = first_true(pc.invert(within))
            if place is not None:
                self.not_finite = (first_row + place, wide[place].as_py())
        if self.are_whole:
            whole = pc.and_(pc.equal(pc.floor(wide), wide), pc.is_finite(wide))
            self.are_whole = pc.all(pc.or_(whole, pc.is_nan(wide))).as_py() is not False

    def _add_lists(self, array: pa.Array, first_row: int) -> None:
        entries = array.flatten()
        rows = pc.list_parent_indices(array).to_numpy() + first_row
        self.distinct.add(entries, rows)
        self.lists.add(array, entries, rows)
        if self.listed is None:
            self.listed = _list_problem(entries, rows)

    def _add_labels(self, array: pa.Array, first_row: int) -> None:
        labels = pc.struct_field(array.flatten(), "label")  # null of an entry that is null
        if any(test(labels.type) for test in _CLASS_TYPES):
            rows = pc.list_parent_indices(array).to_numpy() + first_row
            self.distinct.add(labels, rows)

    def _add_images(self, array: pa.Array, first_row: int) -> None:
        if self.image is not None:
            return
        content = array.field("bytes") if pa.types.is_struct(self.arrow_type) else array
        if not pa.types.is_binary(content.type):
            what = type_name(content.type)
            has_paths_only = pa.types.is_null(content.type)
            reason = NO_BYTES if has_paths_only else f"an image must be bytes, not {what}"
            self.image = Problem(row=first_row, reason=reason)
            return
        place = first_true(pc.or_(array.is_null(), content.is_null()))
        heads = pc.binary_slice(content, 0, _HEAD_BYTES).to_pylist()
        for index, head in enumerate(heads if place is None else heads[:place]):
            if not _looks_like_image(head) and not _is_image(content[index].as_py()):
                self.image = Problem(row=first_row + index, reason=NO_IMAGE)
                return
        if place is not None:
            self.image = Problem(row=first_row + place, reason=NO_BYTES)


def _list_problem(entries: pa.Array, rows: NDArray[np.int64]) -> Problem | None:
    """Return the first row whose list has no label in one of its places, or a label twice.

    Args:
        entries: of all lists.
        rows: the row of each entry, in increasing order.
    """
    problems = []
    for is_bad, reason in (
        (entries.is_null(), "the list has an entry without a label"),
        (are_blank(entries), "the list has an empty label"),
    ):
        place = first_true(is_bad)
        if place is not None:
            problems.append(Problem(row=int(rows[place]), reason=reason))
    codes = entries.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
    _, first = np.unique(np.stack([rows, codes]), axis=1, return_index=True)
    repeated = np.setdiff1d(np.flatnonzero(codes >= 0), first)
    if len(repeated):
        label = entries[int(repeated[0])].as_py()
        reason = f"the list has the label {quoted(label)} more than once"
        problems.append(Problem(row=int(rows[repeated[0]]), reason=reason))
    return first_problem(problems)


def _looks_like_image(head: bytes) -> bool:
    return head.startswith(_HEADS) or (head[:4] == b"RIFF" and head[8:] == b"WEBP")


def _is_image(content: bytes) -> bool:
    """Return whether bytes are an image of one of the rarer formats."""
    from hifi.data.images import is_image  # noqa: PLC0415 - loads Pillow, which is rarely needed

    return is_image(content)


def has_answer(given: Any) -> bool:  # noqa: ANN401 - in either of two forms
    """Return whether a row has an answer, which may not be sound."""
    return bool(given and (given.get("text") if isinstance(given, dict) else True))


def scan_beside_texts(
    scans: Mapping[str, ColumnScan], arrays: Mapping[str, pa.Array], *, first_row: int
) -> None:
    """Add a batch of columns of spans or answers beside columns of texts.

    Args:
        scans: of all columns.
        arrays: of the batch, by column.
        first_row: number of its first row.
    """
    texts = [name for name, scan in scans.items() if is_text(scan.arrow_type)][:_MOST_TEXTS]
    for name, scan in scans.items():
        check = _BESIDE_TEXTS.get(scan.kind)
        if check is None:
            continue
        for text in texts:
            if scan.beside.get(text) is None:
                scan.beside[text] = _first_unfit(arrays[text], arrays[name], first_row, check=check)


def _first_unfit(
    texts: pa.Array, values: pa.Array, first_row: int, *, check: Callable[[str, Any], object]
) -> Problem | None:
    """Return the first row whose value does not fit its text."""
    pairs = zip(texts.to_pylist(), values.to_pylist(), strict=True)
    for row, (text, given) in enumerate(pairs, start=first_row):
        if text is None or not text.strip():  # reported as the text's problem
            continue
        try:
            check(text, given)
        except ValueError as error:
            return Problem(row=row, reason=str(error))
    return None


def unfit_scans(columns: Mapping[str, Unfit]) -> dict[str, ColumnScan]:
    """Return the scans of the columns of a split that no task can use."""
    return {
        name: ColumnScan(
            arrow_type=found.type,
            distinct=FirstRows(0),
            unfit=Problem(row=found.row, reason=found.reason),
        )
        for name, found in columns.items()
    }


def scan_columns(
    schema: pa.Schema,
    *,
    cells: Collection[str],
    class_names: Mapping[str, tuple[str, ...]],
    index: Collection[str] = (),
) -> dict[str, ColumnScan]:
    """Return empty scans for the columns of a split, in their order.

    Args:
        schema: of the split.
        cells: the columns that hold a delimited file's cells.
        class_names: of columns that name their classes.
        index: the columns that are a table's index.
    """
    most = max(100, min(_MOST_DISTINCT, _ALL_DISTINCT // max(1, len(schema))))
    return {
        field.name: ColumnScan(
            arrow_type=field.type,
            distinct=FirstRows(most),
            are_cells=field.name in cells,
            class_names=class_names.get(field.name),
            is_index=field.name in index,
        )
        for field in schema
    }
