"""Score the heads of a model on calibration samples and select the best of each layer."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from operator import index
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from hifi.backbone import Backbone, HeadId, describe
from hifi.capture import capture_head_outputs
from hifi.correlation import head_correlation
from hifi.errors import CaptureError, InvalidArgumentError
from hifi.pagerank import Teleport, check_damping, check_teleport, pagerank
from hifi.richness import RichnessSums, scaled

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Strategy = Literal["layer-wise", "mid-top"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

DEFAULT_XI = 0.9
_DECIMALS = 12  # scores that agree so far are equal, and the lower index goes first


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerScores:
    """What selection found out about one layer; H counts key-value groups where keys are grouped.

    Attributes:
        information_richness: I, float64 ``[H]``, mean over the samples (Eq. 3).
        correlation: r, float64 ``[H, H]``, mean over the samples (Eq. 7), zero diagonal.
        importance: p*, float64 ``[H]``, sums to 1 (Eq. 10).
        iterations: steps that PageRank took.
        selected: indices of the selected heads, ascending; empty where the strategy leaves the
            layer frozen.
    """

    information_richness: Tensor
    correlation: Tensor
    importance: Tensor
    iterations: int
    selected: tuple[int, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class HeadSelection:
    """The heads to tune, and how they were found.

    Attributes:
        heads: the selected heads, ascending, each once.
        num_layers: L.
        layers: the scores of every layer, bottom first; empty for a selection made by hand.
        k: heads per layer; None where the heads were named.
        xi: the share ξ; like the rest None for a selection made by hand.
        damping: d.
        strategy: ``layer-wise``, or ``mid-top`` for the upper half of the layers only.
        teleport: ``information`` or ``uniform``.
        n_samples: calibration samples, n.
    """

    heads: tuple[HeadId, ...]
    num_layers: int
    layers: tuple[LayerScores, ...] = ()
    k: int | None = None
    xi: float | None = None
    damping: float | None = None
    strategy: Strategy | None = None
    teleport: Teleport | None = None
    n_samples: int | None = None

    @classmethod
    def from_heads(cls, heads: Iterable[HeadId], *, num_layers: int) -> HeadSelection:
        """Select the named heads.

        Args:
            heads: in any order; doubles count once.
            num_layers: L of the model that they are meant for.

        Raises:
            InvalidArgumentError: a layer that is not there, or a negative head.
        """
        named = tuple(sorted(set(heads)))
        for head in named:
            if not 0 <= head.layer < num_layers or head.head < 0:
                raise InvalidArgumentError(
                    "heads", value=head, limit=f"layers 0..{num_layers - 1}, heads from 0"
                )
        return cls(heads=named, num_layers=num_layers)

    @classmethod
    def from_scores(
        cls, scores: Tensor, *, k: int, strategy: Strategy = "layer-wise"
    ) -> HeadSelection:
        """Select the ``k`` heads with the highest score in every layer.

        Made for ablations: whatever orders the heads is a tensor of scores. A layer's scores are
        divided by the sum of their magnitudes, so that they compare as p* does, and rounded to 12
        decimals; ties go to the lower index.

        Args:
            scores: ``[L, H]``, finite.
            k: heads per layer, 1 to H.
            strategy: ``layer-wise`` or ``mid-top``.

        Raises:
            InvalidArgumentError: an argument outside its range.

        Example:
            >>> richness = torch.stack([layer.information_richness for layer in selection.layers])
            >>> least_informative = HeadSelection.from_scores(-richness, k=3)
        """
        shape = tuple(scores.shape)
        if len(shape) != 2 or 0 in shape or not bool(scores.isfinite().all()):
            raise InvalidArgumentError("scores", value=shape, limit="finite scores of shape [L, H]")
        _check_count("k", k, most=shape[1], of="heads of a layer")
        _check_strategy(strategy, num_layers=shape[0])
        scores = scores.detach().to("cpu", torch.float64)
        scores = scores / scores.abs().amax(1, keepdim=True).clamp(
            min=torch.finfo(torch.float64).tiny
        )
        scores = scores / scores.abs().sum(1, keepdim=True).clamp(min=1)
        layers = _open_layers(shape[0], strategy=strategy)
        heads = [HeadId(layer, head) for layer in layers for head in _top(scores[layer], k=k)]
        return cls(heads=tuple(heads), num_layers=shape[0], k=k, strategy=strategy)

    def selected_in(self, layer: int) -> tuple[int, ...]:
        """Name the selected heads of one layer, ascending."""
        return tuple(head.head for head in self.heads if head.layer == layer)

    def to_dict(self) -> dict[str, Any]:
        """Give plain JSON values; floats keep every bit.

        Returns:
            ``k, xi, d, strategy, teleport, n_samples, num_layers`` and ``layers``: one object per
            layer with ``layer``, ``selected`` and, unless made by hand, its scores.
        """
        layers: list[dict[str, Any]] = [
            {"layer": layer, "selected": list(self.selected_in(layer))}
            for layer in range(self.num_layers)
        ]
        for entry, scores in zip(layers, self.layers, strict=False):
            entry["information_richness"] = scores.information_richness.tolist()
            entry["correlation"] = scores.correlation.tolist()
            entry["importance"] = scores.importance.tolist()
            entry["iterations"] = scores.iterations
        return {
            "k": self.k,
            "xi": self.xi,
            "d": self.damping,
            "strategy": self.strategy,
            "teleport": self.teleport,
            "n_samples": self.n_samples,
            "num_layers": self.num_layers,
            "layers": layers,
        }

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> HeadSelection:
        """Read back what :meth:`to_dict` gave.

        Raises:
            InvalidArgumentError: something is missing, or is not what it should be.
        """
        try:
            layers = entry["layers"]
            heads = [
                HeadId(layer, index(head))
                for layer, scores in enumerate(layers)
                for head in scores["selected"]
            ]
            by_hand = all("importance" not in scores for scores in layers)
            named = cls.from_heads(heads, num_layers=len(layers))
            return cls(
                heads=named.heads,
                num_layers=named.num_layers,
                layers=() if by_hand else tuple(_read_layer(scores) for scores in layers),
                k=entry["k"],
                xi=entry["xi"],
                damping=entry["d"],
                strategy=entry["strategy"],
                teleport=entry["teleport"],
                n_samples=entry["n_samples"],
            )
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise InvalidArgumentError(
                "selection", value=f"{type(error).__name__}: {error}", limit="as to_dict gives it"
            ) from error


def select_heads(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Any]],
    *,
    k: int = 3,
    xi: float | None = None,
    damping: float = 0.85,
    strategy: Strategy = "layer-wise",
    teleport: Teleport = "information",
    on_batch: Callable[[int], None] | None = None,
) -> HeadSelection:
    r"""Select the heads that matter most for the task that the samples stand for (Alg. 1 and 2).

    The batches are streamed: only sums are kept. The model is left as it was, its ``training``
    flags included.

    Args:
        model: a transformers model, bare or with a task head, tuned or not.
        batches: mappings as ``model.forward`` takes them. ``attention_mask`` marks real tokens,
            on whichever side the padding is; labels are ignored; batches ``[B, choices, S]`` count
            each choice as a sample.
        k: heads to select per layer; of H, the key-value groups where keys are grouped.
        xi: the share ξ of Eq. (2), with 0 < ξ < 1; 0.9 where not given.
        damping: d of Eq. (10), with 0 ≤ d < 1.
        strategy: ``layer-wise``, or ``mid-top`` for layers ⌈L/2⌉ … L−1 only.
        teleport: ``information``, or ``uniform`` as Eq. (10) is printed, under which neither I
            nor ξ has any influence: naming ``xi`` with it earns a UserWarning.
        on_batch: called after each batch with the number of samples seen so far; what it raises
            ends the selection.

    Returns:
        The selection with every layer's scores. p* is compared rounded to 12 decimals; ties go to
        the lower index.

    Raises:
        InvalidArgumentError: an argument outside its range, no batch, or a batch that cannot be
            scored: a mask that is not 0/1 per token, a sample without a real token.
        UnsupportedArchitectureError: the model's heads cannot be located.
        CaptureError: a forward pass does not show every layer once, or not finite numbers.
        ConvergenceError: PageRank does not converge, as can be with ``damping`` close to 1.

    Source: Gui & Xiao, "HiFi", Findings of ACL 2023.
    """
    backbone = describe(model)
    _check_count("k", k, most=backbone.num_heads, of="heads of a layer")
    _check_strategy(strategy, num_layers=backbone.num_layers)
    check_damping(damping)
    check_teleport(teleport)
    share = DEFAULT_XI if xi is None else xi
    _check_open_share(share)
    if xi is not None and teleport == "uniform":
        warnings.warn(
            f"xi={xi} has no influence with teleport='uniform': its PageRank forgets I_h",
            UserWarning,
            stacklevel=2,
        )
    sums = _ScoreSums(backbone, xi=share)
    samples = _stream(model, batches, sums=sums, on_batch=on_batch)
    means = [sums.means(layer, samples=samples) for layer in range(backbone.num_layers)]
    ranks = [
        pagerank(correlation, information=information, damping=damping, teleport=teleport)
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
        chosen, layers=layers, xi=share, damping=damping, teleport=teleport, n_samples=samples
    )


def _stream(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Any]],
    *,
    sums: _ScoreSums,
    on_batch: Callable[[int], None] | None,
) -> int:
    """Add every batch to the sums; return the number of samples."""
    samples = 0
    with capture_head_outputs(model, on_head_output=sums.add) as run:
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
        n_total: how many samples there are.
        n: how many to draw.
        seed: equal seeds draw equal samples.

    Returns:
        ``n`` different indices below ``n_total``, in the order drawn.

    Raises:
        InvalidArgumentError: ``n`` below 1 or above ``n_total``.
    """
    _check_count("n", n, most=n_total, of="samples")
    return random.Random(seed).sample(range(n_total), n)  # noqa: S311 - a draw, not a secret


