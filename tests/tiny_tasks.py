"""Tiny pretrained models on disk with tokenizers, and tiny data sets that can be learnt."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import transformers as tf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers.utils import logging

from tests.architectures import ARCHITECTURES, PAD, VOCABULARY, tiny_model

UNKNOWN, END = "[UNK]", "[SEP]"
SPECIAL = ("[PAD]", "[CLS]", END, UNKNOWN)  # PAD is 0, bos 1 and eos 2, as in the tiny models
WORDS = tuple(f"w{index}" for index in range(VOCABULARY - len(SPECIAL)))
GOOD, BAD = WORDS[:20], WORDS[20:40]
IMAGE_SIZE = 8
logging.disable_progress_bar()  # of save_pretrained


def tiny_tokenizer(**special: str) -> tf.PreTrainedTokenizerFast:
    """Build a tokenizer of whole words that frames texts with [CLS] and [SEP]."""
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    assert len(vocabulary) == VOCABULARY
    assert vocabulary["[PAD]"] == PAD
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def save_text_model(folder: Path, name: str = "bert", **config: Any) -> Path:
    """Save a random classifier as a checkpoint with its own task head, and its tokenizer."""
    tiny_model(name, **config).save_pretrained(folder)
    has_pad = ARCHITECTURES[name].config not in (tf.GPT2Config, tf.LlamaConfig)
    pad = {"pad_token": "[PAD]"} if has_pad else {}
    tiny_tokenizer(unk_token=UNKNOWN, eos_token=END, **pad).save_pretrained(folder)
    return folder


def save_image_model(folder: Path, name: str = "vit", **config: Any) -> Path:
    """Save a random image classifier and its processor."""
    tiny_model(name, **config).save_pretrained(folder)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    tf.ViTImageProcessor(size=size).save_pretrained(folder)
    return folder


def text_rows(
    count: int, *, seed: int = 0, labels: Sequence[Any] = (0, 1), pair: bool = False
) -> list[dict[str, Any]]:
    """Make texts of 1 to 12 words that mostly indicate their label; every label occurs."""
    generator = random.Random(seed)  # noqa: S311 - a draw, not a secret
    rows = []
    for index in range(count):
        place = index % len(labels)
        words = GOOD if place else BAD
        text = " ".join(generator.choices((*words, *words, *WORDS), k=generator.randint(1, 12)))
        row = {"text": text, "label": labels[place]}
        if pair:
            row = {"first": text, "second": " ".join(generator.choices(words, k=3)), **row}
            del row["text"]
        rows.append(row)
    return rows


def png(shade: int, *, size: tuple[int, int] = (IMAGE_SIZE, IMAGE_SIZE), mode: str = "L") -> bytes:
    """Encode an image of one shade."""
    buffer = io.BytesIO()
    Image.new(mode, size, shade if mode == "L" else (shade, 0, 255 - shade)).save(buffer, "PNG")
    return buffer.getvalue()


def image_rows(count: int) -> list[dict[str, Any]]:
    """Make dark images of label 0 and light ones of label 1, as Parquet files hold them."""
    return [
        {
            "image": {"bytes": png((index % 2) * 200 + index % 50), "path": "/nowhere.png"},
            "label": index % 2,
        }
        for index in range(count)
    ]


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows in a format that holds them: Parquet for images, else JSON lines.

    Args:
        path: without the ending.
        rows: to write.

    Returns:
        The path with its ending.
    """
    if "image" not in rows[0]:
        return write_jsonl(path.with_name(f"{path.name}.jsonl"), rows)
    whole = path.with_name(f"{path.name}.parquet")
    pq.write_table(pa.Table.from_pylist(list(rows)), whole)
    return whole
