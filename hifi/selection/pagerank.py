"""Importance of a layer's heads: personalised PageRank on their correlation (Eq. 8-10)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hifi.data.settings import Scoring, Teleport, declared
from hifi.errors import ConvergenceError, InvalidArgumentError

TOLERANCE = 1e-10
MAX_STEPS = 1000


@dataclass(frozen=True, eq=False)
class PageRankResult:
    """The result of PageRank.

    Attributes:
        importance: p*, float64 ``[H]``, sums to 1.
        iterations: number of steps.
    """

    importance: Tensor
    iterations: int


def pagerank(
    correlation: Tensor,
    *,
    information: Tensor,
    damping: float = Scoring.damping,
    teleport: Teleport = Scoring.teleport,
) -> PageRankResult:
    r"""Compute the importance of the heads of one layer by personalised PageRank.

    Eq. (8)-(10):  P ← d·Mᵀ·P + (1 − d)·v,  m_hh' = r_hh' / Σ r_h·,  p⁽⁰⁾ = I / ΣI,
    until ‖ΔP‖₁ ≤ 1e-10. The teleport vector v is p⁽⁰⁾, or 1/H for ``uniform``. Eq. (10) prints
    uniform, but then neither I nor ξ affects the limit. The paper omits the transpose; M is
    row-stochastic, so without it the limit of M·P is uniform for every M. A head without any
    correlation jumps to v, like dangling nodes in networkx.

    Args:
        correlation: r, ``[H, H]``, finite, not negative.
        information: I, ``[H]``, finite, positive.
        damping: d, with 0 ≤ d < 1.
        teleport: ``information`` or ``uniform``.

    Returns:
        p* and the number of steps.

    Raises:
        InvalidArgumentError: an argument outside its range.
        ConvergenceError: no convergence within 1,000 steps, which can happen for d close to 1.

    Source: Gui & Xiao 2023, Eq. (8)-(10); networkx ``link_analysis/pagerank_alg.py``.
    """
    damping = declared(Scoring)["damping"].check(damping)
    teleport = declared(Scoring)["teleport"].check(teleport)
    transition, start = _checked_graph(correlation, information)
    vector = start if teleport == "information" else torch.full_like(start, 1 / len(start))
    largest = transition.amax(1, keepdim=True)
    dangling = largest == 0
    # Scale each row by its maximum, so that sums do not over- or underflow.
    transition = transition / torch.where(dangling, 1, largest)
    transition = torch.where(dangling, vector, transition)
    transition = transition / transition.sum(1, keepdim=True)
    position, change = start, 0.0
    for step in range(1, MAX_STEPS + 1):
        moved = damping * (transition.T @ position) + (1 - damping) * vector
        change = float((moved - position).abs().sum())
        position = moved
        if change <= TOLERANCE:
            return PageRankResult(importance=position, iterations=step)
    raise ConvergenceError(
        f"PageRank with damping={damping!r} did not converge: it still changes by {change:.3g} "
        f"after {MAX_STEPS} steps, and the tolerance is {TOLERANCE:g}; use a smaller damping"
    )


def _checked_graph(correlation: Tensor, information: Tensor) -> tuple[Tensor, Tensor]:
    """Check r and I; return r and p⁽⁰⁾ in float64 on the CPU."""
    heads = information.shape[0] if information.ndim == 1 else 0
    if heads == 0:
        raise InvalidArgumentError(
            "information", value=tuple(information.shape), limit="shape [H], one entry per head"
        )
    if tuple(correlation.shape) != (heads, heads):
        raise InvalidArgumentError(
            "correlation", value=tuple(correlation.shape), limit=f"shape [H, H] with H={heads}"
        )
    weights = correlation.detach().to("cpu", torch.float64)
    values = information.detach().to("cpu", torch.float64)
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        raise InvalidArgumentError(
            "correlation", value=float(weights.min()), limit="finite entries, none negative"
        )
    if not bool((values.isfinite() & (values > 0)).all()):
        raise InvalidArgumentError(
            "information", value=float(values.min()), limit="finite positive entries"
        )
    values = values / values.amax()
    return weights, values / values.sum()
