"""The effect of k, ξ and d (Fig. 6), and PageRank's iterations.

One pass over the calibration samples scores the heads of the frozen model with every ξ; d needs no
pass of its own. The effect of k is that on tuning, so it comes from a file of results with runs of
the methods ``k``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.paper.figures.figure import Numbers, PaperFigure, Request
from benchmarks.paper.methods import HEADS_PER_LAYER
from benchmarks.paper.methods.heads import K
from benchmarks.paper.tables.table import Line, Table
from hifi.backbones.heads import describe
from hifi.data.settings import DEFAULT_XI, Scoring
from hifi.plots.canvas import BLUE, ORANGE, new_figure
from hifi.selection.capture import capture_head_outputs
from hifi.selection.head_selection import HeadSelection
from hifi.selection.pagerank import pagerank
from hifi.selection.paper_numbers import PaperNumbers, PaperSums
from hifi.training.preparation import calibration_batches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from hifi.training.preparation import Prepared

XIS = tuple(sorted({0.3, 0.5, 0.6, 0.7, 0.8, 0.95, 0.99, DEFAULT_XI}))
DAMPINGS = tuple(sorted({0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, Scoring.damping}))
TOLERANCE = 1e-6
_PANEL = (4.4, 3.6)  # inches


def compute(request: Request) -> Numbers:
    """Compute overlap and iterations over the grids of ξ and d, and collect the runs of each k."""
    run = request.run(request.splits(), seed=request.seeds[0])
    ready = run.prepare(has_validation=False)
    samples = Scoring().count_samples(rows=len(ready.data.train))
    batches = calibration_batches(ready, n=samples, settings=run.settings)
    by_xi = score(ready, batches)
    default = by_xi[DEFAULT_XI]
    usual = selected(default.importance)
    damped = {d: _importance(default, damping=d) for d in DAMPINGS}
    return {
        "task": request.task,
        "seed": request.seeds[0],
        "samples": samples,
        "k": K,
        "tolerance": TOLERANCE,
        "xi": {
            "default": DEFAULT_XI,
            "points": [
                {
                    "value": xi,
                    "overlap": overlap(selected(found.importance), usual),
                    "iterations": _iterations(found, damping=Scoring.damping),
                }
                for xi, found in by_xi.items()
            ],
        },
        "damping": {
            "default": Scoring.damping,
            "points": [
                {
                    "value": d,
                    "overlap": overlap(selected(importance), usual),
                    "iterations": _iterations(default, damping=d),
                }
                for d, importance in damped.items()
            ],
        },
        "runs_by_k": runs_by_k(request.lines()),
    }


def score(ready: Prepared, batches: Iterator[Mapping[str, Tensor]]) -> Mapping[float, PaperNumbers]:
    """Compute the paper's numbers with every ξ of the grid in one pass."""
    model = ready.loaded.model
    backbone = describe(model)
    sums = {xi: PaperSums(backbone, scoring=Scoring(xi=xi)) for xi in XIS}

    def see(layer: int, head_output: Tensor, real: Tensor) -> None:
        for each in sums.values():
            each.add(layer, head_output, real)

    samples = 0
    with capture_head_outputs(model, on_head_output=see) as run:
        for batch in batches:
            samples += run(batch)
            for each in sums.values():
                each.settle()
    return {xi: each.numbers(samples=samples) for xi, each in sums.items()}


def selected(importance: Tensor) -> set[tuple[int, int]]:
    """Return (layer, head) of the K best of each layer, of importances ``[L, H]``."""
    chosen = HeadSelection.from_scores(importance, k=K, strategy="layer-wise")
    return {(head.layer, head.head) for head in chosen.heads}


def overlap(first: set[tuple[int, int]], second: set[tuple[int, int]]) -> float:
    """Return the Jaccard index: the heads in both over those in either."""
    return len(first & second) / len(first | second)


def _importance(numbers: PaperNumbers, *, damping: float) -> Tensor:
    return torch.stack(
        [
            pagerank(edges, information=information, damping=damping).importance
            for edges, information in zip(numbers.correlation, numbers.information, strict=True)
        ]
    )


def _iterations(numbers: PaperNumbers, *, damping: float) -> list[int]:
    """Return the iterations of each layer."""
    return [
        count_iterations(edges, information=information, damping=damping)
        for edges, information in zip(numbers.correlation, numbers.information, strict=True)
    ]


def count_iterations(correlation: Tensor, *, information: Tensor, damping: float) -> int:
    """Return after how many steps of PageRank a step changes P by at most 1e-6 in the 1-norm.

    The steps are those of ``hifi.selection.pagerank``, whose tolerance is 1e-10.

    Args:
        correlation: r, float64 ``[H, H]``; a row of zeros jumps to p⁽⁰⁾.
        information: I, float64 ``[H]``, positive.
        damping: d, 0 ≤ d < 1; a step shrinks the changes by this factor, so it ends.
    """
    start = information / information.sum()
    totals = correlation.sum(1, keepdim=True)
    moves = torch.where(totals > 0, correlation / torch.where(totals > 0, totals, 1.0), start)
    position, change, steps = start, float("inf"), 0
    while change > TOLERANCE:
        moved = damping * (moves.T @ position) + (1 - damping) * start
        change = float((moved - position).abs().sum())
        position, steps = moved, steps + 1
    return steps


