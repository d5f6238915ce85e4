"""The weights of each head, sliced by hand from each architecture's own modules: the oracle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tests.architectures import HIDDEN, LAYERS, QUERY_HEADS, heads_per_layer

if TYPE_CHECKING:
    import transformers as tf
    from torch import Tensor, nn

WIDTH = 8  # D' of the tiny models


def attention(
    model: tf.PreTrainedModel, name: str, layer: int
) -> tuple[list[nn.Module], nn.Module]:
    """Return the modules of query, key and value (the same one if fused), and W^O."""
    base = model.base_model
    if name == "distilbert":
        block = base.transformer.layer[layer].attention
        return [block.q_lin, block.k_lin, block.v_lin], block.out_lin
    if name in ("vit", "deit"):
        block = base.layers[layer].attention
        return [block.q_proj, block.k_proj, block.v_proj], block.o_proj
    if name == "modernbert":
        return [base.layers[layer].attn.Wqkv] * 3, base.layers[layer].attn.Wo
    if name == "gpt2":
        return [base.h[layer].attn.c_attn] * 3, base.h[layer].attn.c_proj
    if name in ("llama", "qwen3"):
        block = base.layers[layer].self_attn
        return [block.q_proj, block.k_proj, block.v_proj], block.o_proj
    block = base.encoder.layer[layer].attention
    return [block.self.query, block.self.key, block.self.value], block.output.dense


def head_weights(
    model: tf.PreTrainedModel, name: str, *, gradient: bool = False
) -> Iterator[tuple[int, int, list[Tensor]]]:
    """Yield layer, head and the head's query, key and value weights, or their gradients."""
    heads = heads_per_layer(name)
    group = QUERY_HEADS // heads
    for layer in range(LAYERS):
        modules, _ = attention(model, name, layer)
        for head in range(heads):
            parts = []
            for place, module in enumerate(modules):
                size = WIDTH * (group if place == 0 else 1)
                weight = module.weight.grad if gradient else module.weight.detach()
                if name == "gpt2":
                    weight = weight.T
                start = place * HIDDEN if name in ("gpt2", "modernbert") else 0
                parts.append(weight[start + head * size : start + (head + 1) * size])
            yield layer, head, parts
