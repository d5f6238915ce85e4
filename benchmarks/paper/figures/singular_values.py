"""How the singular values of head outputs add up, by layer (Fig. 5), in the frozen model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.paper.figures.figure import Numbers, PaperFigure, Request, array, plain
from hifi.data.settings import DEFAULT_XI, Scoring
from hifi.plots import singular_values
from hifi.plots.canvas import figure_of
from hifi.selection.singular_values import cumulative_singular_values
from hifi.training.preparation import calibration_batches

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def compute(request: Request) -> Numbers:
    """Compute the cumulative shares of every head, ``[L, H, T]``, over calibration samples."""
    run = request.run(request.splits(), seed=request.seeds[0])
    ready = run.prepare(has_validation=False)
    samples = Scoring().count_samples(rows=len(ready.data.train))
    batches = calibration_batches(ready, n=samples, settings=run.settings)
    shares = cumulative_singular_values(ready.loaded.model, batches).numpy()
    return {
        "task": request.task,
        "seed": request.seeds[0],
        "samples": samples,
        "xi": DEFAULT_XI,
        "shares": plain(shares),
        "reached_at": reached_at(shares, share=DEFAULT_XI),
    }


def reached_at(shares: np.ndarray, *, share: float) -> list[int]:
    """Return for each layer how many singular values its heads need, in the mean, for a share."""
    means = shares.mean(1)  # [L, T]
    return [int(np.argmax(layer >= share)) + 1 for layer in means]


def draw(numbers: Numbers) -> Figure:
    """Draw a line for each layer, the mean of its heads."""
    return figure_of(singular_values(array(numbers["shares"]), xi=numbers["xi"]))


def notes(numbers: Numbers) -> Iterator[str]:
    """Describe how many singular values reach ξ."""
    width = len(numbers["shares"][0][0])
    yield (
        f"Task {numbers['task']}, frozen model, {numbers['samples']} samples. Singular values out "
        f"of {width} whose share reaches {numbers['xi']:g}, mean of a layer's heads: "
        + ", ".join(f"layer {n}: {count}" for n, count in enumerate(numbers["reached_at"]))
    )


FIGURE = PaperFigure(
    words="cumulative share of the singular values of head outputs by layer (Fig. 5)",
    compute=compute,
    draw=draw,
    notes=notes,
    inputs=frozenset({"data"}),
)