def runs_by_k(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Collect the runs of different k, of each task and number of shots that has at least two.

    Returns:
        For each, ``points`` of k with the mean ×100 and the standard deviation over seeds.

    Raises:
        DataError: as in ``Table``.
    """
    wanted = [line for line in lines if line["method"] in HEADS_PER_LAYER]
    table = Table(wanted)
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in table.rows:
        shots, name = row
        method, _, variant = name.partition("/")
        for task in table.tasks:
            summary = table.summary(row, task)
            if summary.mean is not None:
                point = {"k": HEADS_PER_LAYER[method], "mean": summary.mean, "sd": summary.sd}
                groups[shots, task, variant].append(point)
    return [
        {
            "shots": shots,
            "task": task,
            "variant": variant,
            "points": sorted(points, key=lambda point: point["k"]),
        }
        for (shots, task, variant), points in groups.items()
        if len(points) > 1
    ]


def draw(numbers: Numbers) -> Figure:
    """Draw an axes for k, if it has runs, and one each for ξ and d."""
    has_runs = bool(numbers["runs_by_k"])
    count = 2 + has_runs
    figure = new_figure(count * _PANEL[0], _PANEL[1])
    places = list(figure.subplots(1, count, squeeze=False)[0])
    if has_runs:
        _draw_runs(places.pop(0), numbers["runs_by_k"])
    for ax, name, letter in zip(places, ("xi", "damping"), ("ξ", "d"), strict=True):
        _draw_sweep(ax, numbers[name], letter=letter)
    return figure


def _draw_runs(ax: Axes, runs: list[dict[str, Any]]) -> None:
    for each in runs:
        points = each["points"]
        ax.errorbar(
            [point["k"] for point in points],
            [point["mean"] for point in points],
            yerr=[point["sd"] or 0 for point in points],
            marker="o",
            markersize=4,
            capsize=2,
            label=" ".join(part for part in (each["task"], each["shots"], each["variant"]) if part),
        )
    ax.set_xlabel("k, tuned heads of each layer")
    ax.set_ylabel("metric ×100, mean and deviation over seeds")
    ax.grid(alpha=0.3)
    ax.legend(fontsize="x-small")


def _draw_sweep(ax: Axes, sweep: Mapping[str, Any], *, letter: str) -> None:
    """Draw overlap on the left scale and iterations on the right one."""
    points = sweep["points"]
    values = [point["value"] for point in points]
    ax.plot(values, [point["overlap"] for point in points], color=BLUE, marker="o", markersize=4)
    ax.axvline(sweep["default"], color=BLUE, linewidth=0.8, linestyle=":")
    ax.set_ylim(0, 1.05)
    ax.set_xlabel(f"{letter} (dotted: the default)")
    ax.set_ylabel("● Jaccard index with the default's heads", color=BLUE)
    ax.grid(alpha=0.3)
    right = ax.twinx()
    means = [sum(point["iterations"]) / len(point["iterations"]) for point in points]
    right.plot(values, means, color=ORANGE, marker="s", markersize=4, linestyle="--")
    right.set_ylim(0, 1.1 * max(means))
    right.set_ylabel("■ iterations at 1e-6, mean of the layers", color=ORANGE)


def notes(numbers: Numbers) -> Iterator[str]:
    """Describe the grids, and whether there are runs of different k."""
    yield (
        f"Task {numbers['task']}, frozen model, {numbers['samples']} samples; overlap is the "
        f"Jaccard index of the {numbers['k']} best heads of each layer with the default's, "
        f"iterations are those of PageRank until a step changes it by {numbers['tolerance']:g}."
    )
    for name, letter in (("xi", "ξ"), ("damping", "d")):
        for point in numbers[name]["points"]:
            steps = point["iterations"]
            yield (
                f"  {letter} {point['value']:g}: overlap {point['overlap']:.2f}, "
                f"iterations {min(steps)} to {max(steps)}"
            )
    if not numbers["runs_by_k"]:
        yield "The panel of k is left out: it needs --results with runs of the methods k."
    for each in numbers["runs_by_k"]:
        found = ", ".join(f"{point['k']}: {point['mean']:.1f}" for point in each["points"])
        yield f"  k on {each['task']}, rows {each['shots']}: {found}"


FIGURE = PaperFigure(
    words="effect of k (with --results), ξ and d, and PageRank's iterations (Fig. 6)",
    compute=compute,
    draw=draw,
    notes=notes,
    inputs=frozenset({"data"}),
)
