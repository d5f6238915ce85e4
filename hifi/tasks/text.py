"""Texts and pairs of texts: tokenised once per split and padded per batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hifi.backbones.models import load_tokenizer, usable_pad_token
from hifi.data.columns import read_texts
from hifi.data.task_types import IMAGE_INPUT, TEXT_INPUT
from hifi.errors import (
    DataError,
    InputError,
    InvalidArgumentError,
    ModelError,
    TextTooLongError,
    quoted,
)
from hifi.tasks.base import Batch, EncodedInput, Encoder, Examples, Sample, Task, digest_of

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import PreTrainedConfig
    from transformers.tokenization_utils_base import BatchEncoding, PreTrainedTokenizerBase

    from hifi.backbones.models import ModelSource
    from hifi.data.task_types import Request

IDS, _TYPES, MASK = "input_ids", "token_type_ids", "attention_mask"
UNREAD = "the tokenizer produces no token for this text"
# Tokenised at a time: until its tokens are in an array, a text takes 50 bytes for each character.
_PORTION_CHARACTERS = 1_000_000
_IMAGE, _TEXT = (request.fields[0].name for request in (IMAGE_INPUT, TEXT_INPUT))


@dataclass(frozen=True, kw_only=True)
class TextTask(Task):
    """Base class of tasks on texts; ``inputs`` are one or two text columns."""

    @classmethod
    def set_padding(cls, source: ModelSource, config: PreTrainedConfig) -> None:
        """Set the pad token of a merged model."""
        config.pad_token_id = usable_pad_token(config, load_tokenizer(source))

    @classmethod
    def load_processor(
        cls, source: ModelSource, config: PreTrainedConfig, *, record: Mapping[str, Any]
    ) -> PreTrainedTokenizerBase:
        """Load the tokenizer with the settings of the fine-tune."""
        tokenizer = load_tokenizer(source)
        pad = usable_pad_token(config, tokenizer)
        if pad is not None:
            config.pad_token_id = pad
            if pad != tokenizer.pad_token_id and pad < len(tokenizer):
                tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
        if not has_token_types(config) and _TYPES in tokenizer.model_input_names:
            names = [name for name in tokenizer.model_input_names if name != _TYPES]
            # Only what is in init_kwargs is saved.
            tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
        tokenizer.padding_side = record.get("padding_side", tokenizer.padding_side)
        tokenizer.model_max_length = record.get("max_length", tokenizer.model_max_length)
        return tokenizer

    def load_encoder(
        self, source: ModelSource, config: PreTrainedConfig, *, max_length: int
    ) -> TextEncoder:
        """Load the model's tokenizer, and set the pad token in its configuration."""
        return TextEncoder(
            source,
            config,
            columns=self.inputs,
            max_length=max_length,
            request=self.declaration.layouts[0].request,
        )


def has_token_types(config: PreTrainedConfig) -> bool:
    """Return whether a model tells the two texts of a pair apart by token types."""
    return getattr(config, "type_vocab_size", 0) > 1


@dataclass(frozen=True)
class TokenizedTexts:
    """Tokenised texts, or pairs of texts.

    Attributes:
        tokens: ``input_ids``, and ``token_type_ids`` if tokenizer and model have them, of each
            sample.
        lengths: tokens of each sample before truncation to ``max_length``.
    """

    tokens: Mapping[str, list[list[int]]]
    lengths: Sequence[int]


