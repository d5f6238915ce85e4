"""Read a task's columns from a data set, and refuse rows that it cannot use."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import datasets
import pyarrow as pa
from datasets import Dataset
from PIL import UnidentifiedImageError

from hifi.data.answers import read_answers
from hifi.data.choices import choice_rows, choices_problem, count_choices
from hifi.data.formats.indexes import index_columns
from hifi.data.images import BROKEN, decode_image
from hifi.data.label_sets import flag_problem, flag_reader, set_reader, too_few_labels
from hifi.data.labels import (
    Label,
    is_unlabelled,
    label_reader,
    order_classes,
    too_few,
    unknown_label,
)
from hifi.data.numbering import choice_label, find_numbering
from hifi.data.profile import first_problem
from hifi.data.profiling import (
    answers_problem,
    make_profile,
    target_problem,
    text_problem,
    unequal_lists,
    words_problem,
)
from hifi.data.scan import (
    NO_IMAGE,
    ColumnScan,
    has_answer,
    scan_beside_texts,
    scan_columns,
    unfit_scans,
)
from hifi.data.spans import read_spans
from hifi.data.tag_sets import other_spans, other_tags, tag_reader, train_tags
from hifi.data.tags import find_entities
from hifi.data.task_types import FEWEST_CHOICES
from hifi.data.types import UnfitError, are_empty_lists, cast_to, kept_type
from hifi.errors import DataError

if TYPE_CHECKING:
    from hifi.data.answers import ContextAnswer
    from hifi.data.formats.reader import Unfit
    from hifi.data.numbering import Numbering
    from hifi.data.profile import DatasetProfile, Problem
    from hifi.data.spans import Span
    from hifi.data.tag_sets import TagSet
    from hifi.data.tags import Entity
    from hifi.data.task_types import Use

T = TypeVar("T")

# Marks the cells of a delimited file: the `id` of a datasets.Value is unused and survives
# selecting and shuffling.
CELLS_FEATURE = datasets.Value("string", id="hifi.cells")
_SCANNED_ROWS = 4096  # rows per batch


def profile_split(
    dataset: Dataset,
    *,
    unfit: Mapping[str, Unfit] | None = None,
    index: Collection[str] | None = None,
    left_out: int = 0,
) -> DatasetProfile:
    """Return the profile of a training split: the possible uses of each column.

    Args:
        dataset: the split.
        unfit: further columns, which no task can use.
        index: the columns that are a table's index; by default those with pandas' names for one.
        left_out: the rows of a labelling tool that nobody accepted.
    """
    if index is None:
        index = index_columns(dataset.column_names)
    scans = _scan(dataset, index=index) | unfit_scans(unfit or {})
    return make_profile(
        {"train": scans}, rows={"train": len(dataset)}, left_out={"train": left_out}
    )


def read_texts(dataset: Dataset, column: str, *, split: str) -> list[str]:
    """Read a column of texts.

    Raises:
        DataError: a text is missing, empty or blank, or the column has another type.
    """
    scan = _scan_column(dataset, column)
    _refuse(scan.misfit("text") or text_problem(scan), split=split, column=column)
    return _values(dataset, column)


def read_labels(
    dataset: Dataset, column: str, *, split: str, known: Sequence[Label] = ()
) -> list[Label]:
    """Read a column of class labels.

    Args:
        dataset: contains the column.
        column: its name.
        split: for messages.
        known: the classes of the training split, if known; cells are matched with them.

    Returns:
        Integers; texts for a column of texts, of booleans (``false`` and ``true``) or of numbers
        with names (a ``ClassLabel``). Whole floating-point numbers become integers.

    Raises:
        DataError: a label is missing or empty, or the column has another type.
    """
    read = label_reader(_scan_column(dataset, column), known=known)
    return _read_each(dataset, column, read, split=split)


def read_label_sets(
    dataset: Dataset, column: str, *, split: str, known: Sequence[Label] = ()
) -> list[list[Label]]:
    """Read a column of lists of labels; a list may be empty.

    Args:
        dataset: contains the column.
        column: its name.
        split: for messages.
        known: the labels of the training split, if known; those of the lists are matched with them.

    Returns:
        Integers or texts; names for integers with names (a ``ClassLabel``).

    Raises:
        DataError: a list is missing, has a label twice or an empty one, or the column has another
            type.
    """
    scan = _scan_column(dataset, column)
    _refuse(scan.misfit("labels"), split=split, column=column)
    return _read_each(dataset, column, set_reader(scan, known=known), split=split)


def read_flags(dataset: Dataset, column: str, *, split: str) -> list[bool]:
    """Read a column of 0 and 1, or of booleans.

    Raises:
        DataError: a value is missing or another one, or the column has another type.
    """
    scan = _scan_column(dataset, column)
    _refuse(flag_problem(scan), split=split, column=column)
    return _read_each(dataset, column, flag_reader(scan), split=split)


def read_words(dataset: Dataset, column: str, *, split: str) -> list[list[str]]:
    """Read a column of lists of words.

    Raises:
        DataError: a list is missing or empty, a word is missing, blank or no text, a row has too
            many characters, or the column has another type.
    """
    scan = _scan_column(dataset, column)
    problem = _misfit_of_lists(scan, "words", split=split) or words_problem(scan)
    _refuse(problem, split=split, column=column)
    return _values(dataset, column)


def read_choices(
    dataset: Dataset, columns: Sequence[str], *, split: str, count: int | None = None
) -> list[list[str]]:
    """Read the choices of each row: a column of lists, or a column of texts for each choice.

    Args:
        dataset: contains the columns.
        columns: their names.
        split: for messages.
        count: of the choices in the training split; None if this is the training split.

    Raises:
        DataError: a choice is missing, empty or blank, a row has less than two choices or another
            number of them than the first row of the training split, or a column has another type.
    """
    if len(columns) > 1:
        texts = [read_texts(dataset, column, split=split) for column in columns]
        return list(map(list, zip(*texts, strict=True)))
    (column,) = columns
    scan = _scan_column(dataset, column)
    count = count or count_choices(scan)
    problem = _misfit_of_lists(scan, "choices", split=split) or choices_problem(scan, count=count)
    _refuse(problem, split=split, column=column)
    return _values(dataset, column)


def count_row_choices(dataset: Dataset, columns: Sequence[str]) -> int:
    """Return the number of choices of a training split's rows.

    Args:
        dataset: the training split.
        columns: a column of lists, or a column of texts for each choice.

    Raises:
        DataError: the column's first list has less than two choices, or it holds no lists of texts.
    """
    if len(columns) > 1:
        return len(columns)
    count = count_choices(_scan_column(dataset, columns[0]))
    if count is None or count < FEWEST_CHOICES:
        read_choices(dataset, columns, split="train")  # raises
        raise DataError("no row has choices", split="train", column=columns[0])
    return count


def read_numbering(dataset: Dataset, column: str, *, count: int) -> Numbering:
    """Read how the labels of a training split number the choices of a row.

    Args:
        dataset: the training split.
        column: of labels.
        count: of the choices of a row.

    Raises:
        DataError: a label is missing, is neither a number nor a letter, or is none of the choices.
    """
    scan = _scan_column(dataset, column)
    rows, problem = choice_rows(scan)
    _refuse(scan.misfit("choice") or problem, split="train", column=column)
    numbering, problem = find_numbering(rows, count=count)
    _refuse(problem, split="train", column=column)
    if numbering is None:
        raise DataError("the labels number no choices", split="train", column=column)
    return numbering


def read_right_choices(
    dataset: Dataset, column: str, *, split: str, numbering: Numbering
) -> list[int]:
    """Read the place of each row's right choice, from 0.

    Args:
        dataset: contains the column.
        column: of labels.
        split: for messages.
        numbering: of the training split.

    Raises:
        DataError: a label is missing or none of the choices, or the column has another type.
    """
    read = label_reader(_scan_column(dataset, column))

    def place(value: object) -> int:
        return numbering.index(choice_label(read(value)))

    return _read_each(dataset, column, place, split=split)


def read_tag_set(dataset: Dataset, column: str, *, use: Use, split: str) -> TagSet:
    """Read what the tags of a training split mean, or the labels of its spans.

    Args:
        dataset: contains the column.
        column: its name.
        use: ``tags`` or ``spans``.
        split: for messages.

    Raises:
        DataError: they do not follow a scheme, there is nothing to learn, or the column has another
            type.
    """
    scan = _scan_column(dataset, column)
    _refuse(scan.misfit(use), split=split, column=column)
    found, problem = train_tags(scan)
    _refuse(problem, split=split, column=column)
    if found is None:
        raise DataError("no tags or spans are here", split=split, column=column)
    return found


def read_tags(
    dataset: Dataset, column: str, *, words: str, split: str, known: TagSet
) -> list[list[Entity]]:
    """Read a column of lists of tags as the entities that they mark.

    Args:
        dataset: contains the column.
        column: its name.
        words: the column of words, which are not checked.
        split: for messages.
        known: the tags of the training split.

    Raises:
        DataError: a row has more tags or fewer than words, or a tag that the training split does
            not have or its scheme does not allow there; or the column has another type.
    """
    scan = _scan_column(dataset, column)
    problem = _misfit_of_lists(scan, "tags", split=split) or other_tags(scan, known=known)
    problems = [problem, unequal_lists(scan, _scan_column(dataset, words))]
    _refuse(first_problem(problems), split=split, column=column)
    read = tag_reader(scan)
    return [find_entities(read(tags), scheme=known.scheme) for tags in _values(dataset, column)]


def read_labelled_spans(
    dataset: Dataset, column: str, *, texts: str, split: str, known: TagSet
) -> list[list[Span]]:
    """Read a column of spans of texts.

    Args:
        dataset: contains the column.
        column: its name.
        texts: the column of texts; a row without one has no spans.
        split: for messages.
        known: the labels of the training split.

    Raises:
        DataError: a span does not fit its text, or its label does not occur in the training split;
            or the column has another type.
    """
    scan = _scan(dataset.select_columns([column, texts]))[column]
    if not are_empty_lists(scan.arrow_type):
        _refuse(_misfit_of_lists(scan, "spans", split=split), split=split, column=column)
    problems = [other_spans(scan, known=known), scan.beside.get(texts)]
    _refuse(first_problem(problems), split=split, column=column)
    pairs = zip(_values(dataset, texts), _values(dataset, column), strict=True)
    return [read_spans(text, spans) if _is_text(text) else [] for text, spans in pairs]


def read_answer_lists(
    dataset: Dataset, column: str, *, contexts: str, split: str
) -> list[list[ContextAnswer]]:
    """Read a column of answers; a row may have none.

    Args:
        dataset: contains the column.
        column: its name.
        contexts: the column of texts that have the answers; a row without one has no answers.
        split: for messages.

    Raises:
        DataError: an answer is not where it should be in its context; no row of a training split
            has one; or the column has another type.
    """
    scan = _scan(dataset.select_columns([column, contexts]))[column]
    if split == "train" or not are_empty_lists(scan.arrow_type):
        _refuse(_misfit_of_lists(scan, "answers", split=split), split=split, column=column)
    problems = [answers_problem(scan, split=split), scan.beside.get(contexts)]
    _refuse(first_problem(problems), split=split, column=column)
    pairs = zip(_values(dataset, contexts), _values(dataset, column), strict=True)
    return [read_answers(text, given) if _is_text(text) else [] for text, given in pairs]


def has_unanswered(dataset: Dataset, column: str) -> bool:
    """Return whether a row has no answer, in a column whose answers are not checked."""
    table = dataset.select_columns([column]).with_format("arrow")[:]
    return not all(map(has_answer, table.column(column).to_pylist()))


def _is_text(value: str | None) -> bool:
    """Return whether a row has a text; that it has none is reported as the text's problem."""
    return value is not None and bool(value.strip())


