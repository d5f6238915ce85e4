"""How results look in a terminal; what they are is decided elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.style import Style
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

# Dark blue to yellow, as matplotlib's viridis; the ink that is readable on each.
_SHADES = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
_DARK_SHADES = 2
_LABEL_WIDTH = 8


def heat_map(
    importance: Sequence[Sequence[float]], *, selected: Sequence[Sequence[int]], width: int
) -> Text:
    """Draw the importance of every head, the top layer first, the selected heads in brackets.

    A cell is a head's share of its layer's importance in percent; where ``width`` has no room for
    that, its rank class 0..9. Colours compare the heads of one layer, as the selection does.

    Args:
        importance: ``[L][H]``, each row summing to 1.
        selected: the selected heads of each layer.
        width: columns of the terminal.
    """
    num_heads = len(importance[0])
    cell = next((c for c in (6, 4) if _LABEL_WIDTH + c * num_heads <= width), 3)
    drawn = Text(no_wrap=True)
    for layer in reversed(range(len(importance))):
        drawn.append(f"layer {layer:<2}")
        low, high = min(importance[layer]), max(importance[layer])
        for head, share in enumerate(importance[layer]):
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


def head_list(selected: Sequence[Sequence[int]]) -> Text:
    """List the selected heads of every layer that has any, the top layer first."""
    lines = [
        f"layer {layer:>2}  heads {', '.join(map(str, heads))}"
        for layer, heads in reversed(list(enumerate(selected)))
        if heads
    ]
    return Text("\n".join(lines))


def print_facts(console: Console, entries: Mapping[str, str]) -> None:
    """Print names and values, a pair per line, however wide."""
    width = max(map(len, entries))
    for name, value in entries.items():
        line = Text.assemble((f"{name:<{width}}  ", "bold"), printable(value))
        console.print(line, soft_wrap=True)


def print_heads(console: Console, selection: Mapping[str, Any]) -> None:
    """Print a heat map with the selected heads, or their list where there are no scores.

    Args:
        console: where to.
        selection: as ``HeadSelection.to_dict`` gives it.
    """
    layers = selection["layers"]
    selected = [layer["selected"] for layer in layers]
    if all("importance" in layer for layer in layers):
        importance = [layer["importance"] for layer in layers]
        drawn = heat_map(importance, selected=selected, width=console.width)
    else:
        drawn = head_list(selected)
    console.print(drawn, soft_wrap=True)


def printable(text: str) -> str:
    """Replace what would steer the terminal: files are written by others."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def format_bytes(size: int) -> str:
    """Write a size for people, in powers of 1000."""
    if size < 1000:
        return f"{size} bytes"
    number = float(size)
    for unit in ("kB", "MB"):
        number /= 1000
        if number < 1000:
            return f"{number:.2f} {unit}"
    return f"{number / 1000:.2f} GB"


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Write metrics on one line, the loss at the end."""
    ordered = sorted(metrics.items(), key=lambda entry: (entry[0] == "loss", entry[0]))
    return "  ".join(f"{name} {value:.4f}" for name, value in ordered)


def format_seconds(seconds: float) -> str:
    """Write a duration as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
