"""The demo's checks, done with plain transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, pipeline

from hifi.backbones.models import resolve_model
from hifi.deltas.delta import HeadDelta
from hifi.deltas.loading import quiet_transformers


def measure_accuracy(merged: Path, data: Path) -> float:
    """Return a merged model's accuracy on a ``.jsonl`` file of ``text`` and ``library``."""
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    labels = predict_labels(merged, [row["text"] for row in rows])
    right = [label for label, row in zip(labels, rows, strict=True) if label == row["library"]]
    return len(right) / len(rows)


def predict_labels(merged: Path, texts: Sequence[str]) -> list[str]:
    """Classify texts with a merged model, loaded by a transformers pipeline."""
    with quiet_transformers():
        classify = pipeline("text-classification", model=str(merged), device="cpu")
        # The longest first, in the batches of hifi's own evaluation, so that every bit is equal.
        lengths = [len(classify.preprocess(text)["input_ids"][0]) for text in texts]
        order = sorted(range(len(texts)), key=lambda place: -lengths[place])
        answers = classify([texts[place] for place in order], batch_size=32)
    labels = {place: answer["label"] for place, answer in zip(order, answers, strict=True)}
    return [labels[place] for place in range(len(texts))]


def undo_is_exact(file: Path, *, model: str) -> bool:
    """Merge a classifier's delta into its backbone in memory, undo that, and compare every bit."""
    delta = HeadDelta.load(file)
    with quiet_transformers():
        network = AutoModelForSequenceClassification.from_pretrained(
            resolve_model(model).path, num_labels=len(delta.metadata.labels or ())
        )
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def is_as_before() -> bool:
        return all(torch.equal(network.state_dict()[name], before[name]) for name in before)

    displaced = delta.merge(network)
    is_changed = not is_as_before()
    displaced.merge(network)
    return is_changed and is_as_before()
