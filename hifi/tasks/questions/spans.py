"""Find the likeliest answers among all spans of tokens, and decide whether there is one at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MOST_TOKENS = 30  # of an answer
_PORTION = 64  # windows at a time: each takes MOST_TOKENS numbers for each of its tokens

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Spans:
    """The likeliest spans of tokens in each window, the best first.

    Attributes:
        scores: the sum of the logits of first and last token, ``[n, K]``; -inf if there are fewer
            spans.
        first: the first token, ``[n, K]``.
        last: the last token, ``[n, K]``.
        none: the score of no answer in the window, ``[n]``.
    """

    scores: Tensor
    first: Tensor
    last: Tensor
    none: Tensor


def best_spans(logits: Tensor, is_context: Tensor, *, count: int = 1) -> Spans:
    """Find the spans with the highest scores in each window; none is longer than 30 tokens.

    Args:
        logits: of first and last tokens, ``[n, S, 2]``; those of the first token of a window are of
            no answer.
        is_context: whether an answer may begin and end at a token, ``[n, S]``.
        count: K.
    """
    parts = [
        _best_of(*each, count=count)
        for each in zip(logits.split(_PORTION), is_context.split(_PORTION), strict=True)
    ]
    scores, first, last = (torch.cat(each) for each in zip(*parts, strict=True))
    return Spans(scores, first, last, logits[:, 0].sum(-1))


def _best_of(logits: Tensor, is_context: Tensor, *, count: int) -> tuple[Tensor, Tensor, Tensor]:
    starts, ends = logits.masked_fill(~is_context[..., None], -torch.inf).unbind(-1)
    size = starts.shape[1]
    lengths = range(min(MOST_TOKENS, size))
    table = torch.stack(
        [
            torch.nn.functional.pad(
                starts[:, : size - more] + ends[:, more:], (0, more), value=-torch.inf
            )
            for more in lengths
        ],
        dim=-1,
    )  # [n, S, lengths]
    scores, places = table.flatten(1).topk(min(count, table[0].numel()))
    first = places // len(lengths)
    return scores, first, first + places % len(lengths)


def best_threshold(margins: Floats, *, answered: Floats, declined: Floats) -> float:
    """Return the threshold of the margin with the highest sum of values.

    Args:
        margins: by how much each row's score of no answer exceeds that of its best span, ``[n]``.
        answered: what a row is worth with its best span, ``[n]``.
        declined: what it is worth without an answer, ``[n]``.

    Returns:
        Rows with a margin above it get no answer. Of equally good ones the closest to 0.
    """
    order = np.argsort(margins, kind="stable")
    ranked = margins[order]
    gains = np.concatenate([[0.0], np.cumsum((answered - declined)[order])])  # of the first rows
    edges = np.concatenate([[ranked[0] - 1.0], (ranked[1:] + ranked[:-1]) / 2, [ranked[-1] + 1.0]])
    is_between = np.concatenate([[True], ranked[1:] > ranked[:-1], [True]])
    best = np.flatnonzero(
        is_between & np.isclose(gains, gains[is_between].max(), rtol=0, atol=1e-9)
    )
    return float(edges[best[np.argmin(np.abs(edges[best]))]])