class TextEncoder(Encoder):
    """A tokenizer with its settings; they do not change, so it is thread-safe.

    Token types are left out for a model that has at most one: it would have no embedding for the
    second text's, and uses its own if there are none.

    Args:
        source: the model.
        config: its configuration; gets the pad token, which pads a batch on the right.
        columns: one or two text columns.
        max_length: the most tokens of a sample, including special tokens; longer samples are
            truncated, of a pair the longer text first.
        request: names the texts of an input for a prediction.

    Attributes:
        pads: the padding value of each of the tokenizer's outputs, by name.

    Raises:
        InvalidArgumentError: ``max_length`` leaves a text without a token.
        ModelError: the tokenizer is missing, or has no token to pad with.
    """

    def __init__(
        self,
        source: ModelSource,
        config: PreTrainedConfig,
        *,
        columns: Sequence[str],
        max_length: int,
        request: Request = TEXT_INPUT,
    ) -> None:
        tokenizer = load_tokenizer(source)
        pad_token_id = usable_pad_token(config, tokenizer)
        if pad_token_id is None:
            raise ModelError(f"{source.name} has neither a pad token nor an end-of-text token")
        special = tokenizer.num_special_tokens_to_add(pair=len(columns) == 2)
        least = special + len(columns)
        if max_length < least:  # tokenizers would drop a whole text, or not truncate at all
            limit = f"at least {least}: {special} special tokens and one of each text"
            raise InvalidArgumentError("max_length", value=max_length, limit=limit)
        config.pad_token_id = pad_token_id
        self.sequence_length = max_length
        self.metadata = {
            "text": list(columns),
            "max_length": max_length,
            "pad_token": tokenizer.convert_ids_to_tokens(pad_token_id),
            "pad_token_id": pad_token_id,
            "padding_side": "right",
        }
        self._tokenizer = tokenizer
        self._columns = tuple(columns)
        self.pads: Mapping[str, int] = {IDS: pad_token_id}
        if has_token_types(config):
            self.pads = {IDS: pad_token_id, _TYPES: 0}
        self._model_name = source.name
        self._vocabulary = int(config.vocab_size)
        self._names = tuple(field.name for field in request.fields[: len(columns)])
        self.tokenize([["a"]] * len(columns))  # the first call fixes the tokenizer's settings

    def encode(self, dataset: Dataset, *, split: str, targets: Tensor) -> Examples:
        """Check the texts of a split and tokenise them.

        Raises:
            DataError: a text has no token, or a token for which the model has no embedding.
        """
        texts = [read_texts(dataset, column, split=split) for column in self._columns]
        return self.encode_texts(texts, split=split, targets=targets)

    def encode_texts(
        self, texts: Sequence[Sequence[str]], *, split: str, targets: Tensor, per_row: int = 1
    ) -> EncodedTexts:
        """Tokenise the texts of a split.

        Args:
            texts: a sequence for each column, all of the same length.
            split: for messages.
            targets: ``[n, …]``, stored with the tokens.
            per_row: samples of a row of the data, one after the other.

        Raises:
            DataError: a text has no token, or a token for which the model has no embedding.
        """
        lengths: list[NDArray[np.int64]] = []
        tokens: dict[str, list[NDArray[np.int64]]] = {}
        for rows in portions(texts):
            portion = [column[rows] for column in texts]
            found = self.tokenize(portion).tokens
            lengths.append(np.array([len(ids) for ids in found[IDS]], dtype=np.int64))
            self._check_ids(
                found[IDS], portion, split=split, first_row=rows.start + 1, per_row=per_row
            )
            for name, values in found.items():
                flat = np.array(list(chain.from_iterable(values)), dtype=np.int64)
                tokens.setdefault(name, []).append(flat)
        return EncodedTexts(
            lengths=np.concatenate(lengths),
            tokens={name: np.concatenate(tokens.pop(name)) for name in list(tokens)},
            pads=self.pads,
            targets=targets,
        )

    def _check_ids(
        self,
        ids: Sequence[Sequence[int]],
        texts: Sequence[Sequence[str]],
        *,
        split: str,
        first_row: int,
        per_row: int = 1,
    ) -> None:
        """Raise for the first row without a token, or with one that has no embedding.

        Args:
            ids: of samples.
            texts: of the samples, a sequence for each column.
            split: for messages.
            first_row: the number of the first sample, from 1.
            per_row: samples of a row of the data.
        """
        for place, row in enumerate(ids):
            number = (first_row + place - 1) // per_row + 1
            if not row:
                raise DataError(UNREAD, split=split, row=number)
            if max(row) >= self._vocabulary:
                token = self._first_unknown(row)
                text = self._text_with(token, [column[place] for column in texts])
                raise DataError(
                    self._describe_unknown(token),
                    split=split,
                    row=number,
                    column=self._columns[text],
                )

    def read(
        self, inputs: Sequence[Mapping[str, Any]], *, truncate: bool
    ) -> Sequence[EncodedInput | InputError]:
        """Check and tokenise inputs of predictions."""
        read: list[EncodedInput | InputError | None] = [self._check(given) for given in inputs]
        sound = [place for place, error in enumerate(read) if error is None]
        if sound:
            found = self._read_checked([inputs[place] for place in sound], truncate=truncate)
            for place, each in zip(sound, found, strict=True):
                read[place] = each
        return [entry for entry in read if entry is not None]

    def _read_checked(
        self, inputs: Sequence[Mapping[str, Any]], *, truncate: bool
    ) -> Iterator[EncodedInput | InputError]:
        """Tokenise inputs that passed the check."""
        tokenized = self.tokenize([[given[name] for given in inputs] for name in self._names])
        for place, given in enumerate(inputs):
            row = {name: rows[place] for name, rows in tokenized.tokens.items()}
            whole = tokenized.lengths[place]
            sample = self._sample(row, whole_length=whole, truncate=truncate)
            yield self._check_tokens(row, given) or sample

    def _check(self, given: Mapping[str, Any]) -> InputError | None:
        """Return the error of an input without the right fields, or with an empty text."""
        what = counted = " and ".join(self._names)
        if self._names[0] == _TEXT:
            is_pair = len(self._names) == 2
            what, counted = ("pairs of texts", "two texts") if is_pair else ("texts", "one text")
        for name in self._names:
            if name not in given:
                if _IMAGE in given:
                    return InputError(f"the task reads {what}, not images", param=_IMAGE)
                return InputError(f"the task reads {what}: {name} is missing", param=name)
            if not given[name].strip():
                return InputError(f"{name} is empty", param=name)
        for name in sorted(given.keys() - set(self._names)):
            return InputError(f"the task reads {counted}, not {name}", param=name)
        return None

    def _check_tokens(
        self, row: Mapping[str, list[int]], given: Mapping[str, Any]
    ) -> InputError | None:
        """Return an error for a token without an embedding: on a GPU it would end the process."""
        if max(row[IDS], default=0) < self._vocabulary:
            return None
        token = self._first_unknown(row[IDS])
        text = self._text_with(token, [given[name] for name in self._names])
        return InputError(self._describe_unknown(token), param=self._names[text])

    def _first_unknown(self, ids: Sequence[int]) -> int:
        return next(token for token in ids if token >= self._vocabulary)

    def _text_with(self, token: int, texts: Sequence[str]) -> int:
        """Return the place of the first text that has a token; special tokens are in any."""
        found = (token in self._call([[text]], truncation=False)[IDS][0] for text in texts)
        return next((place for place, has_it in enumerate(found) if has_it), 0)

    def _describe_unknown(self, token: int) -> str:
        name = quoted(self._tokenizer.convert_ids_to_tokens(token))
        return (
            f"the token {name} has the number {token}, but {self._model_name} has embeddings for "
            f"{self._vocabulary} tokens, its tokenizer {len(self._tokenizer)}: remove the token, "
            "or save the model after model.resize_token_embeddings(len(tokenizer))"
        )

    def _sample(
        self, row: Mapping[str, list[int]], *, whole_length: int, truncate: bool
    ) -> Sample | InputError:
        length = len(row[IDS])
        if not length:
            return InputError(UNREAD, param=self._names[0])
        if whole_length > length and not truncate:
            having = "the text has" if len(self._names) == 1 else "both texts together have"
            return TextTooLongError(
                f"{having} {whole_length} tokens; the task reads at most {length}, and truncate is "
                "off",
                param=self._names[0],
            )
        inputs = {name: torch.tensor(values) for name, values in row.items()}
        inputs[MASK] = torch.ones(length, dtype=torch.int64)
        return Sample(inputs, {**self.pads, MASK: 0}, length)

    def tokenize(self, texts: Sequence[Sequence[str]]) -> TokenizedTexts:
        """Tokenise texts, or pairs of them, cut to ``max_length`` tokens.

        Args:
            texts: a sequence for each column, all of the same length.
        """
        whole = self._call(texts, truncation=False)
        tokens = {name: whole[name] for name in self.pads if name in whole}
        lengths = [len(row) for row in tokens[IDS]]
        too_long = [place for place, n in enumerate(lengths) if n > self.sequence_length]
        if not too_long:
            return TokenizedTexts(tokens, lengths)
        if whole.encodings is None:  # a tokenizer that is written in Python
            cut = self._call(texts, truncation=True)
            return TokenizedTexts({name: cut[name] for name in tokens}, lengths)
        # Truncating in the tokenizers library also returns the removed parts; for a pair, every
        # part of one text with every part of the other: gigabytes for two 16,000-character texts.
        for place in too_long:
            kept = self._find_kept(whole.encodings[place].sequence_ids)
            for rows in tokens.values():
                rows[place] = [rows[place][index] for index in kept]
        return TokenizedTexts(tokens, lengths)

    def _call(self, texts: Sequence[Sequence[str]], *, truncation: bool) -> BatchEncoding:
        encoded: BatchEncoding = self._tokenizer(
            *texts,
            truncation=truncation,
            max_length=self.sequence_length if truncation else None,
            padding=False,
            return_attention_mask=False,
            verbose=False,  # no warnings about texts that are too long for the model
        )
        return encoded

    def _find_kept(self, sequence_ids: Sequence[int | None]) -> list[int]:
        """Return the indices of the tokens that truncation keeps.

        Args:
            sequence_ids: the text of each token, 0 or 1; None for special tokens.
        """
        places: dict[int | None, list[int]] = {None: [], 0: [], 1: []}
        for index, text in enumerate(sequence_ids):
            places[text].append(index)
        special, first, second = places[None], places[0], places[1]
        sizes = _shares(self.sequence_length - len(special), len(first), len(second))
        kept = special
        for mine, size in zip((first, second), sizes, strict=True):
            is_right = self._tokenizer.truncation_side == "right"
            kept += mine[:size] if is_right else mine[len(mine) - size :]
        return sorted(kept)


