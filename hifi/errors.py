"""The errors that hifi raises on purpose; all derive from :class:`HifiError`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_MOST_QUOTED = 60  # characters of a data value that a message shows
_MOST_LISTED = 20  # columns that a message lists


class HifiError(Exception):
    """Base class of all errors of this library."""


def shorten(text: str, *, characters: int) -> str:
    """Shorten a text to at most ``characters`` characters, for an error message."""
    return text if len(text) <= characters else text[: characters - 1] + "…"


def quoted(value: object) -> str:
    """Quote a data value of any type for a message, printable and short."""
    text = repr(value).encode(errors="backslashreplace").decode()
    return shorten(text, characters=_MOST_QUOTED)


def listed(names: Sequence[str]) -> str:
    """List column names for a message, at most the first 20."""
    shown = ", ".join(map(repr, names[:_MOST_LISTED]))
    return f"{shown}, …" if len(names) > _MOST_LISTED else shown


class InvalidArgumentError(HifiError, ValueError):
    """An argument is outside its range.

    Args:
        param: the argument's name.
        value: the value that the caller passed.
        limit: the allowed values, in words.
    """

    def __init__(self, param: str, *, value: object, limit: str) -> None:
        super().__init__(f"{param}={value!r} is not allowed: {limit}")
        self.param = param
        self.value = value
        self.limit = limit


class MissingExtraError(HifiError, ImportError):
    """A part of hifi needs a package that comes with one of its extras.

    Args:
        what: the part, in words.
        package: the package that is not installed.
        extra: the extra that brings it.
    """

    def __init__(self, what: str, *, package: str, extra: str) -> None:
        super().__init__(
            f"{what} needs {package}, which is not installed; pip install 'hifi[{extra}]'"
        )
        self.extra = extra


class UnsupportedArchitectureError(HifiError):
    """The model's attention heads cannot be located; the message has the supported models."""


class ConvergenceError(HifiError):
    """PageRank did not reach its tolerance within the allowed number of steps."""


class ProbeError(HifiError):
    """A linear probe cannot be fitted on a model's frozen states."""


class CaptureError(HifiError):
    """A forward pass did not produce one output per attention layer in the expected shape."""


class TunerError(HifiError):
    """A tuner was used in a way that would lose or corrupt tuned rows."""


class ModelError(HifiError):
    """A model cannot be found, or is refused (pickled or missing weights)."""


class TaskNotSupportedError(HifiError):
    """The task type is unknown or not supported yet."""


class DataError(HifiError, ValueError):
    """A data set cannot be used.

    Args:
        reason: the problem and what is allowed.
        split: ``train``, ``validation`` or ``test``; None until :func:`in_split` sets it, because
            a reader does not know which split its file is.
        row: number of the offending row from 1, without header and blank lines; None for the
            whole file.
        column: the offending column.
        param: the argument that names the column, if there is one.
        line: on which the row begins in a text file; None if it is not known.
    """

    def __init__(
        self,
        reason: str,
        *,
        split: str | None = None,
        row: int | None = None,
        column: str | None = None,
        param: str | None = None,
        line: int | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.split = split
        self.row = row
        self.column = column
        self.param = param
        self.line = line

    def __str__(self) -> str:
        place = [] if self.split is None else [self.split]
        if self.row is not None:
            line = "" if self.line is None else f" (line {self.line})"
            place.append(f"row {self.row}{line}")
        if self.column is not None:
            place.append(f"column {self.column!r}")
        return f"{', '.join(place)}: {self.reason}" if place else self.reason


@contextmanager
def in_split(split: str) -> Iterator[None]:
    """Set the split of every :class:`DataError` from the block that has none."""
    try:
        yield
    except DataError as error:
        error.split = error.split or split
        raise


class MissingColumnError(DataError):
    """A required column is missing.

    Args:
        column: its name.
        there: the columns of the data set.
        split: as for :class:`DataError`.
        param: the argument that names the column.
    """

    def __init__(
        self,
        column: str,
        *,
        there: Sequence[str],
        split: str | None = None,
        param: str | None = None,
    ) -> None:
        reason = f"no such column; the columns are: {listed(there)}"
        super().__init__(reason, split=split, column=column, param=param)


class AmbiguousTaskError(DataError):
    """The columns of the training split fit more than one task.

    Args:
        doubt: the possible tasks, with their columns.
        param: the argument that chooses one of them, or the entry of ``task`` that does.
    """

    param: str

    def __init__(self, doubt: str, *, param: str) -> None:
        is_argument = param in ("task", "text", "label", "image")
        choice = f"{param}=…" if is_argument else f'task={{"{param}": …}}'
        super().__init__(f"{doubt}; choose with {choice}", split="train", param=param)
        self.doubt = doubt


class InputError(HifiError):
    """An input for a prediction does not fit the task.

    Args:
        reason: the problem and what is allowed.
        param: the field of the input, or a place in it: ``text``, ``tokens.3``.
    """

    def __init__(self, reason: str, *, param: str) -> None:
        super().__init__(reason)
        self.param = param


class TextTooLongError(InputError):
    """A text has more tokens than the task reads, and truncation was not allowed."""


class ImageInputError(InputError):
    """An image cannot be decoded, or is too large to decode."""


class AnswerError(HifiError):
    """A model's output for an input is infinite or not a number."""


class DeltaFileError(HifiError):
    """A file is not a readable head delta: truncated, malformed or of another kind."""


class DeltaFileNotFoundError(DeltaFileError, FileNotFoundError):
    """The head delta file does not exist."""


class BackboneMismatchError(HifiError):
    """A head delta belongs to another backbone, or to another revision of it."""


class TaskHeadMismatchError(HifiError):
    """The model has no task head that matches the delta's."""


class BankClosedError(HifiError):
    """A head bank was used after it was closed."""


class CheckpointError(HifiError):
    """A checkpoint cannot be resumed: it is damaged, or of another job."""


class StorageError(HifiError, OSError):
    """A file or folder could not be written.

    The path is unchanged, unless the message says that the file is complete: then everything was
    written, but the system could not guarantee that the name survives a power failure.
    """


class TrainingDivergedError(HifiError):
    """A loss or a trained weight became infinite or not a number."""


class JobStopped(HifiError):  # noqa: N818 - a requested stop is an outcome, not a fault
    """A fine-tune ended early because its caller requested it.

    Args:
        checkpoint: the checkpoint from which the run can resume; None if there is none.
    """

    def __init__(self, message: str, *, checkpoint: Path | None = None) -> None:
        super().__init__(message)
        self.checkpoint = checkpoint


class JobCancelled(JobStopped):
    """``on_event`` returned CANCEL."""


class JobTimedOut(JobStopped):
    """``max_seconds`` ran out; with a larger one the run resumes from ``checkpoint``."""


class JobPaused(JobStopped):
    """``on_event`` returned PAUSE; resume from ``checkpoint``."""
