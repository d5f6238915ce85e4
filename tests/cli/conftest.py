"""A tiny backbone on disk, a data set that it can learn, and a head delta of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hifi.backbone import HeadId
from hifi.head_selection import HeadSelection
from hifi.tuning import HeadTuner
from tests.architectures import LAYERS, tiny_model
from tests.tiny_tasks import BAD, END, GOOD, UNKNOWN, WORDS, tiny_tokenizer, write_jsonl


@pytest.fixture(scope="session")
def backbone(tmp_path_factory) -> Path:
    """Save a bare tiny BERT with its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    tiny_model("bert", max_position_embeddings=128).base_model.save_pretrained(folder)
    special = {"pad_token": "[PAD]", "unk_token": UNKNOWN, "eos_token": END}
    tiny_tokenizer(**special).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Write train.jsonl (48 rows) and validation.jsonl (12): is there a good word in it?"""
    folder = tmp_path_factory.mktemp("data")
    a, film, very, plot, *_ = WORDS[40:]  # neither good nor bad
    tails = [
        *(f"{a} {film}", f"{a} {very} {{}} {film}", plot),
        *(f"{plot} {film}", f"{a} {plot}", f"{very} {{}} {very} {{}}"),
    ]
    rows = [
        {"text": f"{word} {tail.format(word, word)}", "label": label}
        for tail in tails
        for label, word in enumerate((BAD[0], GOOD[0]))
    ]
    write_jsonl(folder / "train.jsonl", rows * 4)
    write_jsonl(folder / "validation.jsonl", rows)
    return folder


@pytest.fixture(scope="session")
def delta_file(backbone, tmp_path_factory) -> Path:
    """Save a head delta of two heads of the tiny backbone, its rows far from the backbone's."""
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
    path = tmp_path_factory.mktemp("deltas") / "tiny.safetensors"
    delta.save(path)
    return path
