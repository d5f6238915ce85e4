"""Score the heads of a model on calibration samples and select the best."""

from __future__ import annotations

import inspect
import random
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hifi.arguments import check_count
from hifi.backbones.heads import backbone_dtype, describe
from hifi.data.allotments import Strategy, make_allotment
from hifi.data.settings import (
    GRADIENT_SCORES,
    Hyperparameters,
    Score,
    Scoring,
    Teleport,
    declared,
)
from hifi.errors import CaptureError, InvalidArgumentError
from hifi.selection.capture import LossFunction, capture_head_outputs
from hifi.selection.head_selection import HeadSelection, LayerScores
from hifi.selection.paper_numbers import PaperNumbers, PaperSums
from hifi.selection.scores import HeadScore, find_score

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def select_heads(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Any]],
    *,
    score: Score = Scoring.score,
    k: int | None = Scoring.k,
    budget: int | None = Scoring.budget,
    xi: float | None = Scoring.xi,
    damping: float = Scoring.damping,
    strategy: Strategy = Scoring.strategy,
    teleport: Teleport = Scoring.teleport,
    seed: int = Hyperparameters.seed,
    loss: LossFunction | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> HeadSelection:
    r"""Select the heads that matter most for the task of the samples (Alg. 1 and 2).

    The batches are streamed: only sums are kept. The model is unchanged afterwards, including its
    ``training`` and ``requires_grad`` flags and its gradients. Whatever the score, the paper's
    numbers are computed in the same passes and recorded beside it.

    Args:
        model: a transformers model, bare or with a task head, tuned or not.
        batches: mappings as ``model.forward`` takes them. ``attention_mask`` marks real tokens,
            on whichever side the padding is; labels are ignored, except by the gradients; batches
            ``[B, choices, S]`` count each choice as a sample.
        score: what ranks the heads: ``pagerank``, the paper's importance; ``information``;
            ``gradient`` or ``gradient-ratio``, which need a float32 model and a loss;
            ``output-norm``; ``random``. Each is defined in its file in ``selection/scores``.
        k: heads to select per layer, out of H (key-value groups if keys are grouped); 3 by
            default, and none with a budget.
        budget: heads to select in the whole model, out of L·H; with strategy ``budget``.
        xi: the share ξ of Eq. (2), with 0 < ξ < 1; 0.9 by default.
        damping: d of Eq. (10), with 0 ≤ d < 1.
        strategy: ``layer-wise``; ``mid-top`` for layers ⌈L/2⌉ … L−1 only; or ``budget`` for the
            best heads wherever they are.
        teleport: ``information``, or ``uniform`` as Eq. (10) is printed. With ``uniform`` neither I
            nor ξ has any influence; passing ``xi`` with it emits a UserWarning.
        seed: of score ``random``.
        loss: of a gradient score, called as ``loss(output, batch)`` with the model's output for a
            batch and the batch as given; returns a scalar. By default the model's own loss, from
            the ``labels`` in every batch: one for each sample or, as integers, for each token.
        on_batch: called after each batch with the number of samples seen so far; an exception that
            it raises ends the selection.

    Returns:
        The selection with every layer's scores. Heads are ranked by scores rounded to 12 decimals,
        as in ``HeadSelection.from_scores``; ties go to the lower layer, then to the lower head.

    Raises:
        InvalidArgumentError: an argument outside its range, no batch, or a batch that cannot be
            scored: a mask that is not 0/1 per token, a sample without a real token; for a gradient
            also a model in half precision, or without labels or loss.
        UnsupportedArchitectureError: the model's heads cannot be located.
        CaptureError: a forward pass does not run every layer once, or a head output, a loss, a
            gradient or a score is not finite.
        TunerError: a gradient of a model whose projections a tuner or an adapter wraps.
        ConvergenceError: PageRank does not converge, which can happen for ``damping`` close to 1.

    Source: Gui & Xiao, "HiFi", Findings of ACL 2023.
    """
    backbone = describe(model)
    declared(Scoring)["strategy"].check(strategy)
    make_allotment(strategy, k=k, budget=budget).fitted(
        num_layers=backbone.num_layers, num_heads=backbone.num_heads
    )
    scoring = Scoring(
        score=score,
        k=k,
        budget=budget,
        xi=xi,
        damping=damping,
        strategy=strategy,
        teleport=teleport,
    )
    if scoring.xi is not None and scoring.teleport == "uniform":
        warnings.warn(
            f"xi={xi} has no influence with teleport='uniform', which does not depend on I_h",
            UserWarning,
            stacklevel=2,
        )
    scoring.check_dtype(str(backbone_dtype(model)).removeprefix("torch."))
    seed = declared(Hyperparameters)["seed"].check(seed)
    ranking = find_score(scoring.score)(model, backbone=backbone, seed=seed)
    sums = PaperSums(backbone, scoring=scoring)
    loss = (loss or _own_loss_of(model)) if scoring.score in GRADIENT_SCORES else None
    samples = _stream(model, batches, score=ranking, sums=sums, loss=loss, on_batch=on_batch)
    paper = sums.numbers(samples=samples)
    is_budget = scoring.strategy == "budget"
    values = ranking.comparable_values(paper) if is_budget else ranking.values(paper)
    if not bool(values.isfinite().all()):
        raise CaptureError(f"a head's {scoring.score} is infinite or not a number")
    chosen = HeadSelection.from_scores(
        values, k=scoring.k, strategy=scoring.strategy, budget=scoring.budget
    )
    return replace(
        chosen,
        layers=_layers(chosen, values=values, paper=paper),
        score=scoring.score,
        xi=scoring.share,
        damping=scoring.damping,
        teleport=scoring.teleport,
        n_samples=samples,
    )


def _layers(
    chosen: HeadSelection, *, values: Tensor, paper: PaperNumbers
) -> tuple[LayerScores, ...]:
    """Return the numbers of every layer, with the heads selected in it."""
    return tuple(
        LayerScores(
            values=values[layer],
            information_richness=paper.information[layer],
            correlation=paper.correlation[layer],
            importance=rank.importance,
            iterations=rank.iterations,
            selected=chosen.selected_in(layer),
        )
        for layer, rank in enumerate(paper.ranks)
    )


def _own_loss_of(model: PreTrainedModel) -> LossFunction:
    """Return the loss that a model computes itself, from labels in each batch.

    Raises:
        InvalidArgumentError: the model takes no labels. The function raises it for a batch without.
    """
    if "labels" not in inspect.signature(model.forward).parameters:
        limit = "a model with a task head, or loss=: the score is a gradient of a loss"
        raise InvalidArgumentError("model", value=type(model).__name__, limit=limit)

    def loss(output: Any, batch: Mapping[str, Any]) -> Tensor:  # noqa: ANN401 - of any model
        if batch.get("labels") is None:
            limit = "labels in every batch: the score is a gradient of the loss"
            raise InvalidArgumentError("batches", value=sorted(batch), limit=limit)
        own: Tensor = output.loss
        return own

    return loss


def _stream(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Any]],
    *,
    score: HeadScore,
    sums: PaperSums,
    loss: LossFunction | None,
    on_batch: Callable[[int], None] | None,
) -> int:
    """Pass every batch through the model and return the number of samples."""

    def see(layer: int, head_output: Tensor, real: Tensor) -> None:
        sums.add(layer, head_output, real)
        score.see(layer, head_output, real)

    samples = 0
    with (
        score.watching(),
        capture_head_outputs(model, on_head_output=see, loss=loss) as run,
    ):
        for batch in batches:
            samples += run(batch)
            sums.settle()
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
