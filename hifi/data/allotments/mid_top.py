"""Mid-top: the best k heads of the layers in the upper half; the lower half stays frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from hifi.data.allotments.layer_wise import LayerWise
from hifi.errors import InvalidArgumentError


class MidTop(LayerWise):
    """The best ``k`` heads of layers ⌈L/2⌉ … L−1."""

    def pools(self, *, num_layers: int) -> Sequence[range]:
        """Return each layer of the upper half as a pool."""
        return super().pools(num_layers=num_layers)[(num_layers + 1) // 2 :]

    def fitted(self, *, num_layers: int, num_heads: int) -> Self:
        """Check the count; a model of one layer has no upper half."""
        if num_layers < 2:
            limit = "a model of two layers or more"
            raise InvalidArgumentError("strategy", value="mid-top", limit=limit)
        return super().fitted(num_layers=num_layers, num_heads=num_heads)
