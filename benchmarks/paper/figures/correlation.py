"""The robustness of the correlation between heads (Fig. 4 and 8 to 11): maps of every setting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.paper.figures import robustness
from benchmarks.paper.figures.drawing import share_bar
from benchmarks.paper.figures.figure import Numbers, PaperFigure, Request, array
from benchmarks.paper.figures.robustness import FROZEN, STANDARD, TUNED
from hifi.plots.canvas import GREY, new_figure
from hifi.plots.head_maps import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from hifi.selection.head_selection import HeadSelection

_PANEL = 1.6  # inches


def compute(request: Request) -> Numbers:
    """Compute r of every pair of a layer's heads in every setting, fine-tuned and frozen."""
    return robustness.numbers(request, _correlation, compared=_pairs)


def _correlation(selection: HeadSelection) -> Tensor:
    return torch.stack([layer.correlation for layer in selection.layers])


def _pairs(means: np.ndarray) -> np.ndarray:
    """Return r of each pair of different heads once, ``[L, H·(H−1)/2]``."""
    first, second = np.triu_indices(means.shape[1], k=1)
    pairs: np.ndarray = means[:, first, second]
    return pairs


def draw(numbers: Numbers) -> Figure:
    """Draw a row for each layer: every setting, fine-tuned, and the frozen model's standard one."""
    settings = numbers["settings"]
    columns = [(name, TUNED) for name in settings] + [(STANDARD, FROZEN)]
    layers = len(settings[STANDARD][TUNED]["mean"])
    figure = new_figure(len(columns) * _PANEL + 1.2, layers * _PANEL + 0.8)
    places = figure.subplots(layers, len(columns), squeeze=False)
    for column, (name, state) in enumerate(columns):
        for layer, ax in enumerate(places[:, column]):
            pairs = array(settings[name][state]["mean"][layer])
            np.fill_diagonal(pairs, np.nan)
            ax.imshow(pairs / (np.nanmax(pairs) or 1.0), cmap=COLOURS, vmin=0, vmax=1)
            ax.set_facecolor(GREY)
            ax.set_xticks([])
            ax.set_yticks([])
            if layer == 0:
                ax.set_title(f"{name}, {state}", fontsize="small")
            if column == 0:
                ax.set_ylabel(f"layer {layer}", fontsize="small")
    share_bar(figure, places, label="share of the map's largest r, mean over seeds")
    figure.suptitle(f"correlation r between heads {robustness.CAPTION}", fontsize="medium")
    return figure


def notes(numbers: Numbers) -> Iterator[str]:
    """Describe how the pairs' ranks agree."""
    yield from robustness.notes(numbers, of="r of the pairs of heads")


FIGURE = PaperFigure(
    words="robustness of the correlation r between heads in five settings (Fig. 4, 8-11)",
    compute=compute,
    draw=draw,
    notes=notes,
    inputs=frozenset({"data"}),
)
