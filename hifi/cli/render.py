"""Draw heads in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from rich.style import Style
from rich.text import Text

from hifi.data.head_shares import Pool, pool_of, shares_of
from hifi.data.settings import IMPLIED

if TYPE_CHECKING:
    from rich.console import Console

# Dark blue to yellow, as in matplotlib's viridis; white text on the first two, black on the rest.
_SHADES = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
_DARK_SHADES = 2
_LABEL_WIDTH = 8


def heat_map(
    shares: Sequence[Sequence[float | None]],
    *,
    selected: Sequence[Sequence[int]],
    width: int,
    pool: Pool = "layer",
) -> Text:
    """Draw the score of every head, the top layer first, the selected heads in brackets.

    A cell is a head's share of its pool's scores in percent, or 0..9 between the pool's least and
    greatest share if ``width`` is too small. Colours compare the heads of one pool, as the
    selection does.

    Args:
        shares: of every head ``[L][H]``; those of a pool sum to 1; None counts as 0.
        selected: the selected heads of each layer.
        width: columns of the terminal.
        pool: the heads that compete: those of a ``layer``, or of the whole ``model``.
    """
    num_heads = len(shares[0])
    cell = next((c for c in (6, 4) if _LABEL_WIDTH + c * num_heads <= width), 3)
    drawn = Text(no_wrap=True)
    known = [[share or 0.0 for share in row] for row in shares]
    for layer in reversed(range(len(known))):
        drawn.append(f"layer {layer:<2}")
        rivals = known[layer] if pool == "layer" else list(chain(*known))
        low, high = min(rivals), max(rivals)
        for head, share in enumerate(known[layer]):
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

    If they were not selected as in the paper, a second heat map shows the paper's importance.

    Args:
        console: prints it.
        selection: a dictionary of ``HeadSelection.to_dict``, or a job's heads from a server.
    """
    layers = selection["layers"]
    selected = [layer["selected"] for layer in layers]
    if not all("importance" in layer for layer in layers):
        lines = [
            f"layer {layer:>2}  heads {', '.join(map(str, heads))}"
            for layer, heads in reversed(list(enumerate(selected)))
            if heads
        ]
        console.print(Text("\n".join(lines)), soft_wrap=True)
        return
    draw = partial(heat_map, selected=selected, width=console.width)
    importance = draw([layer["importance"] for layer in layers])
    known = {**IMPLIED, **selection}
    score, budget = known["score"], known["budget"]
    if score == "pagerank" and budget is None:
        console.print(importance, soft_wrap=True)
        return
    pool = pool_of(budget)
    console.print(f"score {score}, its shares of the {pool}", highlight=False)
    values = [layer.get("values", layer["importance"]) for layer in layers]
    console.print(draw(shares_of(values, pool=pool), pool=pool), soft_wrap=True)
    console.print("\nimportance in the paper (PageRank), its shares of the layer", highlight=False)
    console.print(importance, soft_wrap=True)
