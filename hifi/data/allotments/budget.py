"""Budget: the best heads of the whole model, wherever they are."""

from __future__ import annotations

from collections.abc import Sequence

from hifi.data.allotments.base import Allotment

_SHARE = 4  # every fourth head of a model; measured; docs/decisions/defaults.md


def suitable_budget(*, num_layers: int, num_heads: int) -> int:
    """Return the budget of a selection that names none: a quarter of all heads.

    Args:
        num_layers: L.
        num_heads: H; key-value groups if keys are grouped.
    """
    return max(1, num_layers * num_heads // _SHARE)


class Budget(Allotment):
    """The best ``budget`` heads of the whole model; a layer gets as many as it has of them."""

    param = "budget"
    counts = "heads of the model"

    def pools(self, *, num_layers: int) -> Sequence[range]:
        """Return all layers as one pool."""
        return [range(num_layers)]