def _misfit_of_lists(scan: ColumnScan, use: Use, *, split: str) -> Problem | None:
    """Return why a kind excludes a use; of a split that has only nulls each row is at fault."""
    return None if scan.kind == "null" and split != "train" else scan.misfit(use)


def is_labelled(dataset: Dataset, column: str, *, known: Sequence[Label]) -> bool:
    """Return whether a split has labels: the opposite of :func:`hifi.data.labels.is_unlabelled`.

    Args:
        dataset: contains the column.
        column: of the labels.
        known: the classes of the training split; none for numbers.
    """
    return not is_unlabelled(_scan_column(dataset, column), known=known)


def label_order(
    dataset: Dataset, column: str, labels: Sequence[Label], *, split: str
) -> list[Label]:
    """Return the classes, in the order of :func:`hifi.data.labels.order_classes`.

    Raises:
        DataError: fewer than two classes occur.
    """
    _refuse(too_few(labels), split=split, column=column)
    return list(order_classes(labels, names=_class_names(dataset).get(column)))


def label_set_order(
    dataset: Dataset, column: str, sets: Sequence[Sequence[Label]], *, split: str
) -> list[Label]:
    """Return the labels of a column of lists, in the order of :func:`label_order`.

    Raises:
        DataError: fewer than two labels occur.
    """
    labels = {label for each in sets for label in each}
    _refuse(too_few_labels(labels), split=split, column=column)
    return list(order_classes(labels, names=_class_names(dataset).get(column)))


