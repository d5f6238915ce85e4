"""Score the heads of a model on calibration samples and select the best of each layer."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hifi.arguments import check_count
from hifi.backbones.heads import Backbone, describe
from hifi.data.settings import Scoring, Strategy, Teleport, declared
from hifi.errors import CaptureError, InvalidArgumentError
from hifi.selection.capture import capture_head_outputs
from hifi.selection.correlation import head_correlation
from hifi.selection.head_selection import HeadSelection, LayerScores, check_strategy
from hifi.selection.pagerank import pagerank
from hifi.selection.richness import RichnessSums, scaled

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def select_heads(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Any]],
    *,
    k: int = Scoring.k,
    xi: float | None = Scoring.xi,
    damping: float = Scoring.damping,
    strategy: Strategy = Scoring.strategy,
    teleport: Teleport = Scoring.teleport,
    on_batch: Callable[[int], None] | None = None,
) -> HeadSelection:
    r"""Select the heads that matter most for the task of the samples (Alg. 1 and 2).

    The batches are streamed: only sums are kept. The model is unchanged afterwards, including its
    ``training`` flags.

    Args:
        model: a transformers model, bare or with a task head, tuned or not.
        batches: mappings as ``model.forward`` takes them. ``attention_mask`` marks real tokens,
            on whichever side the padding is; labels are ignored; batches ``[B, choices, S]`` count
            each choice as a sample.
        k: heads to select per layer, out of H; key-value groups if keys are grouped.
        xi: the share ξ of Eq. (2), with 0 < ξ < 1; 0.9 by default.
        damping: d of Eq. (10), with 0 ≤ d < 1.
        strategy: ``layer-wise``, or ``mid-top`` for layers ⌈L/2⌉ … L−1 only.
        teleport: ``information``, or ``uniform`` as Eq. (10) is printed. With ``uniform`` neither I
            nor ξ has any influence; passing ``xi`` with it emits a UserWarning.
        on_batch: called after each batch with the number of samples seen so far; an exception that
            it raises ends the selection.

    Returns:
        The selection with every layer's scores. Heads are ranked by p* rounded to 12 decimals; ties
        go to the lower index.

    Raises:
        InvalidArgumentError: an argument outside its range, no batch, or a batch that cannot be
            scored: a mask that is not 0/1 per token, a sample without a real token.
        UnsupportedArchitectureError: the model's heads cannot be located.
        CaptureError: a forward pass does not run every layer once, or a head output is not finite.
        ConvergenceError: PageRank does not converge, which can happen for ``damping`` close to 1.

    Source: Gui & Xiao, "HiFi", Findings of ACL 2023.
    """
    backbone = describe(model)
    k = declared(Scoring)["k"].check(k, most=backbone.num_heads)
    check_strategy(strategy, num_layers=backbone.num_layers)
    scoring = Scoring(k=k, xi=xi, damping=damping, strategy=strategy, teleport=teleport)
    if scoring.xi is not None and scoring.teleport == "uniform":
        warnings.warn(
            f"xi={xi} has no influence with teleport='uniform', which does not depend on I_h",
            UserWarning,
            stacklevel=2,
        )
    sums = _ScoreSums(backbone, xi=scoring.share)
    samples = _stream(model, batches, sums=sums, on_batch=on_batch)
    means = [sums.means(layer, samples=samples) for layer in range(backbone.num_layers)]
    ranks = [
        pagerank(correlation, information=information, damping=scoring.damping, teleport=teleport)
        for information, correlation in means
    ]
    importance = torch.stack([rank.importance for rank in ranks])
    chosen = HeadSelection.from_scores(importance, k=k, strategy=strategy)
    layers = tuple(
        LayerScores(
            information_richness=information,
            correlation=correlation,
            importance=rank.importance,
            iterations=rank.iterations,
            selected=chosen.selected_in(layer),
        )
        for layer, ((information, correlation), rank) in enumerate(zip(means, ranks, strict=True))
    )
    return replace(
        chosen,
        layers=layers,
        xi=scoring.share,
        damping=scoring.damping,
        teleport=teleport,
        n_samples=samples,
    )


def _stream(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Any]],
    *,
    sums: _ScoreSums,
    on_batch: Callable[[int], None] | None,
) -> int:
    """Add every batch to the sums and return the number of samples."""
    samples = 0
    with capture_head_outputs(model, on_head_output=sums.add) as run:
        for batch in batches:
            samples += run(batch)
            sums.richness.settle()
            if on_batch is not None:
                on_batch(samples)
    if samples == 0:
        raise InvalidArgumentError("batches", value="none", limit="at least one batch")
    return samples


def sample_indices(n_total: int, *, n: int, seed: int) -> list[int]:
    """Draw calibration samples without replacement (Alg. 1, line 1).

    Args:
        n_total: the number of samples.
        n: the number of samples to draw.
        seed: equal seeds draw equal samples.

    Returns:
        ``n`` different indices below ``n_total``, in the order drawn.

    Raises:
        InvalidArgumentError: ``n`` below 1 or above ``n_total``.
    """
    n = check_count("n", n, most=n_total, of="samples")
    return random.Random(seed).sample(range(n_total), n)  # noqa: S311 - a draw, not a secret


class _ScoreSums:
    """Sums over the samples seen so far; selection keeps nothing else of them.

    Legend: B samples, S tokens, H·G query heads in H groups, D' head width.
    """

    def __init__(self, backbone: Backbone, *, xi: float) -> None:
        layers, heads = backbone.num_layers, backbone.num_query_heads
        self._groups = (backbone.num_heads, backbone.group_size)
        self.richness = RichnessSums((layers, heads), xi=xi)
        self._correlation = torch.zeros(layers, heads, heads, dtype=torch.float64)

    def add(self, layer: int, head_output: Tensor, real: Tensor) -> None:
        """Add one batch: O_h ``[B, S, H·G, D']`` and bool ``[B, S]``, True at real tokens.

        Raises:
            CaptureError: a head output at a real token is not finite.
        """
        outputs = head_output.transpose(1, 2).to(  # [B, H·G, S, D']
            torch.float64, copy=True, memory_format=torch.contiguous_format
        )
        outputs.masked_fill_(~real[:, None, :, None], 0)
        tokens = real.sum(1)
        means = outputs.sum(2) / tokens[:, None, None]  # [B, H·G, D']
        if not bool(means.isfinite().all()):
            raise CaptureError(f"layer {layer}: a head output is infinite or not a number")
        self._correlation[layer] += head_correlation(means).sum(0).cpu()
        if head_output.dtype == torch.float64:  # squares of narrower types always fit float64
            outputs = scaled(outputs)
        self.richness.add(layer, outputs, tokens=tokens)

    def means(self, layer: int, *, samples: int) -> tuple[Tensor, Tensor]:
        """Return I ``[H]`` and r ``[H, H]`` of one layer; groups average over (pairs of) heads."""
        groups, size = self._groups
        counts = self.richness.counts[layer].view(groups, size).sum(1)
        pairs = self._correlation[layer].view(groups, size, groups, size).sum((1, 3))
        return counts.double() / (samples * size), (pairs / (samples * size**2)).fill_diagonal_(0)
