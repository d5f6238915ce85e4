"""Loss contours with the trajectories of HiFi and of full fine-tuning (Fig. 7).

Both start at the same weights, the task head at random. ``ends`` is one plane: through the start
and both results. ``random`` is one plane around each result, of filter-normalised directions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.paper.figures.figure import Numbers, PaperFigure, Request, array, plain
from benchmarks.paper.figures.planes import Plane, Weights, around, losses_on, through
from benchmarks.paper.figures.training import Build, steps_of, train
from benchmarks.paper.methods import METHODS
from benchmarks.paper.methods.base import encode, evaluate, logits_by
from benchmarks.paper.methods.heads import K
from benchmarks.paper.methods.plain import HeadOnly, full
from hifi.data.settings import Scoring
from hifi.plots.canvas import BLACK, ORANGE, WHITE, new_figure
from hifi.plots.head_maps import COLOURS
from hifi.training.finetuning import select_prepared
from hifi.tuning.tuner import HeadTuner, detach

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn
    from transformers import PreTrainedModel

    from benchmarks.paper.methods.rival import Rival
    from benchmarks.paper.splits import Splits
    from hifi.data.settings import Hyperparameters
    from hifi.training.preparation import Prepared

ENDS, RANDOM_DIRECTIONS = "ends", "random"
DIRECTIONS = (ENDS, RANDOM_DIRECTIONS)
_BATCH = 32
_POINTS = 8  # of a trajectory after its start; those of full fine-tuning are whole models
_MARGIN = 0.3  # of the span of the trajectories, around them
_LEVELS = 14
_STYLES = {"hifi": (ORANGE, "o", "-"), "full": (WHITE, "s", "--")}

Trajectory = Mapping[int, Weights]  # by the number of steps


class TunedHeads(HeadOnly):
    """Trains a tuner's rows and task head."""

    def __init__(self, tuner: HeadTuner) -> None:
        super().__init__(tuner.model)
        self._tuner = tuner

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the parameters that the optimizer changes, by name."""
        return dict(self._tuner.named_parameters())


def tuned_heads(ready: Prepared, settings: Hyperparameters) -> Rival:
    """Train the paper's heads, ``K`` of each layer."""
    samples = Scoring().count_samples(rows=len(ready.data.train))
    scoring = Scoring(score="pagerank", k=K, n_samples=samples)
    selection = select_prepared(ready, settings=settings, scoring=scoring)
    return TunedHeads(HeadTuner(ready.loaded.model, selection, fingerprint=ready.fingerprint))


BUILDS: Mapping[str, Build] = {"hifi": tuned_heads, "full": full}


def compute(request: Request) -> Numbers:
    """Train both, and compute the losses around their results."""
    splits = request.splits(shots=request.shots)
    trajectories = {name: _trajectory(request, splits, name) for name in BUILDS}
    loss, rows = _loss_of(request, splits)
    panels = [
        {
            **_panel(plane, loss, grid=request.grid, reach=reach),
            "name": title,
            "trajectories": {name: _describe(trajectories[name], plane, loss) for name in names},
        }
        for title, plane, reach, names in _planes(request, trajectories)
    ]
    return {
        "task": request.task,
        "shots": request.shots,
        "seed": request.seeds[0],
        "directions": request.directions,
        "rows": rows,
        "rates": {name: METHODS[name].usual_rate for name in BUILDS},
        "panels": panels,
    }


def _trajectory(request: Request, splits: Splits, name: str) -> Trajectory:
    """Train, and return all weights of the start and the changed ones of some later steps."""
    run = request.run(
        splits,
        seed=request.seeds[0],
        batch_size=min(_BATCH, len(splits.train)),
        learning_rate=METHODS[name].usual_rate,
    )
    ready = run.prepare(has_validation=False)
    steps = steps_of(ready, run.settings, steps=request.steps)
    kept = {round(steps * part / _POINTS) for part in range(_POINTS + 1)}
    found: dict[int, Weights] = {}
    for taken in train(ready, BUILDS[name], settings=run.settings, steps=steps):
        if taken in kept:
            weights = _weights(ready.loaded.model)
            start = found.get(0, {})
            found[taken] = {
                each: value
                for each, value in weights.items()
                if each not in start or not torch.equal(value, start[each])
            }
    print(f"trained {name}, {steps} steps", flush=True)
    return found


def _weights(model: PreTrainedModel) -> Weights:
    """Return a copy of a model's weights, tuned rows in place."""
    own = copy.deepcopy(model)
    if any(name.endswith("tuned_weight") for name, _ in own.named_parameters()):
        own = detach(own)
    return {name: parameter.detach() for name, parameter in own.named_parameters()}


