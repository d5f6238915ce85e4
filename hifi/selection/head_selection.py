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
from hifi.data.allotments import Strategy, make_allotment
from hifi.data.settings import IMPLIED, Score, Scoring, Teleport, declared, describe_scoring
from hifi.errors import InvalidArgumentError

_ANY_NUMBER = 2**31  # of heads; a selection without scores does not say how many there are
_DECIMALS = 12  # scores that agree to this many decimals are ties; the lower index wins
_PAPER_SCORES = ("information_richness", "correlation", "importance")  # tensors of LayerScores


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerScores:
    """The scores of one layer's heads; H counts key-value groups if keys are grouped.

    Attributes:
        values: the numbers that ranked the heads, float64 ``[H]``; with score ``pagerank`` and no
            budget they are the importance.
        information_richness: I, float64 ``[H]``, mean over the samples (Eq. 3).
        correlation: r, float64 ``[H, H]``, mean over the samples (Eq. 7), zero diagonal.
        importance: p*, float64 ``[H]``, sums to 1 (Eq. 10).
        iterations: number of PageRank steps.
        selected: indices of the selected heads, ascending; empty if the strategy leaves the layer
            frozen.
    """

    values: Tensor
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
        score: what ranked the heads; None for a selection made by hand, like the settings below.
        k: heads per layer; None with a budget too.
        budget: heads of the whole model; None for the other strategies.
        xi: the share ξ.
        damping: d.
        strategy: ``layer-wise``, ``mid-top`` for the upper half of the layers only, or ``budget``.
        teleport: ``information`` or ``uniform``.
        n_samples: number of calibration samples, n.
        fingerprint: of the backbone whose heads these are, if recorded; ``finetune`` then refuses
            another backbone.
    """

    heads: tuple[HeadId, ...]
    num_layers: int
    layers: tuple[LayerScores, ...] = ()
    score: Score | None = None
    k: int | None = None
    budget: int | None = None
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
        cls,
        scores: Tensor,
        *,
        k: int | None = Scoring.k,
        strategy: Strategy = Scoring.strategy,
        budget: int | None = Scoring.budget,
    ) -> HeadSelection:
        """Select the heads with the highest scores: in every layer, or in the whole model.

        Scores can express any ordering of heads, so this makes ablations too. The scores of the
        heads that compete are divided by the sum of their magnitudes, which is the scale of p*, and
        rounded to 12 decimals; ties go to the lower layer, then to the lower head.

        Args:
            scores: ``[L, H]``, finite; with a budget, comparable between layers.
            k: heads per layer, 1 to H; 3 by default, and none with a budget.
            strategy: ``layer-wise``, ``mid-top`` or ``budget``.
            budget: heads of the whole model, 1 to L·H; with strategy ``budget``.

        Raises:
            InvalidArgumentError: an argument outside its range.

        Example:
            >>> richness = torch.stack([layer.information_richness for layer in selection.layers])
            >>> least_informative = HeadSelection.from_scores(-richness, k=3)
        """
        shape = tuple(scores.shape)
        if len(shape) != 2 or 0 in shape or not bool(scores.isfinite().all()):
            raise InvalidArgumentError("scores", value=shape, limit="finite scores of shape [L, H]")
        declared(Scoring)["strategy"].check(strategy)
        allotment = make_allotment(strategy, k=k, budget=budget)
        allotment = allotment.fitted(num_layers=shape[0], num_heads=shape[1])
        scores = scores.detach().to("cpu", torch.float64)
        heads = [
            HeadId(pool[place // shape[1]], place % shape[1])
            for pool in allotment.pools(num_layers=shape[0])
            for place in _top(scores[list(pool)].flatten(), count=allotment.count)
        ]
        return cls(
            heads=tuple(heads),
            num_layers=shape[0],
            strategy=strategy,
            k=allotment.k,
            budget=allotment.budget,
        )

    def selected_in(self, layer: int) -> tuple[int, ...]:
        """Return the indices of the selected heads of one layer, ascending."""
        return tuple(head.head for head in self.heads if head.layer == layer)

    def to_dict(self) -> dict[str, Any]:
        """Return the selection as plain JSON values; floats are exact.

        Returns:
            ``k, xi, d, strategy, teleport, n_samples, num_layers`` and ``layers``: one object per
            layer with ``layer``, ``selected`` and, unless made by hand, its scores;
            ``fingerprint`` if it is recorded; ``score``, ``budget`` and each layer's ``values``
            only where they are not those of the paper's method.
        """
        layers: list[dict[str, Any]] = [
            {"layer": layer, "selected": list(self.selected_in(layer))}
            for layer in range(self.num_layers)
        ]
        settings = describe_scoring(self)
        for entry, scores in zip(layers, self.layers, strict=False):
            if settings.keys() & IMPLIED.keys():
                entry["values"] = scores.values.tolist()
            entry.update({name: getattr(scores, name).tolist() for name in _PAPER_SCORES})
            entry["iterations"] = scores.iterations
        return {
            **settings,
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


def _top(scores: Tensor, *, count: int) -> list[int]:
    """Return the places of the best scores ``[n]``, ascending."""
    shares = scores / scores.abs().amax().clamp(min=torch.finfo(torch.float64).tiny)
    shares = shares / shares.abs().sum().clamp(min=1)
    rounded = [round(share, _DECIMALS) for share in shares.tolist()]
    return sorted(sorted(range(len(rounded)), key=lambda place: (-rounded[place], place))[:count])


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
    settings = {**(IMPLIED if scored else dict.fromkeys(IMPLIED)), **entry}
    selection = replace(
        named,
        layers=tuple(
            _read_layer(scores, selected=named.selected_in(layer))
            for layer, scores in enumerate(scored)
        ),
        **{name: settings[each.names[0]] for name, each in declared(Scoring).items()},
        fingerprint=entry.get("fingerprint"),
    )
    _check_settings(selection)
    return selection


def _check_settings(selection: HeadSelection) -> None:
    """Raise for settings outside their range; settings are None if there are no scores."""
    is_scored, has_strategy = bool(selection.layers), selection.strategy is not None
    for name, setting in declared(Scoring).items():
        value = getattr(selection, name)
        if name in ("k", "budget") and (value is None or has_strategy):
            continue  # the strategy's allotment checks them below
        if value is not None:
            setting.check(value)
        elif is_scored:
            raise InvalidArgumentError(name, value=None, limit="required if there are scores")
    if selection.strategy is not None:
        _check_allotment(selection, strategy=selection.strategy)
    if not isinstance(selection.fingerprint, str | None):
        raise InvalidArgumentError("fingerprint", value=selection.fingerprint, limit="a text")


def _check_allotment(selection: HeadSelection, *, strategy: Strategy) -> None:
    """Raise unless the counts are those of the strategy, and the model has so many heads."""
    allotment = make_allotment(strategy, k=selection.k, budget=selection.budget)
    if selection.layers and getattr(selection, allotment.param) is None:
        limit = "required if there are scores"
        raise InvalidArgumentError(allotment.param, value=None, limit=limit)
    heads = len(selection.layers[0].importance) if selection.layers else _ANY_NUMBER
    allotment.fitted(num_layers=selection.num_layers, num_heads=heads)


def _read_layer(entry: Mapping[str, Any], *, selected: tuple[int, ...]) -> LayerScores:
    tensors = [torch.tensor(entry[name], dtype=torch.float64) for name in _PAPER_SCORES]
    information, correlation, importance = tensors
    values = torch.tensor(entry.get("values", entry["importance"]), dtype=torch.float64)
    heads = len(importance)
    shapes = (information.shape, values.shape, correlation.shape)
    if shapes != ((heads,), (heads,), (heads, heads)):
        raise ValueError("the scores have different numbers of heads")
    if not bool(((importance >= 0) & (importance <= 1)).all()):
        raise InvalidArgumentError(
            f"layers[{entry['layer']}].importance",
            value=importance.tolist(),
            limit="shares in [0, 1], one per head",
        )
    for name, scores in (("values", values), ("information_richness", information)):
        if not bool(scores.isfinite().all()):
            param = f"layers[{entry['layer']}].{name}"
            raise InvalidArgumentError(param, value=scores.tolist(), limit="finite numbers")
    if selected and selected[-1] >= heads:
        raise InvalidArgumentError(
            f"layers[{entry['layer']}].selected",
            value=list(selected),
            limit=f"heads 0..{heads - 1}, as many as have scores",
        )
    return LayerScores(
        values=values,
        information_richness=information,
        correlation=correlation,
        importance=importance,
        iterations=index(entry["iterations"]),
        selected=selected,
    )
