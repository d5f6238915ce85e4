"""Encodes texts, or lists of words, as windows in which every word is answered once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hifi.data.columns import read_texts, read_words
from hifi.data.task_types import TEXT_INPUT, TOKENS_INPUT
from hifi.errors import DataError, InputError
from hifi.tasks.base import EncodedInput, Sample
from hifi.tasks.text import IDS, MASK, EncodedTexts, TextEncoder, portions, require_offsets
from hifi.tasks.windows import Window, cut_windows
from hifi.tasks.words.units import WordUnits, find_given_units, find_units

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import PreTrainedConfig

    from hifi.backbones.models import ModelSource
    from hifi.data.task_types import Columns

NO_LABEL = -1  # of tokens that answer for no word, and of padding
_TEXT, _TOKENS = TEXT_INPUT.fields[0].name, TOKENS_INPUT.fields[0].name
Words = Sequence[str]


@dataclass(frozen=True, eq=False)
class WindowedText(EncodedInput):
    """An encoded text.

    Attributes:
        text: the text, or the words joined by spaces.
        words: the given words; None for a text.
        units: its words, as far as the tokenizer reads them.
        windows: the samples.
        places: in each sample, the tokens that answer for the words that it owns, in their order.
    """

    text: str
    words: Words | None
    units: WordUnits
    windows: tuple[Sample, ...]
    places: tuple[NDArray[np.int64], ...]

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The windows, in their order."""
        return self.windows


@dataclass(frozen=True, eq=False)
class _Row:
    """A tokenised text.

    Attributes:
        tokens: ``input_ids``, and ``token_type_ids`` if tokenizer and model have them.
        units: its words.
        windows: into which it is cut.
    """

    tokens: Mapping[str, NDArray[np.int64]]
    units: WordUnits
    windows: Sequence[Window]

    def owned(self) -> Iterator[tuple[Window, NDArray[np.int64]]]:
        """Yield each window with the words that it owns."""
        for window in self.windows:
            edges = np.searchsorted(self.units.tokens, [window.owned.start, window.owned.stop])
            yield window, np.arange(*edges)


@dataclass(frozen=True, eq=False, kw_only=True)
class EncodedWindows(EncodedTexts):
    """The windows of texts; their targets are ``[n, S, 2]``, as :class:`WordEncoder` makes them."""

    @property
    def rows(self) -> int:
        """The number of texts."""
        return int(self.targets[-1, 0, 1]) + 1


