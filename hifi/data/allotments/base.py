"""What every allotment says: which heads compete with each other, and for how many places."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from hifi.arguments import check_count


@dataclass(frozen=True)
class Allotment(ABC):
    """An allotment: the best ``count`` heads of each pool of layers are selected.

    Attributes:
        param: the setting that has the count.
        counts: what it counts, for errors.
        count: heads to select in each pool.
    """

    param: ClassVar[Literal["k", "budget"]]
    counts: ClassVar[str]

    count: int

    @abstractmethod
    def pools(self, *, num_layers: int) -> Sequence[range]:
        """Return the pools of layers, lowest first; heads compete within a pool.

        Args:
            num_layers: L. Layers that no pool contains stay frozen.
        """

    @property
    def k(self) -> int | None:
        """Heads per layer, if that is what is counted."""
        return self.count if self.param == "k" else None

    @property
    def budget(self) -> int | None:
        """Heads of the whole model, if that is what is counted."""
        return self.count if self.param == "budget" else None

    def fitted(self, *, num_layers: int, num_heads: int) -> Self:
        """Check the count against a backbone and return the allotment with a plain integer.

        Args:
            num_layers: L.
            num_heads: H; key-value groups if keys are grouped.

        Raises:
            InvalidArgumentError: fewer than one head, or more than a pool has.
        """
        largest = max(len(pool) for pool in self.pools(num_layers=num_layers))
        count = check_count(self.param, self.count, most=largest * num_heads, of=self.counts)
        return replace(self, count=count)

    def count_heads(self, *, num_layers: int) -> int:
        """Return the number of heads that are selected in a model of ``num_layers`` layers."""
        return self.count * len(self.pools(num_layers=num_layers))
