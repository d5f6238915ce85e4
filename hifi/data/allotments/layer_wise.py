"""Layer-wise: the best k heads of every layer (Alg. 2)."""

from __future__ import annotations

from collections.abc import Sequence

from hifi.data.allotments.base import Allotment

DEFAULT_K = 3


class LayerWise(Allotment):
    """The best ``k`` heads of every layer."""

    param = "k"
    counts = "heads of a layer"

    def pools(self, *, num_layers: int) -> Sequence[range]:
        """Return every layer as a pool."""
        return [range(layer, layer + 1) for layer in range(num_layers)]