class WordEncoder(TextEncoder):
    """A tokenizer that knows which characters a token stands for; thread-safe.

    Args:
        source: the model.
        config: its configuration; gets the pad token.
        inputs: how the data has the texts: as texts or as lists of words.
        column: the input column.
        outside: the label of words that are in no span.
        max_length: the most tokens of a window, including special tokens.

    Raises:
        InvalidArgumentError: ``max_length`` leaves a text without a token.
        ModelError: the tokenizer is missing, has no token to pad with, or is written in Python and
            so does not tell the characters of its tokens.
    """

    def __init__(
        self,
        source: ModelSource,
        config: PreTrainedConfig,
        *,
        inputs: Columns,
        column: str,
        outside: int,
        max_length: int,
    ) -> None:
        super().__init__(source, config, columns=[column], max_length=max_length)
        require_offsets(self._tokenizer, source)
        self._inputs = inputs
        self._column = column
        self._outside = outside
        settings = {name: value for name, value in self.metadata.items() if name != "text"}
        self.metadata = {inputs.field: column, **settings}

    def encode(self, dataset: Dataset, *, split: str, targets: Tensor) -> EncodedWindows:
        """Check the texts of a split and cut them into windows.

        Args:
            dataset: contains the input column.
            split: for messages.
            targets: the labelled spans of all rows, ``[spans, 5]``: the row, start, end, the label
                of the first word and that of the others; in the order of the rows.

        Returns:
            A sample for each window; its targets are ``[n, S, 2]``: the label of the word for which
            the token answers, or ``NO_LABEL``, and the row.
        """
        texts: list[str]
        given: list[Words | None]
        if self._inputs.use == "words":
            words = read_words(dataset, self._column, split=split)
            texts, given = [" ".join(each) for each in words], list(words)
        else:
            texts = read_texts(dataset, self._column, split=split)
            given = [None] * len(texts)
        edges = np.searchsorted(targets[:, 0].numpy(), np.arange(len(texts) + 1))
        lengths: list[int] = []
        tokens: dict[str, list[NDArray[np.int64]]] = {}
        labels: list[NDArray[np.int64]] = []
        rows: list[int] = []
        for some in portions([texts]):
            cut = self._cut(texts[some], given[some])
            for place, row in enumerate(cut, start=some.start):
                self._check_row(row, texts[place], split=split, number=place + 1)
                spans = targets[edges[place] : edges[place + 1], 1:].numpy()
                of_units = self._label_units(row.units, spans)
                for window, owned in row.owned():
                    lengths.append(len(window.tokens))
                    for name, values in row.tokens.items():
                        tokens.setdefault(name, []).append(values[window.tokens])
                    own = np.full(len(window.tokens), NO_LABEL, dtype=np.int64)
                    own[window.places(row.units.tokens[owned])] = of_units[owned]
                    labels.append(own)
                    rows.append(place)
        whole = torch.full((len(lengths), max(lengths), 2), NO_LABEL, dtype=torch.int32)
        whole[..., 1] = torch.tensor(rows, dtype=torch.int32)[:, None]
        for number, own in enumerate(labels):
            whole[number, : len(own), 0] = torch.from_numpy(own)
        return EncodedWindows(
            lengths=np.array(lengths, dtype=np.int64),
            tokens={name: np.concatenate(parts) for name, parts in tokens.items()},
            pads=self.pads,
            targets=whole,
        )

    def _label_units(self, units: WordUnits, spans: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the label of each word, ``[U]``.

        A word that a span cuts belongs to it, and to the first of several spans.

        Args:
            units: the words.
            spans: of the row, ``[K, 4]``: start, end, the first label and the other one.
        """
        labels = np.full(len(units), self._outside, dtype=np.int64)
        is_free = np.ones(len(units), dtype=bool)
        for start, end, first, other in spans.tolist():
            inside = np.flatnonzero((units.starts < end) & (units.ends > start) & is_free)
            labels[inside] = other
            labels[inside[:1]] = first
            is_free[inside] = False
        return labels

    def _check_row(self, row: _Row, text: str, *, split: str, number: int) -> None:
        self._check_ids([row.tokens[IDS].tolist()], [[text]], split=split, first_row=number)
        if not len(row.units):
            reason = "the tokenizer produces no token for this text"
            raise DataError(reason, split=split, row=number, column=self._column)

    def read(
        self,
        inputs: Sequence[Mapping[str, Any]],
        *,
        truncate: bool,  # noqa: ARG002 - nothing is cut off
    ) -> list[EncodedInput | InputError]:
        """Check and tokenise inputs of predictions: texts or lists of words."""
        read: list[EncodedInput | InputError | None] = [_check(given) for given in inputs]
        sound = [place for place, error in enumerate(read) if error is None]
        given = [inputs[place].get(_TOKENS) for place in sound]
        texts = [
            inputs[place][_TEXT] if words is None else " ".join(words)
            for place, words in zip(sound, given, strict=True)
        ]
        rows = self._cut(texts, given) if sound else ()
        for place, text, words, row in zip(sound, texts, given, rows, strict=True):
            field = _TEXT if words is None else _TOKENS
            read[place] = self._windowed(row, text, words, param=field)
        return [entry for entry in read if entry is not None]

    def _windowed(
        self, row: _Row, text: str, words: Words | None, *, param: str
    ) -> EncodedInput | InputError:
        if not len(row.units):
            return InputError("the tokenizer produces no token for this text", param=param)
        ids = {name: values.tolist() for name, values in row.tokens.items()}
        unknown = self._check_tokens(ids, {_TEXT: text})
        if unknown is not None:
            return InputError(str(unknown), param=param)
        samples, places = [], []
        for window, owned in row.owned():
            chosen = torch.from_numpy(window.tokens)
            tokens = {name: torch.from_numpy(values)[chosen] for name, values in row.tokens.items()}
            tokens[MASK] = torch.ones(len(chosen), dtype=torch.int64)
            samples.append(Sample(tokens, {**self.pads, MASK: 0}, len(chosen)))
            places.append(window.places(row.units.tokens[owned]))
        return WindowedText(text, words, row.units, tuple(samples), tuple(places))

    def _cut(self, texts: Sequence[str], given: Sequence[Words | None]) -> Iterator[_Row]:
        """Tokenise texts and cut them into windows.

        Args:
            texts: the texts.
            given: the words that each of them joins; None for a text.
        """
        encoded = self._tokenizer(
            list(texts), return_attention_mask=False, return_offsets_mapping=True, verbose=False
        )
        for place, (text, words) in enumerate(zip(texts, given, strict=True)):
            ids = encoded.encodings[place].sequence_ids
            offsets = zip(encoded["offset_mapping"][place], ids, strict=True)
            own = [offset for offset, sequence in offsets if sequence == 0]
            units = find_units(text, own) if words is None else find_given_units(words, own)
            yield _Row(
                tokens={
                    name: np.array(encoded[name][place], dtype=np.int64)
                    for name in self.pads
                    if name in encoded
                },
                units=units,
                windows=cut_windows(ids, most=self.sequence_length),
            )


def _check(given: Mapping[str, Any]) -> InputError | None:
    """Return the error of an input that is neither a text nor a list of words."""
    fields = [name for name in (_TEXT, _TOKENS) if name in given]
    if len(fields) != 1:
        return InputError(
            "the task reads a text or a list of words: give text or tokens", param=_TEXT
        )
    for name in sorted(given.keys() - set(fields)):
        return InputError(f"the task reads one text, not {name}", param=name)
    (field,) = fields
    if field == _TEXT:
        return None if given[_TEXT].strip() else InputError("text is empty", param=_TEXT)
    blank = next((place for place, word in enumerate(given[_TOKENS]) if not word.strip()), None)
    if blank is not None:
        return InputError("the word is empty", param=f"{_TOKENS}.{blank}")
    return None if given[_TOKENS] else InputError("tokens is empty", param=_TOKENS)
