"""Warnings about a run that may go ahead, but perhaps not as its owner means it.

The library computes them from the data, the service from an upload's profile when a job is posted;
both use this module, so the warnings are equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hifi.data.margins import standard_error
from hifi.errors import InvalidArgumentError, quoted, shorten

if TYPE_CHECKING:
    from hifi.data.classes.contradictions import Contradictions
    from hifi.data.classes.stored_head import StoredHead
    from hifi.data.profile import ColumnProfile

# Fewer classes than this are never "many": a small sample may have a row or two of each class.
_FEWEST_MANY = 10
_ROWS_PER_CLASS = 2  # on average; with fewer, a column is an id or a text rather than a label
_FEW_ROWS = 8  # with fewer, one row is more than a tenth of what is known of its class
_LEAST_CONTRADICTIONS = 2
_SHARE_OF_CONTRADICTIONS = 0.01
_NAMED = 5
_NAME_CHARACTERS = 30


@dataclass(frozen=True, kw_only=True)
class RunWarning:
    """A warning about a run.

    Attributes:
        code: stable; one function of this module for each.
        message: for people, one line.
        param: the argument of ``finetune`` that the warning is about.
    """

    code: str
    message: str
    param: str | None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return dict(vars(self))


def are_many_classes(count: int | None, *, rows: int) -> bool:
    """Return whether a column has too many different values for a label.

    Args:
        count: of its values; None if they are too many to count.
        rows: of the training split.

    Returns:
        True if there are at least ten values, and fewer than two rows for each on average.
    """
    return count is None or (count >= _FEWEST_MANY and count * _ROWS_PER_CLASS > rows)


def warn_of_classes(column: ColumnProfile, *, rows: int) -> tuple[RunWarning, ...]:
    """Warn if the training rows are too few for the classes of a label column.

    Args:
        column: the label column; its labels can be used.
        rows: of the training split.
    """
    name = quoted(column.name)
    if are_many_classes(column.num_classes, rows=rows):
        count = "too many" if column.num_classes is None else f"{column.num_classes:,}"
        message = (
            f"the label {name} has {count} classes in {rows:,} rows: if it is an id or a text, "
            "choose another column as the label"
        )
        return (RunWarning(code="many_classes", message=message, param="label"),)
    if not column.single_classes:
        return ()
    single = column.single_classes
    message = (
        f"{single.count:,} of the {column.num_classes or 0:,} classes of the label {name} have a "
        f"single training row: {_listed(single.some, more=single.count > len(single.some))}; add "
        "rows of these classes, or merge them with others"
    )
    return (RunWarning(code="rare_classes", message=message, param="label"),)


def warn_of_replaced_head(
    model: str,
    *,
    head: StoredHead,
    classes: Sequence[str | int] | None,
    has_named_integers: bool = False,
) -> RunWarning:
    """Warn that a checkpoint's task head is not used, because its labels are not the task's.

    Args:
        model: the backbone's name.
        head: the checkpoint's.
        classes: of the task; None for a regression.
        has_named_integers: whether the data has integers, and a ``ClassLabel`` names them.
    """
    misfit = _describe_misfit(
        model, head=head, classes=classes, has_named_integers=has_named_integers
    )
    message = f"{misfit}: it is replaced by a new one"
    return RunWarning(code="task_head_replaced", message=message, param="model")


def refuse_to_keep(
    model: str,
    *,
    head: StoredHead | None,
    classes: Sequence[str | int] | None,
    has_named_integers: bool = False,
) -> InvalidArgumentError:
    """Return the error of ``head_start="keep"`` for a checkpoint without a task head that fits.

    Args:
        model: the backbone's name.
        head: the checkpoint's; None if it has none of the task's kind.
        classes: of the task; None for a regression.
        has_named_integers: whether the data has integers, and a ``ClassLabel`` names them.
    """
    reason = f"{model} has no task head of this kind"
    if head is not None:
        reason = _describe_misfit(
            model, head=head, classes=classes, has_named_integers=has_named_integers
        )
    return InvalidArgumentError(
        "head_start", value="keep", limit=f"auto, probe or random: {reason}"
    )


def _describe_misfit(
    model: str, *, head: StoredHead, classes: Sequence[str | int] | None, has_named_integers: bool
) -> str:
    count = None if classes is None else len(classes)
    cause = ""
    if has_named_integers and count == head.num_labels:  # the integers alone would fit
        cause = "; names in the data, a ClassLabel, count as its labels, and not the numbers"
    elif classes is not None and set(map(str, classes)) == set(head.names or ()):
        cause = "; of the ones a row can have several, of the others only one"
    return (
        f"the task head of {model} ({_labels(head.names, count=head.num_labels)}) does not fit the "
        f"task ({_labels(classes, count=count)}{cause})"
    )


def warn_of_few_rows(
    label: str | tuple[str, ...], *, counts: Mapping[str, int], counted: str = "rows"
) -> tuple[RunWarning, ...]:
    """Warn if classes have fewer than eight training rows, or types fewer than eight entities.

    Of one column those with a single row, or none, are left out: ``warn_of_classes`` names them.

    Args:
        label: the label column, or one for each class.
        counts: of the training rows of each class, in the order of the logits; or of the entities
            of each type.
        counted: ``rows`` or ``entities``.
    """
    is_one = isinstance(label, str)
    least = 2 if is_one and counted == "rows" else 0
    few = [name for name, count in counts.items() if least <= count < _FEW_ROWS]
    if not few:
        return ()
    kind = "classes" if counted == "rows" else "types of entities"
    where = f"{kind} of the label {quoted(label)}" if is_one else "label columns"
    message = (
        f"{len(few):,} of the {len(counts):,} {where} have fewer than {_FEW_ROWS} training "
        f"{counted}: {_listed(few)}; add rows of these {kind}, or merge them with others"
    )
    return (RunWarning(code="few_rows_per_class", message=message, param="label"),)


def warn_of_contradictions(
    label: str, found: Contradictions | None, *, rows: int
) -> tuple[RunWarning, ...]:
    """Warn if one label in a hundred, and more than one, contradicts that of the same text.

    Args:
        label: the label column.
        found: in the training rows; None if no labels contradict each other.
        rows: of the training split.
    """
    if found is None or found.rows < max(_LEAST_CONTRADICTIONS, _SHARE_OF_CONTRADICTIONS * rows):
        return ()
    first, second = found.example
    message = (
        f"rows with the same text have different labels in {quoted(label)}, such as the training "
        f"rows {first:,} and {second:,}: at least {found.rows:,} of {rows:,} labels are wrong, or "
        "the text does not decide them; correct them, or leave out such rows"
    )
    return (RunWarning(code="label_noise_suspected", message=message, param="label"),)


def warn_of_unlabelled_test(label: str) -> RunWarning:
    """Warn that the test split is not scored.

    Args:
        label: the label column.
    """
    message = (
        f"the test split has no labels in {quoted(label)}, so it is not scored: add them, or leave "
        "out the split"
    )
    return RunWarning(code="test_not_scored", message=message, param="test")


def warn_of_failed_probe(reason: str) -> RunWarning:
    """Warn that there is no linear probe: nothing to compare with, and nothing to start from.

    Args:
        reason: why not.
    """
    message = (
        f"no linear probe could be fitted: {reason}; the result is not compared with one, and a "
        "new task head starts from random weights"
    )
    return RunWarning(code="probe_failed", message=message, param="head_start")


def warn_of_one_class(name: str, *, learning_rate: float, epochs: int) -> RunWarning:
    """Warn that a tuned model predicts a single class.

    Args:
        name: of the class.
        learning_rate: of the run.
        epochs: of the run.
    """
    message = (
        f"the tuned model predicts {quoted(name)} for every validation row: it has not learnt to "
        f"tell the classes apart; try a higher learning rate (this was {learning_rate:g}), more "
        f"epochs (this was {epochs}) or more rows of the other classes"
    )
    return RunWarning(code="one_class", message=message, param="learning_rate")


def warn_of_less_than_probe(
    metric: str, *, tuned: float, probe: float, answers: int, counted: str = "rows"
) -> tuple[RunWarning, ...]:
    """Warn if a tuned model is below the linear probe by more than chance.

    Args:
        metric: the task's.
        tuned: its value for the tuned model.
        probe: its value for the probe.
        answers: that the metric compares.
        counted: what they are.
    """
    margin = standard_error(answers)
    if tuned >= probe - margin:
        return ()
    message = (
        f"the tuned model's {metric} {tuned:.4f} is below the linear probe's {probe:.4f}, by more "
        f"than chance ({margin:.4f} for {answers:,} validation {counted}): the fine-tune did not "
        "pay off; start the task head from the probe (head_start), or try more epochs or another "
        "learning rate"
    )
    return (RunWarning(code="below_probe", message=message, param="learning_rate"),)


def warn_of_no_gain(*, learning_rate: float, answers: int, counted: str = "rows") -> RunWarning:
    """Warn that no evaluation of a run was better than its start, which is the result.

    Args:
        learning_rate: of the run.
        answers: that the metric compares.
        counted: what they are.
    """
    message = (
        "no evaluation had a metric better than the start's by more than chance "
        f"({standard_error(answers):.4f} for {answers:,} validation {counted}), or a lower loss at "
        "no worse a metric, so the result is the task head that the run started from, and untuned "
        f"heads; try another learning rate (this was {learning_rate:g}), more epochs or more rows"
    )
    return RunWarning(code="no_gain", message=message, param="learning_rate")


def warn_of_falling_loss(*, epochs: int) -> RunWarning:
    """Warn that training ended while its loss was still falling.

    Args:
        epochs: of the run.
    """
    message = (
        "the training loss was still falling clearly at the last step, which is the result: more "
        f"epochs (this was {epochs}) may give a better one"
    )
    return RunWarning(code="not_converged", message=message, param="epochs")


def warn_of_labels_by_number(model: str, *, names: Sequence[str]) -> RunWarning:
    """Warn that integers get the names of a checkpoint's labels, which may mean something else.

    Args:
        model: the backbone's name.
        names: of the labels of its task head, in the order of the logits.
    """
    meanings = [f"{number} is {name}" for number, name in enumerate(_shortened(names[:_NAMED]))]
    more = ", …" if len(names) > _NAMED else ""
    message = (
        f"the labels 0 to {len(names) - 1} are taken for the {len(names):,} labels of {model}'s "
        f"own task head, by their numbers only: {', '.join(meanings)}{more}; the task head is "
        "kept, and answers use its names. If your labels mean something else, write them as texts"
    )
    return RunWarning(code="labels_by_number", message=message, param="label")


def _labels(names: Sequence[str | int] | None, *, count: int | None) -> str:
    """Describe labels: ``10 labels: airplane, automobile, …``."""
    if count is None:
        return "a number"
    words = "1 output" if count == 1 else f"{count:,} labels"
    return f"{words} without names" if names is None else f"{words}: {_listed(names)}"


def _listed(names: Iterable[str | int], *, more: bool = False) -> str:
    """List the first names, shortened."""
    every = _shortened(names)
    shown = every[:_NAMED]
    return ", ".join([*shown, "…"] if more or len(every) > len(shown) else shown)


def _shortened(names: Iterable[str | int]) -> list[str]:
    return [shorten(quoted(name), characters=_NAME_CHARACTERS) for name in names]
