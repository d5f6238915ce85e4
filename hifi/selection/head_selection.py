"""The selected heads, and the scores by which they were selected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from operator import index
from typing import Any

import torch
from torch import Tensor

from hifi.arguments import as_integer
from hifi.backbones.heads import HeadId
from hifi.data.settings import Scoring, Strategy, Teleport, declared
from hifi.errors import InvalidArgumentError

_DECIMALS = 12  # scores that agree to this many decimals are ties; the lower index wins
_SCORES = ("information_richness", "correlation", "importance")  # tensors of LayerScores


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerScores:
    """The scores of one layer's heads; H counts key-value groups if keys are grouped.

    Attributes:
        information_richness: I, float64 ``[H]``, mean over the samples (Eq. 3).
        correlation: r, float64 ``[H, H]``, mean over the samples (Eq. 7), zero diagonal.
        importance: p*, float64 ``[H]``, sums to 1 (Eq. 10).
        iterations: number of PageRank steps.
        selected: indices of the selected heads, ascending; empty if the strategy leaves the layer
            frozen.
    """

    information_richness: Tensor
    correlation: Tensor
    importance: Tensor
    iterations: int
    selected: tuple[int, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class HeadSelection:
    """The heads to tune, and how they were selected.

    Attributes:
        heads: the selected heads, ascending, each once.
        num_layers: L.
        layers: the scores of every layer, bottom first; empty for a selection made by hand.
        k: heads per layer; None if the heads were chosen by hand.
        xi: the share ξ; None for a selection made by hand, like the settings below.
        damping: d.
        strategy: ``layer-wise``, or ``mid-top`` for the upper half of the layers only.
        teleport: ``information`` or ``uniform``.
        n_samples: number of calibration samples, n.
        fingerprint: of the backbone whose heads these are, if recorded; ``finetune`` then refuses
            another backbone.
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
    fingerprint: str | None = None

    @classmethod
    def from_heads(cls, heads: Iterable[HeadId], *, num_layers: int) -> HeadSelection:
        """Return a selection of these heads.

        Args:
            heads: in any order; duplicates count once.
            num_layers: L of the model.

        Raises:
            InvalidArgumentError: a layer that the model lacks, a negative head, or values that are
                not integers.
        """
        named = set()
        for each in heads:
            layer, head = as_integer(each.layer), as_integer(each.head)
            if layer is None or head is None or not 0 <= layer < num_layers or head < 0:
                raise InvalidArgumentError(
                    "heads", value=each, limit=f"layers 0..{num_layers - 1}, heads from 0"
                )
            named.add(HeadId(layer, head))
        return cls(heads=tuple(sorted(named)), num_layers=num_layers)

    @classmethod
    def from_scores(
        cls, scores: Tensor, *, k: int, strategy: Strategy = Scoring.strategy
    ) -> HeadSelection:
        """Select the ``k`` heads with the highest score in every layer.

        This is for ablations: scores can express any ordering of heads. A layer's scores are
        divided by the sum of their magnitudes, which is the scale of p*, and rounded to 12
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
        k = declared(Scoring)["k"].check(k, most=shape[1])
        check_strategy(strategy, num_layers=shape[0])
        scores = scores.detach().to("cpu", torch.float64)
        scores = scores / scores.abs().amax(1, keepdim=True).clamp(
            min=torch.finfo(torch.float64).tiny
        )
        scores = scores / scores.abs().sum(1, keepdim=True).clamp(min=1)
        layers = range((shape[0] + 1) // 2 if strategy == "mid-top" else 0, shape[0])
        heads = [HeadId(layer, head) for layer in layers for head in _top(scores[layer], k=k)]
        return cls(heads=tuple(heads), num_layers=shape[0], k=k, strategy=strategy)

    def selected_in(self, layer: int) -> tuple[int, ...]:
        """Return the indices of the selected heads of one layer, ascending."""
        return tuple(head.head for head in self.heads if head.layer == layer)

    def to_dict(self) -> dict[str, Any]:
        """Return the selection as plain JSON values; floats are exact.

        Returns:
            ``k, xi, d, strategy, teleport, n_samples, num_layers`` and ``layers``: one object per
            layer with ``layer``, ``selected`` and, unless made by hand, its scores; and
            ``fingerprint`` if it is recorded.
        """
        layers: list[dict[str, Any]] = [
            {"layer": layer, "selected": list(self.selected_in(layer))}
            for layer in range(self.num_layers)
        ]
        for entry, scores in zip(layers, self.layers, strict=False):
            entry.update({name: getattr(scores, name).tolist() for name in _SCORES})
            entry["iterations"] = scores.iterations
        return {
            **{each.names[0]: getattr(self, name) for name, each in declared(Scoring).items()},
            "num_layers": self.num_layers,
            "layers": layers,
            **({} if self.fingerprint is None else {"fingerprint": self.fingerprint}),
        }

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> HeadSelection:
        """Rebuild a selection from the result of :meth:`to_dict`.

        Raises:
            InvalidArgumentError: a field is missing or invalid; ``param`` names it, as in
                ``selection.k``.
        """
        try:
            return _read(entry)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(
                f"selection.{error.param}", value=error.value, limit=error.limit
            ) from error
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise InvalidArgumentError(
                "selection", value=f"{type(error).__name__}: {error}", limit="the result of to_dict"
            ) from error


def check_strategy(strategy: object, *, num_layers: int) -> None:
    """Raise for an unknown strategy, or one that needs more layers than the model has.

    Raises:
        InvalidArgumentError: neither ``layer-wise`` nor ``mid-top``, or ``mid-top`` for one layer.
    """
    declared(Scoring)["strategy"].check(strategy)
    if strategy == "mid-top" and num_layers < 2:
        raise InvalidArgumentError(
            "strategy", value=strategy, limit="a model of two layers or more"
        )


def _top(scores: Tensor, *, k: int) -> list[int]:
    """Return the indices of the ``k`` best heads of one layer, ascending."""
    rounded = [round(score, _DECIMALS) for score in scores.tolist()]
    return sorted(sorted(range(len(rounded)), key=lambda head: (-rounded[head], head))[:k])


def _read(entry: Mapping[str, Any]) -> HeadSelection:
    layers = entry["layers"]
    if as_integer(entry["num_layers"]) != len(layers):
        raise InvalidArgumentError(
            "num_layers", value=entry["num_layers"], limit=f"{len(layers)}, the number of layers"
        )
    for position, scores in enumerate(layers):
        if as_integer(scores["layer"]) != position:
            raise InvalidArgumentError(
                f"layers[{position}].layer", value=scores["layer"], limit=f"its place, {position}"
            )
    named = HeadSelection.from_heads(
        (HeadId(layer, head) for layer, scores in enumerate(layers) for head in scores["selected"]),
        num_layers=len(layers),
    )
    scored = layers if any("importance" in scores for scores in layers) else []
    selection = replace(
        named,
        layers=tuple(
            _read_layer(scores, selected=named.selected_in(layer))
            for layer, scores in enumerate(scored)
        ),
        **{name: entry[each.names[0]] for name, each in declared(Scoring).items()},
        fingerprint=entry.get("fingerprint"),
    )
    _check_settings(selection)
    return selection


def _check_settings(selection: HeadSelection) -> None:
    """Raise for settings outside their range; settings are None if there are no scores."""
    is_scored = bool(selection.layers)
    heads = len(selection.layers[0].importance) if is_scored else None
    for name, setting in declared(Scoring).items():
        value = getattr(selection, name)
        if value is not None:
            setting.check(value, most=heads if name == "k" else None)
        elif is_scored:
            raise InvalidArgumentError(name, value=None, limit="required if there are scores")
    if selection.strategy is not None:
        check_strategy(selection.strategy, num_layers=selection.num_layers)
    if not isinstance(selection.fingerprint, str | None):
        raise InvalidArgumentError("fingerprint", value=selection.fingerprint, limit="a text")


def _read_layer(entry: Mapping[str, Any], *, selected: tuple[int, ...]) -> LayerScores:
    tensors = [torch.tensor(entry[name], dtype=torch.float64) for name in _SCORES]
    information, correlation, importance = tensors
    heads = len(importance)
    if information.shape != (heads,) or correlation.shape != (heads, heads):
        raise ValueError("the scores have different numbers of heads")
    if not bool(((importance >= 0) & (importance <= 1)).all()):
        raise InvalidArgumentError(
            f"layers[{entry['layer']}].importance",
            value=importance.tolist(),
            limit="shares in [0, 1], one per head",
        )
    if selected and selected[-1] >= heads:
        raise InvalidArgumentError(
            f"layers[{entry['layer']}].selected",
            value=list(selected),
            limit=f"heads 0..{heads - 1}, as many as have scores",
        )
    return LayerScores(
        information_richness=information,
        correlation=correlation,
        importance=importance,
        iterations=index(entry["iterations"]),
        selected=selected,
    )
