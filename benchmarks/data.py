"""The data sets and the backbone that the benchmarks run on."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from hifi.backbones.models import resolve_model
from hifi.training.batching import TrainingBatches

MODEL = "all-MiniLM-L6-v2"
MAX_LENGTH = 128


def data_folder() -> Path:
    """Give the folder of the real data sets, or stop with a word on how to name it."""
    root = os.environ.get("HIFI_TEST_DATA")
    if not root:
        sys.exit("set HIFI_TEST_DATA to a folder with data/glue/<task>/{train,validation}.jsonl")
    return Path(root) / "data"


def read_rows(task: str, split: str) -> list[dict[str, Any]]:
    """Read a GLUE task's rows."""
    path = data_folder() / "glue" / task / f"{split}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def mrpc_batches(count: int, *, batch_size: int = 32, seed: int = 0) -> list[dict[str, Tensor]]:
    """Draw ``count`` batches of similar length, spread over an epoch of MRPC."""
    rows = read_rows("mrpc", "train")
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(MODEL).path)
    first, second = ([row[name] for row in rows] for name in ("sentence1", "sentence2"))
    encoded = tokenizer(first, second, truncation=True, max_length=MAX_LENGTH)
    lengths = np.array([len(ids) for ids in encoded["input_ids"]])
    epoch = TrainingBatches(lengths=lengths, batch_size=batch_size, seed=seed).epoch(0)
    full = [indices for indices in epoch if len(indices) == batch_size]
    batches = []
    for indices in full[:: max(1, len(full) // count)][:count]:
        columns = {name: [encoded[name][i] for i in indices] for name in encoded}
        batch = dict(tokenizer.pad(columns, return_tensors="pt"))
        batch["labels"] = torch.tensor([rows[i]["label"] for i in indices])
        batches.append(batch)
    return batches


def minilm(**settings: Any) -> PreTrainedModel:
    """Load MiniLM with a fresh classifier of two labels, always the same one."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        resolve_model(MODEL).path, **settings
    )
    return model
