"""Figures of several pictures: the correlations of all layers, and all that a selection records."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from hifi.plots.canvas import new_figure
from hifi.plots.head_maps import (
    COLOURS,
    importance,
    is_importance,
    map_size,
    number_heads,
    richness,
    scores,
)
from hifi.plots.head_pairs import draw_pairs
from hifi.plots.sources import HeadSource, num_heads_of, scored_selection_of, selection_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

    from hifi.selection.head_selection import HeadSelection

_FEW_COLUMNS = 6
_MOST_TICKS = 12
_PANEL, _BAR, _TITLE = 1.9, 1.2, 0.3  # inches


def correlations(source: HeadSource) -> Figure:
    """Draw the correlation r between the heads of every layer, each on its own scale.

    Args:
        source: as in ``correlation``.

    Returns:
        The figure: one axes for each layer, layer 0 first, and the colour bar's.

    Raises:
        InvalidArgumentError, DeltaFileError: as in ``scored_selection_of``.
    """
    selection = scored_selection_of(source)
    columns = min(_FEW_COLUMNS, selection.num_layers)
    rows = math.ceil(selection.num_layers / columns)
    figure = new_figure(columns * _PANEL + _BAR, rows * (_PANEL + _TITLE) + _TITLE)
    _draw_grid(figure, selection, columns=columns)
    return figure


def overview(source: HeadSource, *, title: str | None = None) -> Figure:
    """Draw all that a selection records of its heads.

    Args:
        source: as in ``scores``.
        title: above everything.

    Returns:
        The figure: what ranked the heads; the paper's importance, if that did not; information
        richness; and the correlations of all layers. Of heads chosen by hand, only which they are.

    Raises:
        InvalidArgumentError, DeltaFileError: as in ``scores``.
    """
    selection = selection_of(source)
    width, height = map_size(selection)
    if not selection.layers:
        figure = new_figure(width, height + _TITLE)
        scores(selection, ax=figure.add_subplot())
    else:
        figure = _draw_scored(selection, width=width, height=height)
    if title is not None:
        figure.suptitle(title, parse_math=False)  # a file's name may have dollar signs
    return figure


def _draw_scored(selection: HeadSelection, *, width: float, height: float) -> Figure:
    """Draw heat maps of ``width`` by ``height`` inches above the correlations of all layers."""
    draws = [scores, richness] if is_importance(selection) else [scores, importance, richness]
    columns = min(int((len(draws) * width - _BAR) / _PANEL), selection.num_layers)
    grid_height = math.ceil(selection.num_layers / columns) * (_PANEL + _TITLE) + _TITLE
    figure = new_figure(len(draws) * width, height + grid_height + _TITLE)
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=[height, grid_height])
    maps, grid = parts[:, 0]
    for draw, ax in zip(draws, maps.subplots(1, len(draws)), strict=True):
        draw(selection, ax=ax)
    _draw_grid(grid, selection, columns=columns)
    return figure


def _draw_grid(figure: Figure | SubFigure, selection: HeadSelection, *, columns: int) -> None:
    """Draw r of every layer in ``columns`` columns, with one colour bar."""
    heads, layers = num_heads_of(selection), selection.num_layers
    places = figure.subplots(math.ceil(layers / columns), columns, squeeze=False).flatten()
    for layer, ax in enumerate(places[:layers]):
        image = draw_pairs(ax, selection, layer=layer)
        largest = image.norm.vmax or 0.0
        ax.set_title(f"layer {layer}, r up to {largest:.2g}", fontsize="small", loc="left")
        number_heads(ax, x=heads, y=heads, most=_MOST_TICKS)
        ax.tick_params(labelsize="x-small")
    for ax in places[layers:]:
        ax.remove()
    figure.suptitle("correlation r between the heads of each layer; dots: selected heads")
    shares = ScalarMappable(Normalize(0, 1), cmap=COLOURS)
    label = "share of the layer's largest r"
    figure.colorbar(shares, ax=places[:layers].tolist(), label=label)