class _ScoreSums:
    """Sums over the samples seen so far; all that selection keeps of them.

    Legend: B samples, S tokens, H·G query heads in H groups, D' head width.
    """

    def __init__(self, backbone: Backbone, *, xi: float) -> None:
        layers, heads = backbone.num_layers, backbone.num_query_heads
        self._groups = (backbone.num_heads, backbone.group_size)
        self._richness = RichnessSums((layers, heads), xi=xi)
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
        if head_output.dtype == torch.float64:  # squares of narrower types fit float64 as they are
            outputs = scaled(outputs)
        self._richness.add(layer, outputs, tokens=tokens)

    def settle(self) -> None:
        """Finish what the batch has left to do."""
        self._richness.settle()

    def means(self, layer: int, *, samples: int) -> tuple[Tensor, Tensor]:
        """Give I ``[H]`` and r ``[H, H]`` of one layer; of groups, means over (pairs of) heads."""
        groups, size = self._groups
        counts = self._richness.counts[layer].view(groups, size).sum(1)
        pairs = self._correlation[layer].view(groups, size, groups, size).sum((1, 3))
        return counts.double() / (samples * size), (pairs / (samples * size**2)).fill_diagonal_(0)


def _check_count(param: str, value: object, *, most: int, of: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise InvalidArgumentError(
            param, value=value, limit=f"an integer from 1 to the {most} {of}"
        )


def _check_strategy(strategy: object, *, num_layers: int) -> None:
    if strategy not in STRATEGIES:
        limit = f"one of {', '.join(STRATEGIES)}"
        raise InvalidArgumentError("strategy", value=strategy, limit=limit)
    if strategy == "mid-top" and num_layers < 2:
        raise InvalidArgumentError(
            "strategy", value=strategy, limit="a model of two layers or more"
        )


def _check_open_share(xi: object) -> None:
    """Refuse ξ outside (0, 1): a whole share is left to ``information_richness`` alone."""
    if isinstance(xi, bool) or not isinstance(xi, int | float) or not 0 < xi < 1:
        raise InvalidArgumentError("xi", value=xi, limit="a number in (0, 1)")


def _open_layers(num_layers: int, *, strategy: Strategy) -> range:
    """Name the layers in which heads are selected."""
    return range((num_layers + 1) // 2 if strategy == "mid-top" else 0, num_layers)


def _top(scores: Tensor, *, k: int) -> list[int]:
    """Name the ``k`` best heads of one layer, ascending."""
    rounded = [round(score, _DECIMALS) for score in scores.tolist()]
    return sorted(sorted(range(len(rounded)), key=lambda head: (-rounded[head], head))[:k])


def _read_layer(entry: Mapping[str, Any]) -> LayerScores:
    """Read one layer's scores from their JSON form.

    Raises:
        KeyError, TypeError, ValueError: something is missing or malformed.
    """
    information, correlation, importance = (
        torch.tensor(entry[name], dtype=torch.float64)
        for name in ("information_richness", "correlation", "importance")
    )
    heads = len(importance)
    if information.shape != (heads,) or correlation.shape != (heads, heads):
        raise ValueError("scores of different numbers of heads")
    return LayerScores(
        information_richness=information,
        correlation=correlation,
        importance=importance,
        iterations=index(entry["iterations"]),
        selected=tuple(sorted(index(head) for head in entry["selected"])),
    )