def has_named_integers(dataset: Dataset, column: str) -> bool:
    """Return whether a column's values are integers with names (a ``ClassLabel``)."""
    return column in _class_names(dataset)


def label_indices(
    labels: Sequence[Label], *, known: Sequence[Label], column: str, split: str
) -> list[int]:
    """Return each row's class index.

    Raises:
        DataError: a label is not in ``known``.
    """
    sets = label_set_indices([[label] for label in labels], known=known, column=column, split=split)
    return [index for (index,) in sets]


def label_set_indices(
    sets: Sequence[Sequence[Label]], *, known: Sequence[Label], column: str, split: str
) -> list[list[int]]:
    """Return the indices of each row's labels.

    Raises:
        DataError: a label is not in ``known``.
    """
    index_of = {label: index for index, label in enumerate(known)}
    for row, labels in enumerate(sets, start=1):
        for label in labels:
            if label not in index_of:
                _refuse(unknown_label(label, row=row, known=known), split=split, column=column)
    return [[index_of[label] for label in labels] for labels in sets]


def read_targets(dataset: Dataset, column: str, *, split: str) -> list[float]:
    """Read a column of regression targets.

    Raises:
        DataError: a number is missing, NaN or infinite in float32, or the column has another type.
    """
    _refuse(target_problem(_scan_column(dataset, column)), split=split, column=column)
    return [float(value) for value in _values(dataset, column)]


