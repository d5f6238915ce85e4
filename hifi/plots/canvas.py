"""Figures without pyplot, and the files that they are written to."""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from hifi.errors import InvalidArgumentError
from hifi.files import write_atomically

# What would make equal pictures differ: dates, in the words of each format.
_METADATA = {".pdf": {"CreationDate": None}, ".png": {}, ".svg": {"Date": None}}
ENDINGS = tuple(_METADATA)
_DOTS_PER_INCH = 150
_PAD = 0.08  # inches

# Okabe and Ito's colours, which people with any kind of colour blindness can tell apart.
BLUE, ORANGE, GREEN, PURPLE, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000"
GREY, WHITE = "#8C8C8C", "#FFFFFF"


def new_figure(width: float, height: float) -> Figure:
    """Make a figure of ``width`` by ``height`` inches that places its own parts."""
    layout = ConstrainedLayoutEngine(w_pad=_PAD, h_pad=_PAD)
    figure = Figure(figsize=(width, height), dpi=_DOTS_PER_INCH, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def axes_or_new(ax: Axes | None, *, width: float, height: float) -> Axes:
    """Return the caller's axes, or those of a new figure of ``width`` by ``height`` inches."""
    return new_figure(width, height).add_subplot() if ax is None else ax


def figure_of(ax: Axes) -> Figure:
    """Return the whole figure of some axes.

    Raises:
        InvalidArgumentError: the axes were removed from their figure.
    """
    figure = ax.get_figure(root=True)
    if figure is None:
        raise InvalidArgumentError("ax", value=ax, limit="axes of a figure")
    return figure


def check_ending(path: str | Path, *, param: str = "path") -> str:
    """Return the ending of a picture's file, in lower case.

    Args:
        path: the file.
        param: the argument's name, for the error.

    Raises:
        InvalidArgumentError: another ending than ``.pdf``, ``.png`` or ``.svg``.
    """
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        limit = f"a file name that ends with {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}"
        raise InvalidArgumentError(param, value=str(path), limit=limit)
    return ending


def save(drawn: Axes | Figure, path: str | Path) -> None:
    """Write a picture, atomically; equal pictures give equal bytes with equal versions.

    Args:
        drawn: a figure, or axes of the figure to write.
        path: the file, whose ending is the format: ``.pdf``, ``.png`` or ``.svg``.

    Raises:
        InvalidArgumentError: neither a figure nor axes, or another ending.
        StorageError: the file cannot be written, as in ``write_atomically``.
    """
    ending = check_ending(path)
    figure = figure_of(drawn) if isinstance(drawn, Axes) else drawn
    if not isinstance(figure, Figure):
        raise InvalidArgumentError("drawn", value=drawn, limit="a Figure, or Axes of one")
    # The names of an SVG's parts are random without a salt, which only a setting can give.
    with rc_context({"svg.hashsalt": "hifi"}), write_atomically(path) as temporary:
        figure.savefig(temporary, format=ending[1:], metadata=_METADATA[ending])
