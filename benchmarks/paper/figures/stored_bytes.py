"""Quality against stored bytes: a line for each family of methods and each encoding.

The runs are those of the methods ``stored``, the numbers those of the table ``stored``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from benchmarks.paper.figures.drawing import COLOURS
from benchmarks.paper.figures.figure import Numbers, PaperFigure, Request
from benchmarks.paper.methods import FAMILIES
from benchmarks.paper.tables.stored import collect
from hifi.deltas.metadata import ENCODINGS
from hifi.errors import DataError
from hifi.plots.canvas import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FAMILY_OF = {method: family for family, methods in FAMILIES.items() for method in methods}
_STYLES = dict(zip(ENCODINGS, (("-", "o"), ("--", "s"), (":", "^")), strict=True))


def compute(request: Request) -> Numbers:
    """Collect bytes and quality of every family in every encoding.

    Raises:
        DataError: no results, none of these methods, or none that has every task.
    """
    lines = [line for line in request.lines() if line["method"] in _FAMILY_OF]
    if not lines:
        reason = f"--results has no runs of the methods stored on {request.source.name}"
        raise DataError(reason)
    rows = collect(lines)
    groups: dict[tuple[str, str, str], list[Numbers]] = defaultdict(list)
    left_out = set()
    for each in rows:
        shots, name = each.row
        method, _, variant = name.partition("/")
        if each.average is None:
            left_out.add(f"{shots} {name}")
            continue
        family = " ".join(part for part in (_FAMILY_OF[method], variant) if part)
        point = {"method": name, "bytes": each.bytes, "average": each.average}
        groups[shots, family, each.encoding].append(point)
    if not groups:
        raise DataError(f"no method in {request.results} has every task: an average needs all")
    return {
        "tasks": list(rows[0].table.tasks),
        "lines": [
            {"shots": shots, "family": family, "encoding": encoding, "points": points}
            for (shots, family, encoding), points in groups.items()
        ],
        "left_out": sorted(left_out),
    }


def draw(numbers: Numbers) -> Figure:
    """Draw an axes for each number of shots, over bytes on a logarithmic scale."""
    sizes = list(dict.fromkeys(line["shots"] for line in numbers["lines"]))
    families = list(dict.fromkeys(line["family"] for line in numbers["lines"]))
    figure = new_figure(6.4 * len(sizes), 5.4)
    for ax, shots in zip(figure.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
        for line in numbers["lines"]:
            if line["shots"] != shots:
                continue
            style, marker = _STYLES[line["encoding"]]
            ax.plot(
                [point["bytes"] for point in line["points"]],
                [point["average"] for point in line["points"]],
                color=COLOURS[families.index(line["family"]) % len(COLOURS)],
                linestyle=style,
                marker=marker,
                markersize=4,
                label=f"{line['family']}, {line['encoding']}",
            )
        ax.set_xscale("log")
        ax.set_xlabel("bytes of the stored file")
        ax.set_ylabel(f"mean of {', '.join(numbers['tasks'])}, ×100")
        ax.set_title(f"rows: {shots}", loc="left")
        ax.grid(alpha=0.3)
        ax.legend(fontsize="x-small")
    return figure


def notes(numbers: Numbers) -> Iterator[str]:
    """Describe the best point of each line, and what was left out."""
    for line in numbers["lines"]:
        best = max(line["points"], key=lambda point: point["average"])
        yield (
            f"{line['shots']}: {line['family']}, {line['encoding']}: best {best['average']:.1f} "
            f"with {best['method']}, {best['bytes'] / 1000:,.1f} kB"
        )
    if numbers["left_out"]:
        yield f"Left out, as a task is missing: {', '.join(numbers['left_out'])}"


FIGURE = PaperFigure(
    words="quality against stored bytes by family and encoding, from --results",
    compute=compute,
    draw=draw,
    notes=notes,
    inputs=frozenset({"results"}),
)