def portions(texts: Sequence[Sequence[str]]) -> Iterator[slice]:
    """Divide rows into consecutive portions of about ``_PORTION_CHARACTERS``.

    Args:
        texts: a sequence for each column, all of the same length.
    """
    sizes = sum(np.fromiter(map(len, column), np.int64, len(column)) for column in texts)
    portions = np.cumsum(sizes) // _PORTION_CHARACTERS
    edges = [0, *(np.flatnonzero(np.diff(portions)) + 1).tolist(), len(portions)]
    for start, end in pairwise(edges):
        yield slice(start, end)


def _shares(room: int, first: int, second: int) -> tuple[int, int]:
    """Divide tokens between two texts as the tokenizers library does: the longer one is truncated.

    If both are too long, each gets half; an odd token goes to the longer text, else to the second.
    """
    shorter = min(first, second)
    longer = max(shorter, room - shorter)
    if shorter + longer > room:
        shorter = room // 2
        longer = room - shorter
    return (longer, shorter) if first > second else (shorter, longer)


@dataclass(frozen=True, eq=False, kw_only=True)
class EncodedTexts(Examples):
    """Token sequences, concatenated in flat arrays.

    Attributes:
        lengths: tokens of each sample, ``[n]``.
        tokens: ``input_ids``, and ``token_type_ids`` if tokenizer and model have them, each
            ``[Σ lengths]``.
        pads: the padding value of each.
        targets: ``[n, …]``.
    """

    lengths: NDArray[np.int64]
    tokens: Mapping[str, NDArray[np.int64]]
    pads: Mapping[str, int]
    targets: Tensor

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """Collate some samples, padded on the right to the longest of them."""
        chosen = np.asarray(indices)
        lengths = self.lengths[chosen]
        starts = self._starts[chosen]
        columns = np.arange(lengths.max())
        real = columns < lengths[:, None]  # [B, S]
        places = np.where(real, starts[:, None] + columns, 0)
        inputs = {
            name: torch.from_numpy(np.where(real, values[places], self.pads[name]))
            for name, values in self.tokens.items()
        }
        inputs[MASK] = torch.from_numpy(real.astype(np.int64))
        return Batch(inputs, self.targets[torch.from_numpy(chosen)])

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.cumsum(self.lengths) - self.lengths

    def digest(self) -> str:
        """Return a hash of token sequences and targets."""
        tokens = (self.tokens[name] for name in sorted(self.tokens))
        return digest_of([self.lengths, *tokens, self.targets.numpy()])
