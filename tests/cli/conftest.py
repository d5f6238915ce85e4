"""A tiny backbone on disk, a data set that it can learn, and a head delta of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from hifi.backbone import HeadId
from hifi.head_selection import HeadSelection
from hifi.tuning import HeadTuner
from tests.architectures import LAYERS, tiny_model

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "a", "film", "very", "plot", "and"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer of whole words."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{role}_token": token for role, token in special.items()}
    )


@pytest.fixture(scope="session")
def backbone(tmp_path_factory) -> Path:
    """Save a bare tiny BERT with its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    tiny_model("bert", max_position_embeddings=128).base_model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Write train.jsonl (48 rows) and validation.jsonl (12): is the film good?"""
    folder = tmp_path_factory.mktemp("data")
    tails = ["a film", "a very {} film", "plot", "plot and film", "a plot", "very {} and {}"]
    rows = [
        {"text": f"{word} {tail.replace('{}', word)}", "label": label}
        for tail in tails
        for word, label in (("good", 1), ("bad", 0))
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
