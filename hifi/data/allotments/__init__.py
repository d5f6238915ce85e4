"""Allotments: how many heads each layer gets. One file per strategy; torch-free."""

from __future__ import annotations

from typing import Literal, assert_never

from hifi.data.allotments.base import Allotment
from hifi.data.allotments.budget import Budget
from hifi.data.allotments.layer_wise import DEFAULT_K, LayerWise
from hifi.data.allotments.mid_top import MidTop
from hifi.errors import InvalidArgumentError

Strategy = Literal["layer-wise", "mid-top", "budget"]

__all__ = ["DEFAULT_K", "Allotment", "Budget", "LayerWise", "Strategy", "make_allotment"]


def make_allotment(strategy: Strategy, *, k: int | None, budget: int | None) -> Allotment:
    """Build the allotment of a strategy; call its ``fitted`` to check the count.

    Args:
        strategy: one that exists.
        k: heads per layer; None for 3, or with a budget.
        budget: heads of the whole model; None without this strategy.

    Raises:
        InvalidArgumentError: ``k`` and ``budget`` together, strategy ``budget`` without a budget,
            or a budget with another strategy.
    """
    if k is not None and budget is not None:
        limit = f"k={k!r} is given too, and a budget replaces k: give one of the two"
        raise InvalidArgumentError("budget", value=budget, limit=limit)
    kind = _find(strategy)
    if kind.param == "budget" and budget is None:
        limit = f"strategy={strategy!r} needs the number of heads to select in the whole model"
        raise InvalidArgumentError("budget", value=None, limit=limit)
    if kind.param != "budget" and budget is not None:
        limit = f"only with strategy='budget', not with {strategy!r}"
        raise InvalidArgumentError("budget", value=budget, limit=limit)
    if budget is not None:
        return kind(budget)
    return kind(DEFAULT_K if k is None else k)


def _find(strategy: Strategy) -> type[Allotment]:
    match strategy:
        case "layer-wise":
            return LayerWise
        case "mid-top":
            return MidTop
        case "budget":
            return Budget
        case _:
            assert_never(strategy)
