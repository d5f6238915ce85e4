"""The correlation r between the heads of one layer, as a matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hifi.arguments import as_integer
from hifi.errors import InvalidArgumentError
from hifi.plots.canvas import GREY, axes_or_new, figure_of
from hifi.plots.head_maps import COLOURS, MARK, mark_legend, number_heads
from hifi.plots.sources import HeadSource, num_heads_of, scored_selection_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

    from hifi.selection.head_selection import HeadSelection


def correlation(source: HeadSource, *, layer: int, ax: Axes | None = None) -> Axes:
    """Draw the correlation r between the heads of one layer (Eq. 7): absolute covariances.

    The diagonal is left out: r of a head with itself is 0 by definition. Selected heads are marked
    on it.

    Args:
        source: a selection with scores, a head delta or its file, or a job's heads: see
            ``hifi.plots.sources.selection_of``.
        layer: from 0 at the bottom.
        ax: draws here; by default in a new figure.

    Returns:
        The axes. Their image holds r ``[H, H]``, masked on the diagonal.

    Raises:
        InvalidArgumentError: no such layer; the source as in ``scored_selection_of``.
        DeltaFileError: the file is not a head delta.
    """
    selection = scored_selection_of(source)
    place = as_integer(layer)
    if place is None or not 0 <= place < selection.num_layers:
        limit = f"an integer from 0 to {selection.num_layers - 1}"
        raise InvalidArgumentError("layer", value=layer, limit=limit)
    ax = axes_or_new(ax, width=4.6, height=4.0)
    image = draw_pairs(ax, selection, layer=place)
    ax.set_title(f"correlation r in layer {place}", loc="left")
    ax.set_xlabel("head")
    ax.set_ylabel("head")
    number_heads(ax, x=num_heads_of(selection), y=num_heads_of(selection))
    mark_legend(ax)
    figure_of(ax).colorbar(image, ax=ax, label="mean absolute covariance")
    return ax


def draw_pairs(ax: Axes, selection: HeadSelection, *, layer: int) -> AxesImage:
    """Draw r of one layer, its selected heads marked, without titles; return the image."""
    pairs = np.ma.masked_invalid(selection.layers[layer].correlation.numpy())
    pairs[np.diag_indices(len(pairs))] = np.ma.masked
    image = ax.imshow(pairs, cmap=COLOURS, vmin=0, interpolation="none")
    ax.set_facecolor(GREY)
    selected = selection.selected_in(layer)
    ax.plot(selected, selected, linestyle="none", label="selected", **MARK)
    return image
