"""How quickly the singular values of head outputs add up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps

from hifi.arguments import as_integer, check_number
from hifi.backbones.heads import HeadId
from hifi.data.settings import DEFAULT_XI
from hifi.errors import InvalidArgumentError
from hifi.plots.canvas import BLACK, axes_or_new
from hifi.plots.head_maps import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

_BRIGHTEST = 0.9  # of the colours: yellow can hardly be seen on white
_LINES = ("-", "--", "-.", ":")


def singular_values(
    shares: ArrayLike,
    *,
    heads: Iterable[HeadId] | None = None,
    xi: float = DEFAULT_XI,
    ax: Axes | None = None,
) -> Axes:
    """Draw the cumulative singular values of head outputs (Eq. 2), and the share ξ to reach.

    Args:
        shares: of ``hifi.selection.singular_values.cumulative_singular_values``, ``[L, H, T]``.
        heads: a line for each; by default a line for each layer, the mean of its heads.
        xi: ξ, drawn as a level.
        ax: draws here; by default in a new figure.

    Returns:
        The axes. Each line but the last, which is the level, holds t = 1 … T and the shares.

    Raises:
        InvalidArgumentError: no numbers or another shape, a head that is not there, or ξ outside
            (0, 1].
    """
    xi = check_number("xi", xi, is_allowed=lambda share: 0 < share <= 1, limit="a number in (0, 1]")
    known = _as_array(shares)
    lines = _lines_of(known, heads)
    ax = axes_or_new(ax, width=6.0, height=4.0)
    counts = np.arange(1, known.shape[2] + 1)
    for place, (name, line) in enumerate(lines.items()):
        colour = colormaps[COLOURS](_BRIGHTEST * place / max(1, len(lines) - 1))
        ax.plot(counts, line, color=colour, linestyle=_LINES[place % len(_LINES)], label=name)
    ax.axhline(xi, color=BLACK, linewidth=0.8, label=f"ξ = {xi:g}")
    ax.set_ylim(0, 1.02)
    averaged = ", mean of a layer's heads" if heads is None else ""
    ax.set_title(f"singular values of head outputs{averaged}", loc="left")
    ax.set_xlabel("number of leading singular values")
    ax.set_ylabel("share of the sum of all")
    ax.grid(alpha=0.3)
    ax.legend(loc="lower right", ncols=1 + len(lines) // 9, fontsize="small")
    return ax


def _as_array(shares: ArrayLike) -> np.ndarray:
    """Return the shares ``[L, H, T]``, checked."""
    try:
        known = np.asarray(shares, dtype=float)
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        limit = "numbers that numpy can read, shape [L, H, T]"
        raise InvalidArgumentError("shares", value=type(shares).__name__, limit=limit) from error
    if known.ndim != 3 or 0 in known.shape:
        raise InvalidArgumentError("shares", value=known.shape, limit="shape [L, H, T]")
    return known


def _lines_of(shares: np.ndarray, heads: Iterable[HeadId] | None) -> dict[str, Any]:
    """Return the lines to draw by their names, bottom layer first."""
    if heads is None:
        return {f"layer {layer}": each.mean(0) for layer, each in enumerate(shares)}
    limit = f"HeadIds of layers 0..{shares.shape[0] - 1}, heads 0..{shares.shape[1] - 1}"
    if not isinstance(heads, Iterable):
        raise InvalidArgumentError("heads", value=heads, limit=limit)
    lines = {}
    for each in heads:
        if not isinstance(each, HeadId):
            raise InvalidArgumentError("heads", value=each, limit=limit)
        layer, head = as_integer(each.layer), as_integer(each.head)
        if layer not in range(shares.shape[0]) or head not in range(shares.shape[1]):
            raise InvalidArgumentError("heads", value=each, limit=limit)
        lines[f"layer {layer}, head {head}"] = shares[layer, head]
    return lines
