"""The metric of a tuned model beside what costs nothing or little: its yardsticks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from hifi.plots.canvas import BLACK, BLUE, GREEN, ORANGE, PURPLE, WHITE, axes_or_new
from hifi.plots.sources import ResultSource, metric_to_draw, number, outcome_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Style(NamedTuple):
    """How a yardstick is called, and looks: it is told apart without its colour too."""

    words: str
    colour: str
    line: str
    hatch: str


TUNED = Style("tuned model", BLUE, "-", "")
_KNOWN = {
    "majority": Style("majority class or mean", BLACK, ":", ".."),
    "probe": Style("linear probe", ORANGE, "--", "//"),
    "untuned": Style("untuned model", GREEN, "-.", "xx"),
}


def style_of(yardstick: str) -> Style:
    """Return the style of a yardstick, also of one that is not known here."""
    return _KNOWN.get(yardstick, Style(yardstick, PURPLE, "-", ""))


def yardsticks(result: ResultSource, *, metric: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw a metric of a tuned model and of its yardsticks as bars.

    Args:
        result: a ``FinetuneResult``, or the document of a succeeded job or of ``hifi tune --json``.
        metric: which; by default the one that chose the best step, if the result names it, else
            the first that the task type has.
        ax: draws here; by default in a new figure.

    Returns:
        The axes. Their bars are the tuned model's and those of the yardsticks, in this order, from
        the top.

    Raises:
        InvalidArgumentError: not a result, a result without metrics, or no such metric.
    """
    outcome = outcome_of(result)
    name = metric_to_draw(metric, chosen=outcome.metric, there=outcome.metrics)
    styles = [TUNED, *map(style_of, outcome.yardsticks)]
    lengths = [number(each.get(name)) for each in (outcome.metrics, *outcome.yardsticks.values())]
    ax = axes_or_new(ax, width=6.0, height=1.2 + 0.45 * len(styles))
    places = range(len(styles))
    drawn = ax.barh(
        places,
        [0.0 if math.isnan(length) else length for length in lengths],
        color=[style.colour for style in styles],
        hatch=[style.hatch for style in styles],
        edgecolor=WHITE,
    )
    words = ["no number" if math.isnan(length) else f"{length:.4f}" for length in lengths]
    ax.bar_label(drawn, words, padding=3)
    ax.set_yticks(places, [style.words for style in styles], parse_math=False)
    ax.invert_yaxis()
    ax.axvline(0, color=BLACK, linewidth=0.8)
    ax.margins(x=0.2)  # for the numbers
    ax.set_xlabel(f"{name} on the validation split", parse_math=False)
    return ax
