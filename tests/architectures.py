"""A tiny random model of every supported architecture, and batches for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf
from torch import Tensor

LAYERS, QUERY_HEADS, HIDDEN, VOCABULARY, PAD = 3, 4, 32, 99, 0
GROUPED_HEADS = 2  # key-value groups of Llama and Qwen3


@dataclass(frozen=True)
class Architecture:
    """How to build one architecture: configuration, classes per task, and its arguments."""

    config: type[tf.PretrainedConfig]
    classifier: type[tf.PreTrainedModel]
    arguments: dict[str, Any]
    image: bool = False


_TEXT = {"vocab_size": VOCABULARY, "pad_token_id": PAD}
_SIZE = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": QUERY_HEADS}
_BERT = {**_TEXT, **_SIZE, "intermediate_size": 37, "max_position_embeddings": 64}
_GROUPED = {**_TEXT, **_SIZE, "intermediate_size": 37, "num_key_value_heads": GROUPED_HEADS}
_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2}
# As in the published checkpoints: positions are projected with the heads' own query and key rows.
_DEBERTA = {
    **_BERT,
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": "p2c|c2p",
    "share_att_key": True,
    "position_buckets": 6,
    "norm_rel_ebd": "layer_norm",
}
_IMAGE = {**_SIZE, "intermediate_size": 37, "image_size": 8, "patch_size": 4}

ARCHITECTURES: dict[str, Architecture] = {
    "bert": Architecture(tf.BertConfig, tf.BertForSequenceClassification, _BERT),
    "roberta": Architecture(tf.RobertaConfig, tf.RobertaForSequenceClassification, _BERT),
    "xlm-roberta": Architecture(tf.XLMRobertaConfig, tf.XLMRobertaForSequenceClassification, _BERT),
    "electra": Architecture(
        tf.ElectraConfig, tf.ElectraForSequenceClassification, {**_BERT, "embedding_size": 16}
    ),
    "distilbert": Architecture(
        tf.DistilBertConfig,
        tf.DistilBertForSequenceClassification,
        {**_TEXT, "dim": HIDDEN, "n_layers": LAYERS, "n_heads": QUERY_HEADS, "hidden_dim": 37},
    ),
    "modernbert": Architecture(
        tf.ModernBertConfig,
        tf.ModernBertForSequenceClassification,
        {**_BERT, **_SPECIAL, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "deberta-v2": Architecture(
        tf.DebertaV2Config,
        tf.DebertaV2ForSequenceClassification,
        {**_DEBERTA, "conv_kernel_size": 3, "conv_act": "gelu"},
    ),
    "deberta-v3": Architecture(tf.DebertaV2Config, tf.DebertaV2ForSequenceClassification, _DEBERTA),
    "mpnet": Architecture(tf.MPNetConfig, tf.MPNetForSequenceClassification, _BERT),
    "vit": Architecture(tf.ViTConfig, tf.ViTForImageClassification, _IMAGE, image=True),
    "deit": Architecture(tf.DeiTConfig, tf.DeiTForImageClassification, _IMAGE, image=True),
    "gpt2": Architecture(
        tf.GPT2Config,
        tf.GPT2ForSequenceClassification,
        {**_TEXT, **_SPECIAL, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": QUERY_HEADS},
    ),
    "llama": Architecture(tf.LlamaConfig, tf.LlamaForSequenceClassification, _GROUPED),
    "qwen3": Architecture(
        tf.Qwen3Config, tf.Qwen3ForSequenceClassification, {**_GROUPED, "head_dim": 8}
    ),
}
NAMES = tuple(ARCHITECTURES)


def heads_per_layer(name: str) -> int:
    """Return H: the number of key-value groups where keys are grouped."""
    return GROUPED_HEADS if name in ("llama", "qwen3") else QUERY_HEADS


def tiny_model(
    name: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    num_labels: int = 2,
    **config: Any,
) -> tf.PreTrainedModel:
    """Build a sequence or image classifier in eval mode, every parameter random (biases too)."""
    architecture = ARCHITECTURES[name]
    settings = architecture.config(**{**architecture.arguments, "num_labels": num_labels, **config})
    model = architecture.classifier(settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if parameter.dim() == 1 else 0.2 * noise)
    return model.to(dtype).eval()


def tiny_batch(
    name: str,
    *,
    seed: int = 0,
    lengths: tuple[int, ...] = (9, 5, 12, 3),
    dtype: torch.dtype = torch.float32,
    labels: bool = False,
) -> dict[str, Tensor]:
    """Build a right-padded batch of random tokens of these lengths, or of as many images."""
    generator = torch.Generator().manual_seed(seed)
    batch: dict[str, Tensor] = {}
    if ARCHITECTURES[name].image:
        shape = (len(lengths), 3, 8, 8)
        batch["pixel_values"] = torch.randn(shape, generator=generator).to(dtype)
    else:
        ids = torch.randint(3, VOCABULARY, (len(lengths), max(lengths)), generator=generator)
        mask = torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]
        batch["input_ids"] = torch.where(mask, ids, PAD)
        batch["attention_mask"] = mask.long()
    if labels:
        batch["labels"] = torch.arange(len(lengths)) % 2
    return batch


def unsupported_model() -> tf.AlbertModel:
    """Build a tiny model of an architecture without a layout: ALBERT shares its layers."""
    settings = tf.AlbertConfig(
        vocab_size=9,
        embedding_size=8,
        hidden_size=8,
        num_attention_heads=2,
        num_hidden_layers=1,
    )
    return tf.AlbertModel(settings)
