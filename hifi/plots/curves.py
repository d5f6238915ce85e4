"""How one run went: its losses, and a metric on the validation split beside its yardsticks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from matplotlib.ticker import MaxNLocator

from hifi.errors import InvalidArgumentError
from hifi.plots.canvas import ORANGE, axes_or_new
from hifi.plots.result_bars import TUNED, style_of
from hifi.plots.sources import EventSource, metric_to_draw, number, run_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE = {"width": 6.0, "height": 3.6}


def losses(events: EventSource, *, ax: Axes | None = None) -> Axes:
    """Draw the training loss of the reported steps, and the loss on the validation split.

    A fine-tune reports every step, a job about a hundred.

    Args:
        events: the ``TrainingEvent`` objects of a run (``on_event=events.append``), or the events
            of a job as its service sends them, one by one or as a page.
        ax: draws here; by default in a new figure.

    Returns:
        The axes. Their first line holds the steps and the training losses; the second, if there
        were evaluations, those of the validation losses.

    Raises:
        InvalidArgumentError: not events, or no training step among them.
    """
    run = run_of(events)
    if not run.losses:
        raise InvalidArgumentError("events", value="no step", limit="events of training steps")
    ax = axes_or_new(ax, **_SIZE)
    ax.plot(*_points(run.losses), color=TUNED.colour, linewidth=1, label="training batches")
    validated = {step: number(each.get("loss")) for step, each in run.evaluations.items()}
    if validated:
        ax.plot(*_points(validated), color=ORANGE, marker="o", label="validation split")
    _finish(ax, unit="loss")
    return ax


def validation(events: EventSource, *, metric: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw a metric on the validation split over the steps, beside its yardsticks.

    Args:
        events: as in :func:`losses`.
        metric: which; by default the first that the task type has.
        ax: draws here; by default in a new figure.

    Returns:
        The axes. Their first line holds the steps and the metric; each further one is a yardstick.

    Raises:
        InvalidArgumentError: not events, no evaluation among them, or no such metric.
    """
    run = run_of(events)
    if not run.evaluations:
        limit = "events of a run with a validation split"
        raise InvalidArgumentError("events", value="no evaluation", limit=limit)
    name = metric_to_draw(metric, there=next(iter(run.evaluations.values())))
    ax = axes_or_new(ax, **_SIZE)
    points = {step: number(each.get(name)) for step, each in run.evaluations.items()}
    ax.plot(*_points(points), color=TUNED.colour, marker="o", label=TUNED.words)
    for yardstick, metrics in run.yardsticks.items():
        level = number(metrics.get(name))
        style = style_of(yardstick)
        ax.axhline(level, color=style.colour, linestyle=style.line, label=style.words)
    _finish(ax, unit=f"{name} on the validation split")
    return ax


def _points(values: Mapping[int, float]) -> tuple[list[int], list[float]]:
    return list(values), list(values.values())


def _finish(ax: Axes, *, unit: str) -> None:
    ax.set_xlabel("optimizer step")
    ax.set_ylabel(unit, parse_math=False)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.3)
    for text in ax.legend().get_texts():
        text.set_parse_math(False)
