"""What the demo promises, checked with plain transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hifi.backbones.devices import resolve_attention
from hifi.backbones.models import resolve_model

if TYPE_CHECKING:
    from hifi.deltas.delta import HeadDelta

_BATCH = 32


def measure_accuracy(model: Path, data: Path, *, delta: HeadDelta) -> float:
    """Predict a data set with a merged model as anyone would load it, without hifi's loop.

    Args:
        model: the merged model's folder.
        data: a ``.jsonl`` file with ``text`` and ``library``.
        delta: says at which dtype and length it was tuned.

    Returns:
        The share of right predictions.
    """
    length = int((delta.metadata.training)["max_length"])
    dtype = getattr(torch, delta.metadata.compute_dtype)
    attention = resolve_attention(device=torch.device("cpu"), dtype=dtype, max_length=length)
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSequenceClassification.from_pretrained(
        model, dtype=dtype, attn_implementation=attention
    ).eval()
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    # Sums are the same to the last bit only in the same batches: the longest texts first.
    rows.sort(key=lambda row: -len(tokenizer(row["text"], truncation=True)["input_ids"]))
    right = 0
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        texts = [row["text"] for row in batch]
        inputs = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
        with torch.no_grad():
            predicted = network(**inputs).logits.argmax(-1).tolist()
        names = [network.config.id2label[index] for index in predicted]
        right += sum(name == row["library"] for name, row in zip(names, batch, strict=True))
    return right / len(rows)


def predict_labels(model: Path, texts: Sequence[str]) -> list[str]:
    """Predict texts with a merged model as anyone would load it.

    Args:
        model: the merged model's folder.
        texts: in one batch.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSequenceClassification.from_pretrained(model).eval()
    inputs = tokenizer(list(texts), truncation=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        predicted = network(**inputs).logits.argmax(-1).tolist()
    return [network.config.id2label[index] for index in predicted]


def undo_is_exact(delta: HeadDelta, *, model: str) -> bool:
    """Merge a delta into its backbone in memory, undo that, and compare every bit.

    Args:
        delta: of a classification.
        model: the backbone's name or folder.
    """
    network = AutoModelForSequenceClassification.from_pretrained(
        resolve_model(model).path, num_labels=len(delta.metadata.labels or ())
    )
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    displaced = delta.merge(network)
    merged = network.state_dict()
    is_changed = any(not torch.equal(merged[name], tensor) for name, tensor in before.items())
    displaced.merge(network)
    restored = network.state_dict()
    return is_changed and all(
        torch.equal(restored[name], tensor) for name, tensor in before.items()
    )
