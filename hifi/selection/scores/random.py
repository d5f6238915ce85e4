"""Score ``random``: the control, as in the paper's Tab. 3."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hifi.selection.scores.base import HeadScore

if TYPE_CHECKING:
    from torch import Tensor

    from hifi.selection.paper_numbers import PaperNumbers


class Random(HeadScore):
    """Uniform draws from [0, 1), by the seed alone; neither data nor weights have any influence.

    The draws of all heads are independent, so layers can be compared, and any set of heads of an
    allotment is as likely as another.
    """

    def values(self, paper: PaperNumbers) -> Tensor:  # noqa: ARG002 - the point of it
        """Return the draws."""
        draw = torch.Generator().manual_seed(self._seed)
        shape = (self._backbone.num_layers, self._backbone.num_heads)
        return torch.rand(shape, generator=draw, dtype=torch.float64)
