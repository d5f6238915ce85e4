"""Scores: which number ranks the heads. One file each; `base` says what a score is."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from hifi.selection.scores.base import HeadScore
from hifi.selection.scores.gradient import Gradient
from hifi.selection.scores.gradient_ratio import GradientRatio
from hifi.selection.scores.information import Information
from hifi.selection.scores.output_norm import OutputNorm
from hifi.selection.scores.pagerank import PageRank
from hifi.selection.scores.random import Random

if TYPE_CHECKING:
    from hifi.data.settings import Score

__all__ = ["HeadScore", "find_score"]


def find_score(name: Score) -> type[HeadScore]:
    """Return the score of a name."""
    match name:
        case "pagerank":
            return PageRank
        case "information":
            return Information
        case "gradient":
            return Gradient
        case "gradient-ratio":
            return GradientRatio
        case "output-norm":
            return OutputNorm
        case "random":
            return Random
        case _:
            assert_never(name)