def read_images(dataset: Dataset, column: str, *, split: str) -> list[bytes]:
    """Read a column of encoded images; each is decoded once to check it.

    Paths in the data are not followed.

    Raises:
        DataError: an image is missing or broken, or the column has another type.
    """
    scan = _scan_column(dataset, column)
    _refuse(scan.misfit("image"), split=split, column=column)
    if isinstance(dataset.features[column], datasets.Image):
        dataset = dataset.cast_column(column, datasets.Image(decode=False))
    sound = len(dataset) if scan.image is None else (scan.image.row or 1) - 1
    images = _read_each(dataset.take(sound), column, _check_image, split=split)
    _refuse(scan.image, split=split, column=column)
    return images


def _check_image(value: bytes | dict[str, bytes]) -> bytes:
    encoded = value["bytes"] if isinstance(value, dict) else value
    try:
        decode_image(encoded)
    except UnidentifiedImageError as error:
        raise ValueError(NO_IMAGE) from error
    except BROKEN as error:
        raise ValueError(f"the image cannot be decoded: {error}") from error
    return encoded


def _scan_column(dataset: Dataset, column: str) -> ColumnScan:
    return _scan(dataset.select_columns([column]))[column]


def _scan(dataset: Dataset, *, index: Collection[str] = ()) -> dict[str, ColumnScan]:
    """Scan all columns in batches of rows, so that a large data set is never copied at once."""
    kinds = {field.name: _plain(field.type) for field in dataset.features.arrow_schema}
    schema = pa.schema([(name, kinds[name]) for name in dataset.column_names])
    cells = [name for name, feature in dataset.features.items() if feature == CELLS_FEATURE]
    scans = scan_columns(schema, cells=cells, class_names=_class_names(dataset), index=index)
    table = dataset.with_format("arrow")
    for start in range(0, len(dataset), _SCANNED_ROWS):
        piece = table[start : start + _SCANNED_ROWS]
        arrays = {name: cast_to(piece.column(name).combine_chunks(), kinds[name]) for name in scans}
        for name, scan in scans.items():
            scan.add(arrays[name], start + 1)
        scan_beside_texts(scans, arrays, first_row=start + 1)
    return scans


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return the type in which an upload keeps a column, or the type itself if it is refused."""
    try:
        return kept_type(kind)
    except UnfitError:
        return kind


def _class_names(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    """Return the names of each column's classes, or of those in its lists, if they have any."""
    entries = {
        name: feature.feature if isinstance(feature, datasets.List) else feature
        for name, feature in dataset.features.items()
    }
    return {
        name: tuple(entry.names)
        for name, entry in entries.items()
        if isinstance(entry, datasets.ClassLabel)
    }


def _refuse(problem: Problem | None, *, split: str, column: str) -> None:
    if problem is not None:
        raise DataError(problem.reason, split=split, row=problem.row, column=column)


def _values(dataset: Dataset, column: str) -> list[Any]:
    values: list[Any] = dataset.with_format(None)[column][:]
    return values


def _read_each(dataset: Dataset, column: str, read: Callable[[Any], T], *, split: str) -> list[T]:
    """Call ``read`` for every value; its ValueError becomes a DataError with the row."""
    results = []
    for row, value in enumerate(_values(dataset, column), start=1):
        try:
            results.append(read(value))
        except ValueError as error:
            raise DataError(str(error), split=split, row=row, column=column) from error
    return results
