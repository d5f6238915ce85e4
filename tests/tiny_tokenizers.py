"""Tiny tokenizers of the kinds that text models have, each of a few pieces and any character."""

from __future__ import annotations

import string
from collections.abc import Callable
from functools import cache
from pathlib import Path

import transformers as tf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from tests.architectures import tiny_model

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
ALPHABET = string.ascii_letters + string.digits + string.punctuation
# Words of one piece and of several, in scripts that divide words by spaces and in others.
WORDS = (
    "ada",
    "Lovelace",
    "in",
    "London",
    "caf\u00e9s",
    "cafe\u0301s",
    "дом",
    "世界",
    "don't",
    ".",
)
PIECES = ("lon", "don", "ada", "love", "lace", "caf", "in")


def wordpiece(*, lower: bool = True) -> tf.PreTrainedTokenizerFast:
    """Build a tokenizer as BERT's: words in pieces, marks left out with the upper case."""
    starts = [*ALPHABET, *PIECES, *"дбאבلسก世界"]
    pieces = (*SPECIAL, *starts, *(f"##{each}" for each in starts))
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return tf.BertTokenizerFast(vocab=vocabulary, do_lower_case=lower)


def byte_level(*, add_prefix_space: bool = False) -> tf.PreTrainedTokenizerFast:
    """Build a tokenizer as RoBERTa's: bytes, of which a space belongs to the next word."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    space, vocabulary = "Ġ", [*SPECIAL, *letters]
    merges = [(space, "l"), ("o", "n"), (f"{space}l", "on"), ("l", "on"), ("d", "on")]
    vocabulary += ["".join(pair) for pair in merges]
    numbers = {piece: number for number, piece in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(numbers, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("[SEP]", 3), ("[CLS]", 2), trim_offsets=True, add_prefix_space=add_prefix_space
    )
    return _wrapped(tokenizer)


def metaspace(*, split: bool = True) -> tf.PreTrainedTokenizerFast:
    """Build a tokenizer as XLM-R's and DeBERTa-v3's: a sign for the space before a word.

    Args:
        split: False lets a token have a space inside.
    """
    pieces = {"<unk>": -20.0, "▁": -4.0, **dict.fromkeys((*ALPHABET, "é", *"дбאבلسก世界"), -3.0)}
    pieces |= dict.fromkeys((*PIECES, *(f"▁{each}" for each in PIECES)), -1.0)
    pieces["▁in▁lon"] = -0.5
    whole = [(piece, 0.0) for piece in SPECIAL] + list(pieces.items())
    tokenizer = Tokenizer(models.Unigram(whole, unk_id=len(SPECIAL)))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=split)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return _wrapped(tokenizer)


def _wrapped(tokenizer: Tokenizer) -> tf.PreTrainedTokenizerFast:
    pad, unknown, *_ = SPECIAL
    return tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, unk_token=unknown)


KINDS: dict[str, Callable[[], tf.PreTrainedTokenizerFast]] = {
    "wordpiece": wordpiece,
    "wordpiece-cased": lambda: wordpiece(lower=False),
    "byte-level": byte_level,
    "byte-level-prefix": lambda: byte_level(add_prefix_space=True),
    "metaspace": metaspace,
    "metaspace-whole": lambda: metaspace(split=False),
}


class TokenizerModels:
    """Models on disk, one for each kind of tokenizer; their weights are never read.

    Args:
        folder: in which they are saved.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.folder_of = cache(self._save)

    def _save(self, kind: str) -> Path:
        folder = self._folder / kind
        tokenizer = KINDS[kind]()
        tokenizer.save_pretrained(folder)
        model = tiny_model("bert", vocab_size=len(tokenizer), max_position_embeddings=512)
        model.save_pretrained(folder)
        return folder
