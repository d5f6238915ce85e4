"""Draw heads in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.style import Style
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

# Dark blue to yellow, as in matplotlib's viridis; white text on the first two, black on the rest.
_SHADES = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
_DARK_SHADES = 2
_LABEL_WIDTH = 8


def heat_map(
    importance: Sequence[Sequence[float | None]], *, selected: Sequence[Sequence[int]], width: int
) -> Text:
    """Draw the importance of every head, the top layer first, the selected heads in brackets.

    A cell is a head's share of its layer's importance in percent, or 0..9 between the layer's
    least and greatest share if ``width`` is too small. Colours compare the heads of one layer, as
    the selection does.

    Args:
        importance: ``[L][H]``, each row summing to 1; None counts as 0.
        selected: the selected heads of each layer.
        width: columns of the terminal.
    """
    num_heads = len(importance[0])
    cell = next((c for c in (6, 4) if _LABEL_WIDTH + c * num_heads <= width), 3)
    drawn = Text(no_wrap=True)
    for layer in reversed(range(len(importance))):
        drawn.append(f"layer {layer:<2}")
        shares = [share or 0.0 for share in importance[layer]]
        low, high = min(shares), max(shares)
        for head, share in enumerate(shares):
            relative = (share - low) / (high - low) if high > low else 1.0
            is_selected = head in selected[layer]
            number = _number(share, relative=relative, cell=cell)
            text = f"[{number}]" if is_selected else f" {number} "
            drawn.append(text, style=_shade(relative, is_selected=is_selected))
        drawn.append("\n")
    heads = "".join(f"{head:^{cell}}" for head in range(num_heads))
    drawn.append(f"{'head':<{_LABEL_WIDTH}}{heads}".rstrip())
    return drawn


def _number(share: float, *, relative: float, cell: int) -> str:
    if cell == 6:
        return f"{100 * share:4.1f}"
    if cell == 4:
        return f"{100 * share:2.0f}"
    return str(min(9, int(10 * relative)))


def _shade(relative: float, *, is_selected: bool) -> Style:
    level = min(len(_SHADES) - 1, int(relative * len(_SHADES)))
    red, green, blue = _SHADES[level]
    return Style(
        color="bright_white" if level < _DARK_SHADES else "black",
        bgcolor=f"rgb({red},{green},{blue})",
        bold=is_selected,
    )


def print_heads(console: Console, selection: Mapping[str, Any]) -> None:
    """Print a heat map with the selected heads, or a list of them if there are no scores.

    Args:
        console: prints it.
        selection: a dictionary of ``HeadSelection.to_dict``, or a job's heads from a server.
    """
    layers = selection["layers"]
    selected = [layer["selected"] for layer in layers]
    if all("importance" in layer for layer in layers):
        importance = [layer["importance"] for layer in layers]
        drawn = heat_map(importance, selected=selected, width=console.width)
    else:
        lines = [
            f"layer {layer:>2}  heads {', '.join(map(str, heads))}"
            for layer, heads in reversed(list(enumerate(selected)))
            if heads
        ]
        drawn = Text("\n".join(lines))
    console.print(drawn, soft_wrap=True)
