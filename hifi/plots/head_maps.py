"""A number of every head as a heat map, layers by heads, with the selected heads marked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.ticker import MaxNLocator

from hifi.data.head_shares import pool_of, shares_of
from hifi.plots.canvas import BLACK, WHITE, axes_or_new, figure_of
from hifi.plots.sources import HeadSource, num_heads_of, scored_selection_of, selection_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hifi.selection.head_selection import HeadSelection

COLOURS = "viridis"  # even in brightness, so that it reads in grey and by colour-blind people
# White in a black ring is seen on every colour.
MARK: dict[str, Any] = {
    "marker": "o",
    "markersize": 6,
    "markerfacecolor": WHITE,
    "markeredgecolor": BLACK,
    "markeredgewidth": 1.2,
}
_BLANK = ListedColormap(["#E5E5E5"])


def scores(source: HeadSource, *, ax: Axes | None = None) -> Axes:
    """Draw what ranked the heads: each head's share, in percent, of the heads it competed with.

    Those are the heads of its layer, or with a budget all heads. Heads that were chosen by hand
    have no scores: then the picture has the marks alone.

    Args:
        source: a selection, a head delta or its file, or a job's heads: see
            ``hifi.plots.sources.selection_of``.
        ax: draws here; by default in a new figure.

    Returns:
        The axes. Their image holds the shares ``[L, H]``, layer 0 at the bottom.

    Raises:
        InvalidArgumentError, DeltaFileError: as in ``selection_of``.
    """
    selection = selection_of(source)
    if not selection.layers:
        return _draw_choice(selection, ax=ax)
    pool = pool_of(selection.budget)
    values = [layer.values.tolist() for layer in selection.layers]
    name = "importance (PageRank)" if is_importance(selection) else f"score {selection.score}"
    return _draw(
        100 * np.array(shares_of(values, pool=pool)),
        selection=selection,
        title=name,
        unit=f"share of the {pool}'s sum, %",
        ax=ax,
    )


def importance(source: HeadSource, *, ax: Axes | None = None) -> Axes:
    """Draw the paper's importance p* of every head (Eq. 10), in percent of its layer's sum.

    Args:
        source: as in :func:`scores`; its heads must have scores, whichever ranked them.
        ax: draws here; by default in a new figure.

    Returns:
        The axes. Their image holds 100·p* ``[L, H]``, layer 0 at the bottom.

    Raises:
        InvalidArgumentError, DeltaFileError: as in ``scored_selection_of``.
    """
    selection = scored_selection_of(source)
    return _draw(
        100 * np.array([layer.importance.numpy() for layer in selection.layers]),
        selection=selection,
        title="importance (PageRank)",
        unit="share of the layer's sum, %",
        ax=ax,
    )


def richness(source: HeadSource, *, ax: Axes | None = None) -> Axes:
    """Draw the information richness I of every head (Eq. 3).

    Args:
        source: as in :func:`scores`; its heads must have scores, whichever ranked them.
        ax: draws here; by default in a new figure.

    Returns:
        The axes. Their image holds I ``[L, H]``, layer 0 at the bottom.

    Raises:
        InvalidArgumentError, DeltaFileError: as in ``scored_selection_of``.
    """
    selection = scored_selection_of(source)
    xi = cast("float", selection.xi)  # recorded with the scores
    return _draw(
        np.array([layer.information_richness.numpy() for layer in selection.layers]),
        selection=selection,
        title="information richness",
        unit=f"singular directions that carry {100 * xi:.4g}%",
        ax=ax,
    )


def is_importance(selection: HeadSelection) -> bool:
    """Return whether the paper's importance ranked the heads."""
    return selection.score == "pagerank" and selection.budget is None


def map_size(selection: HeadSelection) -> tuple[float, float]:
    """Return width and height in inches that suit a heat map of these heads."""
    width = min(12.0, max(5.6, 2.3 + 0.34 * num_heads_of(selection)))
    return width, min(10.0, max(2.6, 1.4 + 0.3 * selection.num_layers))


def number_heads(ax: Axes, *, x: int, y: int, most: int = 16) -> None:
    """Number ``x`` columns and ``y`` rows: every one if there are at most ``most``."""
    for axis, count in ((ax.xaxis, x), (ax.yaxis, y)):
        if count <= most:
            axis.set_ticks(range(count))
        else:
            axis.set_major_locator(MaxNLocator(nbins=most // 2, integer=True))


def mark_legend(ax: Axes) -> None:
    """Explain the marks above the axes, on the right."""
    ax.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        borderaxespad=0.1,
        handlelength=0.8,
        frameon=False,
    )


def _draw(
    values: np.ndarray, *, selection: HeadSelection, title: str, unit: str, ax: Axes | None
) -> Axes:
    width, height = map_size(selection)
    ax = axes_or_new(ax, width=width, height=height)
    image = ax.imshow(values, cmap=COLOURS, origin="lower", aspect="auto", interpolation="none")
    _finish(ax, selection, title=title)
    figure_of(ax).colorbar(image, ax=ax, label=unit)
    return ax


def _draw_choice(selection: HeadSelection, *, ax: Axes | None) -> Axes:
    """Draw which heads are tuned, in a grid up to the last of them."""
    width, height = map_size(selection)
    ax = axes_or_new(ax, width=width, height=height)
    blank = np.zeros((max(1, selection.num_layers), num_heads_of(selection)))
    ax.imshow(blank, cmap=_BLANK, origin="lower", aspect="auto", interpolation="none")
    _finish(ax, selection, title="no scores recorded")
    for axis, count in ((ax.xaxis, blank.shape[1]), (ax.yaxis, blank.shape[0])):
        axis.set_ticks([place + 0.5 for place in range(count - 1)], minor=True)
    ax.tick_params(which="minor", length=0)
    ax.grid(which="minor", color=WHITE)
    return ax


def _finish(ax: Axes, selection: HeadSelection, *, title: str) -> None:
    """Mark the selected heads and label everything."""
    layers, heads = selection.num_layers, num_heads_of(selection)
    ax.set_title(title, loc="left")
    ax.set_xlabel("head")
    ax.set_ylabel("layer")
    number_heads(ax, x=heads, y=layers)
    known = f" of {layers * heads}" if selection.layers else ""
    ax.plot(
        [head.head for head in selection.heads],
        [head.layer for head in selection.heads],
        linestyle="none",
        label=f"selected: {len(selection.heads)}{known} heads",
        **MARK,
    )
    mark_legend(ax)
