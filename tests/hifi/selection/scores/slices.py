"""The weights of each head, sliced by hand from each architecture's own modules: the oracle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tests.architectures import HIDDEN, LAYERS, QUERY_HEADS, heads_per_layer

if TYPE_CHECKING:
    import transformers as tf
    from torch import Tensor, nn

WIDTH = 8  # D' of the tiny models
_BERT = ("encoder.layer.{}.attention", "self.query self.key self.value output.dense")
_DEBERTA = (
    "encoder.layer.{}.attention",
    "self.query_proj self.key_proj self.value_proj output.dense",
)
_VIT = ("layers.{}.attention", "q_proj k_proj v_proj o_proj")
_LLAMA = ("layers.{}.self_attn", "q_proj k_proj v_proj o_proj")
_MODULES = {
    "distilbert": ("transformer.layer.{}.attention", "q_lin k_lin v_lin out_lin"),
    "deberta-v2": _DEBERTA,
    "deberta-v3": _DEBERTA,
    "mpnet": ("encoder.layer.{}.attention.attn", "q k v o"),
    "vit": _VIT,
    "deit": _VIT,
    "modernbert": ("layers.{}.attn", "Wqkv Wqkv Wqkv Wo"),
    "gpt2": ("h.{}.attn", "c_attn c_attn c_attn c_proj"),
    "llama": _LLAMA,
    "qwen3": _LLAMA,
}


def attention(
    model: tf.PreTrainedModel, name: str, layer: int
) -> tuple[list[nn.Module], nn.Module]:
    """Return the modules of query, key and value (the same one if fused), and W^O."""
    path, names = _MODULES.get(name, _BERT)
    block = model.base_model.get_submodule(path.format(layer))
    query, key, value, output = (block.get_submodule(each) for each in names.split())
    return [query, key, value], output


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
