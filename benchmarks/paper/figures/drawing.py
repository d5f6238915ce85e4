"""Drawing that several figures share: colours and lines that differ, bands, a colour bar."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from hifi.plots.canvas import BLACK, BLUE, GREEN, ORANGE, PURPLE
from hifi.plots.head_maps import COLOURS as MAP

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (BLACK, BLUE, ORANGE, GREEN, PURPLE)
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_SHADE = 0.2


def band(
    ax: Axes,
    mean: np.ndarray,
    *,
    sd: np.ndarray | None,
    colour: str,
    line: str | tuple[int, tuple[int, ...]],
    label: str,
) -> None:
    """Draw means ``[N]`` as a line over 0 … N−1, with a band of one standard deviation."""
    places = np.arange(len(mean))
    ax.plot(places, mean, color=colour, linestyle=line, linewidth=1.2, label=label)
    if sd is not None:
        ax.fill_between(places, mean - sd, mean + sd, color=colour, alpha=_SHADE, linewidth=0)


def share_bar(figure: Figure, places: np.ndarray, *, label: str) -> None:
    """Draw one colour bar from 0 to 1 beside all axes."""
    shares = ScalarMappable(Normalize(0, 1), cmap=MAP)
    figure.colorbar(shares, ax=places.flatten().tolist(), label=label, shrink=0.6)
