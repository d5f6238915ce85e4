"""A naive reference of the method: one sample and one head at a time, in float64 numpy loops.

Head outputs come from transformers' attention interface instead of hooks, or by hand for
architectures that do not use it; every sample runs alone and without padding, and PageRank is
networkx's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import networkx as nx
import numpy as np
import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests import attention_by_hand

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TIE = 1e-12
_PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")


@dataclass(frozen=True)
class NaiveScores:
    """One layer's scores as plain arrays: I ``[H]``, r ``[H, H]`` and p* ``[H]``."""

    information_richness: np.ndarray
    correlation: np.ndarray
    importance: np.ndarray


def richness(output: np.ndarray, *, xi: float) -> int:
    """Evaluate Eq. (2) on one O_h ``[S, D']``."""
    singular = np.linalg.svd(output.astype(np.float64), compute_uv=False)
    singular = np.sort(singular)[::-1]
    total = float(singular.sum())
    if total == 0:
        return 1
    running = 0.0
    for count, value in enumerate(singular, start=1):
        running += float(value)
        if running / total >= xi * (1 - TIE):
            return count
    return len(singular)


def covariance(first: np.ndarray, second: np.ndarray) -> float:
    """Compute the unbiased covariance of two vectors, entry by entry."""
    total = 0.0
    for a, b in zip(first, second, strict=True):
        total += (a - first.mean()) * (b - second.mean())
    return float(total / (len(first) - 1))


def pagerank(
    correlation: np.ndarray, information: np.ndarray, *, damping: float, teleport: str
) -> np.ndarray:
    """Run networkx's PageRank on the weighted graph of one layer."""
    heads = range(len(information))
    graph = nx.DiGraph()
    graph.add_nodes_from(heads)
    graph.add_weighted_edges_from(
        (a, b, float(correlation[a, b])) for a in heads for b in heads if correlation[a, b] > 0
    )
    start = {head: float(information[head]) for head in heads}
    ranks = nx.pagerank(
        graph,
        alpha=damping,
        personalization=start if teleport == "information" else None,
        nstart=start,
        tol=1e-14,
        max_iter=100_000,
    )
    return np.array([ranks[head] for head in heads])


def head_outputs(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> list[list[np.ndarray]]:
    """Return O_h of every sample and layer: ``[samples][layers]`` arrays ``[H·G, S, D']``."""
    samples = range(len(next(iter(batch.values()))))
    if model.config.model_type in ("deberta-v2", "mpnet"):
        alone = copy.deepcopy(model).eval()
        return [attention_by_hand.head_outputs(alone, _alone(batch, each)) for each in samples]
    seen: list[np.ndarray] = []

    def spy(*args: object, **kwargs: object) -> tuple[Tensor, None]:
        output, _ = sdpa_attention_forward(*args, **kwargs)  # [1, S, H·G, D']
        seen.append(output[0].transpose(0, 1).double().numpy().copy())
        return output, None

    ALL_ATTENTION_FUNCTIONS.register("spy", spy)
    ALL_MASK_ATTENTION_FUNCTIONS.register("spy", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model = copy.deepcopy(model).eval()
    model.set_attn_implementation("spy")
    outputs = []
    for sample in samples:
        with torch.no_grad():
            model.base_model(**_alone(batch, sample))
        outputs.append(list(seen))
        seen.clear()
    return outputs


def _alone(batch: Mapping[str, Tensor], sample: int) -> dict[str, Tensor]:
    """Return one sample of a batch, without its padding."""
    inputs = {}
    for name, value in batch.items():
        if name == "labels":
            continue
        inputs[name] = value[sample : sample + 1]
        if name in _PER_TOKEN and "attention_mask" in batch:
            inputs[name] = inputs[name][:, batch["attention_mask"][sample].bool()]
    return inputs


def scores(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    groups: int,
    xi: float = 0.9,
    damping: float = 0.85,
    teleport: str = "information",
) -> list[NaiveScores]:
    """Score every layer; ``groups`` is H, the heads that can be selected."""
    samples = [sample for batch in batches for sample in head_outputs(model, batch)]
    layers = []
    for layer in range(len(samples[0])):
        outputs = [sample[layer] for sample in samples]
        information, correlation = _means(outputs, groups=groups, xi=xi)
        importance = pagerank(correlation, information, damping=damping, teleport=teleport)
        layers.append(NaiveScores(information, correlation, importance))
    return layers


def _means(
    outputs: Sequence[np.ndarray], *, groups: int, xi: float
) -> tuple[np.ndarray, np.ndarray]:
    heads = len(outputs[0])
    members = np.split(np.arange(heads), groups)
    information = np.zeros(groups)
    correlation = np.zeros((groups, groups))
    for sample in outputs:
        means = [sample[head].mean(0) for head in range(heads)]
        for a in range(groups):
            information[a] += np.mean([richness(sample[head], xi=xi) for head in members[a]])
            for b in range(groups):
                if a != b:
                    correlation[a, b] += np.mean(
                        [
                            abs(covariance(means[first], means[second]))
                            for first in members[a]
                            for second in members[b]
                        ]
                    )
    return information / len(outputs), correlation / len(outputs)
