"""What can be drawn: selections, head deltas and the documents of jobs, read and checked."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import hifi
from hifi.arguments import as_integer
from hifi.data.task_types import metric_names
from hifi.deltas.delta import HeadDelta
from hifi.errors import InvalidArgumentError
from hifi.selection.head_selection import HeadSelection
from hifi.training.events import TrainingEvent

if TYPE_CHECKING:
    from hifi.training.finetuning import FinetuneResult

HeadSource = HeadSelection | HeadDelta | Mapping[str, Any] | str | Path
ResultSource: TypeAlias = "FinetuneResult | Mapping[str, Any]"
EventSource = Iterable[TrainingEvent | Mapping[str, Any]] | Mapping[str, Any]
Metrics = Mapping[str, float | None]

_MOST = 256  # layers, and heads of one; a foreign file may name any
_HEADS = (
    "a HeadSelection, a HeadDelta, the path of a delta file, or heads as HeadSelection.to_dict, "
    "`hifi select --json` and a job's heads have them"
)
_RESULT = "a FinetuneResult, or the document of a job or of `hifi tune --json` with a result"
_EVENTS = "TrainingEvents, or a job's events"
_EVALUATION = "each evaluation has metrics"


def selection_of(source: HeadSource) -> HeadSelection:
    """Return the selection to draw.

    Args:
        source: a selection; a head delta or its file, which record one; or heads as plain JSON, as
            ``HeadSelection.to_dict``, ``hifi select --json`` and a job's heads have them.

    Raises:
        InvalidArgumentError: something else, an invalid field, or more than 256 layers or heads
            per layer.
        DeltaFileError: the file is not a head delta.
    """
    if isinstance(source, str | Path):
        source = HeadDelta.load(source)
    if isinstance(source, HeadDelta):
        source = source.selection
    elif isinstance(source, Mapping):
        if "layers" not in source:
            raise InvalidArgumentError("source", value=_outline(source), limit=_HEADS)
        source = HeadSelection.from_dict(source)
    if not isinstance(source, HeadSelection):
        raise InvalidArgumentError("source", value=type(source).__name__, limit=_HEADS)
    largest = max(source.num_layers, num_heads_of(source))
    if largest > _MOST:
        limit = f"at most {_MOST} layers, and heads per layer"
        raise InvalidArgumentError("source", value=largest, limit=limit)
    if len({len(layer.importance) for layer in source.layers}) > 1:
        limit = "layers with as many heads as each other"
        raise InvalidArgumentError("source", value=largest, limit=limit)
    return source


def scored_selection_of(source: HeadSource) -> HeadSelection:
    """Return the selection to draw, which must have scores.

    Raises:
        InvalidArgumentError: as in :func:`selection_of`; the heads were chosen by hand.
        DeltaFileError: the file is not a head delta.
    """
    selection = selection_of(source)
    if not selection.layers:
        limit = "heads that were selected by scores; those of this source were chosen by hand"
        raise InvalidArgumentError("source", value=type(source).__name__, limit=limit)
    return selection


def num_heads_of(selection: HeadSelection) -> int:
    """Return H; without scores, as many as the highest selected head shows that there are."""
    if selection.layers:
        return max(len(layer.importance) for layer in selection.layers)
    return 1 + max((head.head for head in selection.heads), default=0)


@dataclass(frozen=True, kw_only=True)
class Run:
    """The curves of one fine-tune.

    Attributes:
        losses: of the batches of the reported steps, by step.
        evaluations: the metrics on the validation split, by step.
        yardsticks: what the metrics are compared with, by name.
    """

    losses: Mapping[int, float]
    evaluations: Mapping[int, Metrics]
    yardsticks: Mapping[str, Metrics]


def run_of(events: EventSource) -> Run:
    """Read the curves from a run's events; an event that is repeated after a resume counts once.

    Args:
        events: ``TrainingEvent`` objects, or events of a job as its service sends them, one by one
            or as a page.

    Raises:
        InvalidArgumentError: something else, or an evaluation without metrics.
    """
    losses: dict[int, float] = {}
    evaluations: dict[int, Metrics] = {}
    yardsticks: Mapping[str, Metrics] = {}
    for kind, content in _contents(events):
        if kind == "step":
            losses[_step(content)] = number(content.get("loss"))
        elif kind == "metrics":
            metrics = {name: value for name, value in content.items() if name != "step"}
            if not metrics:
                raise InvalidArgumentError("events", value=_outline(content), limit=_EVALUATION)
            evaluations[_step(content)] = metrics
        elif kind == "yardsticks":
            yardsticks = _known(content)
    return Run(
        losses=dict(sorted(losses.items())),
        evaluations=dict(sorted(evaluations.items())),
        yardsticks=yardsticks,
    )


def _contents(events: EventSource) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Yield type and data of each event, in the form of a job's events."""
    for event in _each(events):
        if isinstance(event, TrainingEvent):
            yield _of_training(event)
        elif isinstance(event, Mapping) and isinstance(event.get("data"), Mapping):
            yield str(event.get("type")), event["data"]
        else:
            raise InvalidArgumentError("events", value=_outline(event), limit=_EVENTS)


