"""O_h from its formula, in float64 loops over heads: for attention with relative positions.

transformers' attention interface serves no architecture whose scores are more than products of
queries and keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

# Scores of one head [S, S], from its number and its queries and keys [S, D'].
_Scores = Callable[[int, np.ndarray, np.ndarray], np.ndarray]


def head_outputs(model: PreTrainedModel, inputs: dict[str, Tensor]) -> list[np.ndarray]:
    """Return every layer's O_h ``[H, S, D']`` of one sample without padding."""
    base = model.base_model
    with torch.no_grad():
        hidden = base(**inputs, output_hidden_states=True).hidden_states
    of_layer = _of_deberta if model.config.model_type == "deberta-v2" else _of_mpnet
    return [
        of_layer(base, index, _array(hidden[index][0])) for index in range(len(base.encoder.layer))
    ]


def _of_deberta(base: nn.Module, index: int, hidden: np.ndarray) -> np.ndarray:
    """Add up the content-to-content, content-to-position and position-to-content scores.

    A_ij = (q_i·k_j + q_i·K_δ(i,j) + Q_δ(i,j)·k_j) / √(3D'), with the rows K and Q of the normalised
    position embeddings (DeBERTa, Eq. 4, with transformers' δ in both products).
    """
    config, own = base.config, base.encoder.layer[index].attention.self
    heads, length = config.num_attention_heads, len(hidden)
    table = _array(base.encoder.LayerNorm(base.encoder.rel_embeddings.weight))
    shares = config.share_att_key
    keys = _by_head(own.key_proj if shares else own.pos_key_proj, table, heads=heads)
    queries = _by_head(own.query_proj if shares else own.pos_query_proj, table, heads=heads)
    span = config.position_buckets
    bucket = [
        [
            span + _log_bucket(i - j, half=span // 2, most=config.max_position_embeddings)
            for j in range(length)
        ]
        for i in range(length)
    ]
    sums = 1 + len(config.pos_att_type)

    def score(head: int, query: np.ndarray, key: np.ndarray) -> np.ndarray:
        scores = query @ key.T
        for i in range(length):
            for j in range(length):
                if "c2p" in config.pos_att_type:
                    scores[i, j] += query[i] @ keys[head][bucket[i][j]]
                if "p2c" in config.pos_att_type:
                    scores[i, j] += queries[head][bucket[i][j]] @ key[j]
        return scores / np.sqrt(np.float32(sums * query.shape[1]))  # as transformers rounds it

    return _attend(hidden, (own.query_proj, own.key_proj, own.value_proj), heads, score)


def _of_mpnet(base: nn.Module, index: int, hidden: np.ndarray) -> np.ndarray:
    """Add each head's bias of the distance to its scores."""
    own = base.encoder.layer[index].attention.attn
    bias = _array(base.encoder.relative_attention_bias.weight)  # [buckets, H]
    distances = np.arange(len(hidden))[:, None] - np.arange(len(hidden))[None]  # i - j

    def score(head: int, query: np.ndarray, key: np.ndarray) -> np.ndarray:
        own_bias = np.vectorize(lambda distance: bias[_mpnet_bucket(int(distance)), head])
        return query @ key.T / math.sqrt(query.shape[1]) + own_bias(distances)

    return _attend(hidden, (own.q, own.k, own.v), base.config.num_attention_heads, score)


def _attend(
    hidden: np.ndarray, modules: tuple[nn.Module, ...], heads: int, score: _Scores
) -> np.ndarray:
    query, key, value = (_by_head(module, hidden, heads=heads) for module in modules)
    outputs = []
    for head in range(heads):
        scores = score(head, query[head], key[head])
        shares = np.exp(scores - scores.max(1, keepdims=True))
        outputs.append(shares / shares.sum(1, keepdims=True) @ value[head])
    return np.stack(outputs)


def _by_head(module: nn.Module, states: np.ndarray, *, heads: int) -> list[np.ndarray]:
    """Project ``[n, D]`` with each head's own rows, to H arrays ``[n, D']``."""
    weights = np.split(_array(module.weight), heads)
    biases = np.split(_array(module.bias), heads)
    return [states @ weight.T + bias for weight, bias in zip(weights, biases, strict=True)]


def _log_bucket(distance: int, *, half: int, most: int) -> int:
    """Return DeBERTa's bucket of a signed distance: exact up to ``half``, then logarithmic."""
    size = abs(distance)
    if size <= half:
        return distance
    far = math.ceil(math.log(size / half) / math.log((most - 1) / half) * (half - 1)) + half
    return int(math.copysign(far, distance))


def _mpnet_bucket(distance: int) -> int:
    """Return MPNet's bucket of a signed distance: 16 on each side, 8 of them exact."""
    side, size = (16 if distance < 0 else 0), abs(distance)
    if size < 8:
        return side + size
    return side + min(15, 8 + int(math.log(size / 8) / math.log(128 / 8) * 8))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()
