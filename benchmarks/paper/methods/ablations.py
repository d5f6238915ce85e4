"""The heads of Tab. 3: HiFi's with a part of its ranking left out, turned around or replaced.

Each ranking selects ``K`` heads of every layer, or a budget of as many wherever they are. Those of
the library are its scores; the others are made from a selection's scores by hand.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmarks.paper.methods.heads import RunMethod, fitted, tune, tuned_heads
from hifi.data.settings import Scoring
from hifi.selection.head_selection import HeadSelection
from hifi.training.finetuning import select_prepared

if TYPE_CHECKING:
    from benchmarks.paper.methods.base import Outcome, Run
    from hifi.deltas.metadata import Encoding

# From a selection, with its scores, and a run's seed to other scores, float64 [L, H].
Rank = Callable[[HeadSelection, int], Tensor]

ALLOTMENTS = ("layer-wise", "budget")
PAGERANK = "pagerank"
RANDOM = ("random", "random-2", "random-3")
_TOLERANCE = 1e-6  # the paper gives no ε; at 1e-10 what is left of the start is near the rounding
_DRAWS_APART = 1000  # seeds between the draws of random heads, more than a table has


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """One way to rank heads.

    Attributes:
        words: what it ranks by, with the paper's name if it has one.
        scoring: arguments of ``finetune`` for the library's scores.
        rank: makes other scores of these; None to use the library's own.
    """

    words: str
    scoring: Mapping[str, Any] = field(default_factory=dict)
    rank: Rank | None = None


def inverted(selection: HeadSelection, _seed: int) -> Tensor:
    """Return the scores with the lowest highest."""
    return -torch.stack([layer.values for layer in selection.layers])


def correlation_shares(selection: HeadSelection, _seed: int) -> Tensor:
    r"""Return each head's share of its layer's correlation, Σ_h' r_hh' / ΣΣ r.

    Covariances of different layers have no common scale, so a budget compares shares: one layer
    counts as much as another.
    """
    sums = torch.stack([layer.correlation.sum(1) for layer in selection.layers])
    totals = sums.sum(1, keepdim=True)
    return sums / torch.where(totals > 0, totals, 1.0)


def as_printed(selection: HeadSelection, _seed: int) -> Tensor:
    r"""Return where the walk of Eq. (10), as printed, stops in each layer, times Σ I_h.

    P ← d·M·P + (1−d)/H from p⁽⁰⁾ = I/ΣI until ‖ΔP‖₁ ≤ 1e-6. As M is row-stochastic, the limit is
    1/H for every M: what ranks the heads is how far they still are from it. The factor is that of
    the library's ``pagerank`` for a budget; within a layer it changes nothing.
    """
    damping = Scoring.damping if selection.damping is None else selection.damping
    return torch.stack(
        [
            walk(layer.correlation, information=layer.information_richness, damping=damping)
            * layer.information_richness.sum()
            for layer in selection.layers
        ]
    )


def walk(correlation: Tensor, *, information: Tensor, damping: float) -> Tensor:
    """Return P of Eq. (10) as printed once a step changes it by at most 1e-6.

    Args:
        correlation: r, float64 ``[H, H]``; a row of zeros jumps to any head.
        information: I, float64 ``[H]``, positive.
        damping: d, 0 ≤ d < 1; a step shrinks the changes by this factor, so the walk ends.
    """
    heads = len(information)
    totals = correlation.sum(1, keepdim=True)
    moves = torch.where(totals > 0, correlation / torch.where(totals > 0, totals, 1.0), 1 / heads)
    position, change = information / information.sum(), float("inf")
    while change > _TOLERANCE:
        moved = damping * (moves @ position) + (1 - damping) / heads
        change = float((moved - position).abs().sum())
        position = moved
    return position


def drawn_again(selection: HeadSelection, seed: int, *, draw: int) -> Tensor:
    """Return the scores of a further draw of random heads, by another seed than the library's."""
    generator = torch.Generator().manual_seed(seed + draw * _DRAWS_APART)
    shape = (len(selection.layers), len(selection.layers[0].values))
    return torch.rand(shape, generator=generator, dtype=torch.float64)


RANKINGS: Mapping[str, Ranking] = {
    PAGERANK: Ranking(words="PageRank (HiFi)"),
    "information": Ranking(words="information (w/o corr)", scoring={"score": "information"}),
    "information-inverse": Ranking(
        words="least information (w/o corr + inv)",
        scoring={"score": "information"},
        rank=inverted,
    ),
    "correlation": Ranking(words="correlation (w/o info)", rank=correlation_shares),
    "pagerank-inverse": Ranking(words="lowest PageRank (page inv)", rank=inverted),
    "uniform": Ranking(words="PageRank, uniform teleport", scoring={"teleport": "uniform"}),
    "as-printed": Ranking(words="the walk as printed", rank=as_printed),
    "gradient": Ranking(words="gradient", scoring={"score": "gradient"}),
    "gradient-ratio": Ranking(words="gradient ratio", scoring={"score": "gradient-ratio"}),
    "output-norm": Ranking(words="output norm", scoring={"score": "output-norm"}),
    RANDOM[0]: Ranking(words="random", scoring={"score": "random"}),
    RANDOM[1]: Ranking(words="random", rank=partial(drawn_again, draw=1)),
    RANDOM[2]: Ranking(words="random", rank=partial(drawn_again, draw=2)),
}
# Those that other tables have, too.
_NAMES = {
    (PAGERANK, "layer-wise"): "hifi",
    (RANDOM[0], "layer-wise"): "hifi-random",
    ("gradient", "budget"): "hifi-budget",
}


def _name(ranking: str, allotment: str) -> str:
    usual = f"hifi-{ranking}" if allotment == "layer-wise" else f"hifi-{ranking}-{allotment}"
    return _NAMES.get((ranking, allotment), usual)


# Ranking and allotment by the name of the method.
TABLE_3: Mapping[str, tuple[str, str]] = {
    _name(ranking, allotment): (ranking, allotment)
    for allotment in ALLOTMENTS
    for ranking in RANKINGS
}


def ablation(name: str, *, encodings: Sequence[Encoding] = ()) -> RunMethod:
    """Return the ``run`` of a method of Tab. 3.

    Args:
        name: of the method.
        encodings: as in ``tuned_heads``.
    """
    ranking, allotment = TABLE_3[name]
    chosen = RANKINGS[ranking]
    scoring = {"score": "pagerank", **chosen.scoring, "strategy": allotment}
    if chosen.rank is None:
        return tuned_heads(encodings=encodings, **scoring)
    return partial(_run, scoring=scoring, rank=chosen.rank, encodings=encodings)


def _run(
    run: Run, *, scoring: Mapping[str, Any], rank: Rank, encodings: Sequence[Encoding]
) -> Outcome:
    begin = time.perf_counter()
    selection = select(run, scoring=scoring, rank=rank)
    seconds = time.perf_counter() - begin
    outcome = tune(run, {"selection": selection}, encodings=encodings)
    return replace(outcome, seconds={**outcome.seconds, "selection": seconds})


def select(run: Run, *, scoring: Mapping[str, Any], rank: Rank) -> HeadSelection:
    """Score the heads on the same samples as ``finetune``, and select by other scores."""
    settings = Scoring(**fitted(run, scoring))
    ready = run.prepare(has_validation=False)
    scored = select_prepared(ready, settings=run.settings, scoring=settings)
    return HeadSelection.from_scores(
        rank(scored, run.settings.seed),
        k=settings.k,
        strategy=settings.strategy,
        budget=settings.budget,
    )
