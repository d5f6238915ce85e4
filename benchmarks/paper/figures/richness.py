"""The robustness of information richness (Fig. 3): lines of settings, with bands for seeds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from benchmarks.paper.figures import robustness
from benchmarks.paper.figures.drawing import COLOURS, LINES, band
from benchmarks.paper.figures.figure import Numbers, PaperFigure, Request, array
from benchmarks.paper.figures.robustness import FROZEN, TUNED
from hifi.plots.canvas import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from hifi.selection.head_selection import HeadSelection

_WIDTH, _HEIGHT = 4.2, 1.9  # of a layer's axes, inches


def compute(request: Request) -> Numbers:
    """Compute I of every head in every setting, fine-tuned and frozen."""
    return robustness.numbers(request, _richness)


def _richness(selection: HeadSelection) -> Tensor:
    return torch.stack([layer.information_richness for layer in selection.layers])


def draw(numbers: Numbers) -> Figure:
    """Draw a row for each layer: on the left the fine-tuned model, on the right the frozen one."""
    settings = numbers["settings"]
    layers = len(settings[robustness.STANDARD][TUNED]["mean"])
    figure = new_figure(2 * _WIDTH, layers * _HEIGHT + 0.9)
    places = figure.subplots(layers, 2, squeeze=False, sharey="row", sharex=True)
    for column, state in enumerate((TUNED, FROZEN)):
        for layer, ax in enumerate(places[:, column]):
            for place, (name, setting) in enumerate(settings.items()):
                found = setting[state]
                sd = found["sd"]
                band(
                    ax,
                    array(found["mean"][layer]),
                    sd=None if sd is None else array(sd[layer]),
                    colour=COLOURS[place],
                    line=LINES[place],
                    label=name,
                )
            ax.set_title(f"layer {layer}, {state}", loc="left", fontsize="small")
            ax.grid(alpha=0.3)
    for ax in places[-1]:
        ax.set_xlabel("head")
    for ax in places[:, 0]:
        ax.set_ylabel("I")
    handles, labels = places[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.suptitle(f"information richness {robustness.CAPTION}", fontsize="medium")
    return figure


def notes(numbers: Numbers) -> Iterator[str]:
    """Describe how the heads' ranks agree."""
    yield from robustness.notes(numbers, of="the heads' I")


FIGURE = PaperFigure(
    words="robustness of information richness I in five settings (Fig. 3)",
    compute=compute,
    draw=draw,
    notes=notes,
    inputs=frozenset({"data"}),
)
