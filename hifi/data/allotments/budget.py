"""Budget: the best heads of the whole model, wherever they are."""

from __future__ import annotations

from collections.abc import Sequence

from hifi.data.allotments.base import Allotment


class Budget(Allotment):
    """The best ``budget`` heads of the whole model; a layer gets as many as it has of them."""

    param = "budget"
    counts = "heads of the model"

    def pools(self, *, num_layers: int) -> Sequence[range]:
        """Return all layers as one pool."""
        return [range(num_layers)]
