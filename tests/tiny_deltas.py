"""A tiny backbone on disk, and a head delta of it."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification

from hifi.backbones.heads import HeadId
from hifi.selection.head_selection import HeadSelection
from hifi.tuning.tuner import HeadTuner
from tests.architectures import LAYERS, tiny_model
from tests.tiny_tasks import END, UNKNOWN, tiny_tokenizer


def save_bare_backbone(folder: Path, *, seed: int = 0) -> Path:
    """Save a BERT without a task head, and its tokenizer."""
    model = tiny_model("bert", seed=seed, max_position_embeddings=128)
    model.base_model.save_pretrained(folder)
    special = {"pad_token": "[PAD]", "unk_token": UNKNOWN, "eos_token": END}
    tiny_tokenizer(**special).save_pretrained(folder)
    return folder


def save_delta(path: Path, *, backbone: Path) -> Path:
    """Save a head delta of two heads, for two classes, with noise instead of training."""
    model = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=2).eval()
    heads = [HeadId(0, 1), HeadId(2, 3)]
    tuner = HeadTuner(model, HeadSelection.from_heads(heads, num_layers=LAYERS))
    generator = torch.Generator().manual_seed(1)
    for parameter in tuner.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    delta = tuner.delta(
        task={"type": "classification", "text": ["text"], "label": "label", "max_length": 32},
        labels=["bad", "good"],
    )
    delta.save(path)
    return path