def _loss_of(request: Request, splits: Splits) -> tuple[Callable[[Weights], float], int]:
    """Return the function from weights to the loss on validation rows, and how many those are."""
    validation = request.splits().validation  # the original one, for few rows too
    count = min(request.rows, len(validation))
    drawn = sorted(Random(0).sample(range(len(validation)), count))  # noqa: S311 - no secret
    run = request.run(splits, seed=request.seeds[0])
    ready = run.prepare(has_validation=False)
    model = ready.loaded.model.eval()
    examples = encode(ready, [validation[place] for place in drawn], split="validation")
    own = _weights(model)

    @torch.no_grad()
    def loss(weights: Weights) -> float:
        for name, parameter in model.named_parameters():
            parameter.copy_(weights.get(name, own[name]))
        return float(evaluate(ready, examples, logits_by(model, ready.data.task))["loss"])

    return loss, count


def _planes(
    request: Request, trajectories: Mapping[str, Trajectory]
) -> Iterator[tuple[str, Plane, tuple[list[float], list[float]], tuple[str, ...]]]:
    """Iterate over the planes, with their names, their ranges and whose trajectories they show."""
    ends = {name: each[max(each)] for name, each in trajectories.items()}
    start = trajectories["hifi"][0]
    if request.directions == RANDOM_DIRECTIONS:
        for name, end in ends.items():
            plane = around({**start, **end}, seed=request.seeds[0])
            yield f"around {name}", plane, ([-1.0, 1.0], [-1.0, 1.0]), (name,)
        return
    plane = through(start, ends["hifi"], ends["full"])
    places = np.array(
        [plane.project(each)[:2] for one in trajectories.values() for each in one.values()]
    )
    low, high = places.min(0), places.max(0)
    margin = _MARGIN * (high - low)
    first, second = np.stack([low - margin, high + margin]).T.tolist()
    yield "through the start and both results", plane, (first, second), tuple(ends)


def _panel(
    plane: Plane,
    loss: Callable[[Weights], float],
    *,
    grid: int,
    reach: tuple[list[float], list[float]],
) -> dict[str, Any]:
    a, b = (np.linspace(low, high, grid).tolist() for low, high in reach)
    return {"a": a, "b": b, "loss": plain(losses_on(plane, loss, a=a, b=b))}


def _describe(
    trajectory: Trajectory, plane: Plane, loss: Callable[[Weights], float]
) -> list[dict[str, Any]]:
    """Return where the points of a trajectory are, and their own losses."""
    start = trajectory[0]
    found = []
    for steps, changed in trajectory.items():
        weights = {**start, **changed}
        a, b, off = plane.project(weights)
        found.append({"steps": steps, "a": a, "b": b, "off_plane": off, "loss": loss(weights)})
    return found


def draw(numbers: Numbers) -> Figure:
    """Draw an axes for each plane: the loss in levels, the trajectories as lines of points."""
    panels = numbers["panels"]
    figure = new_figure(6.0 * len(panels), 5.0)
    for ax, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        values = np.ma.masked_invalid(array(panel["loss"]))
        filled = ax.contourf(panel["a"], panel["b"], values, levels=_LEVELS, cmap=COLOURS)
        ax.contour(panel["a"], panel["b"], values, levels=_LEVELS, colors=BLACK, linewidths=0.4)
        for name, points in panel["trajectories"].items():
            colour, marker, line = _STYLES[name]
            ax.plot(
                [point["a"] for point in points],
                [point["b"] for point in points],
                color=colour,
                marker=marker,
                linestyle=line,
                markeredgecolor=BLACK,
                label=name,
            )
        ax.set_title(panel["name"], loc="left")
        ax.set_xlabel("first direction")
        ax.set_ylabel("second direction")
        ax.set_xlim(panel["a"][0], panel["a"][-1])
        ax.set_ylim(panel["b"][0], panel["b"][-1])
        ax.legend(facecolor="#B0B0B0")
        figure.colorbar(filled, ax=ax, label=f"loss on {numbers['rows']} validation rows")
    return figure


def notes(numbers: Numbers) -> Iterator[str]:
    """Describe the ends of the trajectories, and what the plane does not show of them."""
    yield (
        f"Task {numbers['task']}, rows {numbers['shots']}, seed {numbers['seed']}, loss on "
        f"{numbers['rows']} validation rows in eval mode. A trajectory is projected: its points "
        "lie outside the plane, by the given share of their distance from its centre."
    )
    if numbers["directions"] == RANDOM_DIRECTIONS:
        yield "Training hardly moves along random directions: projected, it stays near the centre."
    for panel in numbers["panels"]:
        values = [value for row in panel["loss"] for value in row if value is not None]
        span = f"loss {min(values):.3f} to {max(values):.3f} on the grid" if values else "no loss"
        yield f"  {panel['name']}: {span}"
        for name, points in panel["trajectories"].items():
            last = points[-1]
            farthest = max(point["off_plane"] for point in points)
            yield (
                f"  {name}, {last['steps']} steps: loss {points[0]['loss']:.3f} to "
                f"{last['loss']:.3f}, at most {farthest:.2f} outside the plane"
            )


FIGURE = PaperFigure(
    words="loss contours with the trajectories of HiFi and full fine-tuning (Fig. 7)",
    compute=compute,
    draw=draw,
    notes=notes,
    inputs=frozenset({"data"}),
)
