"""What every score of heads offers: it watches the calibration samples pass, then ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hifi.backbones.heads import Backbone
    from hifi.selection.paper_numbers import PaperNumbers


class HeadScore(ABC):
    """One number per head; the highest are selected.

    Legend: L layers, H heads that can be selected (key-value groups if keys are grouped), G query
    heads in each, B samples, S tokens, D' head width.

    Args:
        model: the model whose heads are scored.
        backbone: its description.
        seed: of a score that draws.
    """

    def __init__(self, model: PreTrainedModel, *, backbone: Backbone, seed: int) -> None:
        self._model = model
        self._backbone = backbone
        self._seed = seed

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Prepare the model for the samples, and restore it when the block ends."""
        yield

    def see(self, layer: int, head_output: Tensor, real: Tensor) -> None:  # noqa: B027 - most need none
        """Take a layer of a batch: O_h ``[B, S, H·G, D']`` and bool ``[B, S]``, real tokens."""

    @abstractmethod
    def values(self, paper: PaperNumbers) -> Tensor:
        """Return the score of every head, after all samples.

        Args:
            paper: the paper's numbers over the same samples.

        Returns:
            Float64 ``[L, H]`` on the CPU; compared within a layer. ``select_heads`` refuses a
            number that is not finite.
        """

    def comparable_values(self, paper: PaperNumbers) -> Tensor:
        """Return the scores on one scale for all layers, for a budget; float64 ``[L, H]``.

        A score whose layers cannot be compared as they are overrides this and says how it compares
        them.
        """
        return self.values(paper)
