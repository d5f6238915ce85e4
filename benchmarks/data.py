"""The data sets and the backbone that the benchmarks run on."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BatchEncoding,
    PreTrainedModel,
)

from hifi.backbones.models import resolve_model
from hifi.training.batching import TrainingBatches

MODEL = "all-MiniLM-L6-v2"
MAX_LENGTH = 128


def data_folder() -> Path:
    """Return the folder of the real data sets; exit with a message if it is not set."""
    root = os.environ.get("HIFI_TEST_DATA")
    if not root:
        sys.exit("set HIFI_TEST_DATA to a folder with data/glue/<task>/{train,validation}.jsonl")
    return Path(root) / "data"


def read_rows(task: str, split: str) -> list[dict[str, Any]]:
    """Read a GLUE task's rows."""
    path = data_folder() / "glue" / task / f"{split}.jsonl"
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def tokenize_pairs(rows: Sequence[dict[str, Any]], **settings: Any) -> BatchEncoding:
    """Tokenize rows of MRPC, cut at ``MAX_LENGTH`` tokens."""
    first, second = ([row[name] for row in rows] for name in ("sentence1", "sentence2"))
    tokenizer = minilm_tokenizer()
    encoded: BatchEncoding = tokenizer(
        first, second, truncation=True, max_length=MAX_LENGTH, **settings
    )
    return encoded


def pad(encoded: BatchEncoding, places: Iterable[int]) -> dict[str, Tensor]:
    """Pad some of the tokenized rows into one batch."""
    columns = {name: [encoded[name][place] for place in places] for name in encoded}
    return dict(minilm_tokenizer().pad(columns, return_tensors="pt"))


def mrpc_batches(count: int, *, batch_size: int = 32, seed: int = 0) -> list[dict[str, Tensor]]:
    """Draw ``count`` batches of similar length, spread over an epoch of MRPC."""
    rows = read_rows("mrpc", "train")
    encoded = tokenize_pairs(rows)
    lengths = np.array([len(ids) for ids in encoded["input_ids"]])
    epoch = TrainingBatches(lengths=lengths, batch_size=batch_size, seed=seed).epoch(0)
    full = [indices.tolist() for indices in epoch if len(indices) == batch_size]
    return [
        {**pad(encoded, places), "labels": torch.tensor([rows[n]["label"] for n in places])}
        for places in full[:: max(1, len(full) // count)][:count]
    ]


def minilm_tokenizer() -> Any:
    """Load the tokenizer of MiniLM."""
    return AutoTokenizer.from_pretrained(resolve_model(MODEL).path)


def minilm(**settings: Any) -> PreTrainedModel:
    """Load MiniLM with a new classifier of two labels, initialised with a fixed seed."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        resolve_model(MODEL).path, **settings
    )
    return model