def _each(events: EventSource) -> Iterable[Any]:
    listed = events.get("data") if isinstance(events, Mapping) else events
    if isinstance(listed, Mapping | str) or not isinstance(listed, Iterable):
        raise InvalidArgumentError("events", value=_outline(events), limit=_EVENTS)
    return listed


def _of_training(event: TrainingEvent) -> tuple[str, Mapping[str, Any]]:
    if event.kind == "evaluated":
        return "metrics", {"step": event.step, **event.metrics}
    if event.kind == "step":
        return "step", {"step": event.step, "loss": event.loss}
    return event.kind, event.yardsticks


def _step(content: Mapping[str, Any]) -> int:
    step = as_integer(content.get("step"))
    if step is None:
        raise InvalidArgumentError("events", value=_outline(content), limit="steps are integers")
    return step


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The metrics of a tuned model, and of what it is compared with.

    Attributes:
        metrics: of the tuned model.
        yardsticks: the same of the others, by name.
        metric: by which the best step was chosen, if the source names it.
    """

    metrics: Metrics
    yardsticks: Mapping[str, Metrics] = field(default_factory=dict)
    metric: str | None = None


def outcome_of(source: ResultSource) -> Outcome:
    """Read the result of a fine-tune.

    Args:
        source: a ``FinetuneResult``; or the document of a finished job or of ``hifi tune --json``.

    Raises:
        InvalidArgumentError: something else, or a result without metrics: there was no validation
            split, or the job has not succeeded.
    """
    if isinstance(source, Mapping):
        result = source.get("result")
        task = _entry(_entry(source, "spec"), "task")
        metrics, yardsticks = _entry(result, "metrics"), _entry(result, "yardsticks")
    elif isinstance(source, hifi.FinetuneResult):  # loaded only to look at one
        task = source.delta.metadata.task or {}
        metrics, yardsticks = source.metrics, source.yardsticks
    else:
        raise InvalidArgumentError("result", value=type(source).__name__, limit=_RESULT)
    if not metrics:
        limit = f"{_RESULT}, of a run with a validation split"
        raise InvalidArgumentError("result", value=_outline(source), limit=limit)
    metric = task.get("metric")
    return Outcome(
        metrics=metrics,
        yardsticks=_known(yardsticks),
        metric=metric if isinstance(metric, str) else None,
    )


def _known(yardsticks: Mapping[str, Any]) -> dict[str, Metrics]:
    """Leave out the yardsticks that a run has not: in JSON they are null."""
    return {name: entry for name, entry in yardsticks.items() if isinstance(entry, Mapping)}


def _entry(document: object, name: str) -> Mapping[str, Any]:
    entry = document.get(name) if isinstance(document, Mapping) else None
    return entry if isinstance(entry, Mapping) else {}


def metric_to_draw(given: str | None, *, chosen: str | None = None, there: Metrics) -> str:
    """Return which metric to draw.

    Args:
        given: the caller's, if there is one.
        chosen: the run's, if it is known.
        there: the metrics that there are.

    Returns:
        Without any, the first that a task type declares; the loss only if nothing else is there.

    Raises:
        InvalidArgumentError: there is no such metric.
    """
    wanted = chosen if given is None and chosen in there else given
    if wanted is None:
        declared = (name for name in metric_names() if name in there)
        wanted = next(chain(declared, (name for name in there if name != "loss")), "loss")
    if wanted not in there:
        raise InvalidArgumentError("metric", value=wanted, limit=f"one of {', '.join(there)}")
    return wanted


def number(value: object) -> float:
    """Return a finite number of a document; anything else, as JSON's null for NaN, is NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value) if abs(value) <= sys.float_info.max else math.nan


def _outline(value: object) -> str:
    """Describe a refused value in a few words."""
    if isinstance(value, Mapping):
        return f"{type(value).__name__} with {', '.join(map(str, list(value)[:8])) or 'nothing'}"
    return type(value).__name__
