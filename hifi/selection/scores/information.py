"""Score ``information``: the richness I_h alone, without correlation (the paper's "w/o corr")."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hifi.selection.scores.base import HeadScore

if TYPE_CHECKING:
    from torch import Tensor

    from hifi.selection.paper_numbers import PaperNumbers


class Information(HeadScore):
    """I_h of Eq. (3). It counts singular directions, so layers can be compared as they are."""

    def values(self, paper: PaperNumbers) -> Tensor:
        """Return I."""
        return paper.information
