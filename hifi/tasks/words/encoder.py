"""Encodes texts, or lists of words, as windows in which every word is answered once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hifi.data.columns import read_texts, read_words
from hifi.data.task_types import TEXT_INPUT, TOKENS_INPUT
from hifi.errors import InputError
from hifi.tasks.windows import (
    NO_TARGET,
    CutRow,
    EncodedWindows,
    Window,
    WindowedInput,
    WindowEncoder,
    WindowTable,
    by_row,
    cut_windows,
)
from hifi.tasks.words.units import WordUnits, find_given_units, find_units

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedConfig

    from hifi.backbones.models import ModelSource
    from hifi.data.task_types import Columns
    from hifi.tasks.base import EncodedInput

_TEXT, _TOKENS = TEXT_INPUT.fields[0].name, TOKENS_INPUT.fields[0].name
Words = Sequence[str]


@dataclass(frozen=True, eq=False, kw_only=True)
class WindowedText(WindowedInput):
    """An encoded text.

    Attributes:
        text: the text, or the words joined by spaces.
        words: the given words; None for a text.
        units: its words, as far as the tokenizer reads them.
        places: in each sample, the tokens that answer for the words that it owns, in their order.
    """

    text: str
    words: Words | None
    units: WordUnits
    places: tuple[NDArray[np.int64], ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class _Row(CutRow):
    """A tokenised text.

    Attributes:
        units: its words.
    """

    units: WordUnits

    @property
    def unread(self) -> int | None:
        """Return 0, the only text, if nothing of it is read."""
        return None if len(self.units) else 0

    def owned(self) -> Iterator[tuple[Window, NDArray[np.int64], NDArray[np.int64]]]:
        """Yield each window, the words that it owns, and the tokens that answer for them."""
        for window in self.windows:
            edges = np.searchsorted(self.units.tokens, [window.owned.start, window.owned.stop])
            words = np.arange(*edges)
            yield window, words, window.places(self.units.tokens[words])


class WordEncoder(WindowEncoder):
    """A tokenizer for texts and lists of words; thread-safe.

    Args:
        source: the model.
        config: its configuration; gets the pad token.
        inputs: how the data has the texts: as texts or as lists of words.
        column: the input column.
        outside: the label of words that are in no span.
        max_length: the most tokens of a window, including special tokens.

    Raises:
        InvalidArgumentError, ModelError: as :class:`WindowEncoder`.
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
        super().__init__(source, config, columns={inputs.field: column}, max_length=max_length)
        self._inputs = inputs
        self._column = column
        self._outside = outside

    def encode(self, dataset: Dataset, *, split: str, targets: Tensor) -> EncodedWindows:
        """Check the texts of a split and cut them into windows.

        Args:
            dataset: contains the input column.
            split: for messages.
            targets: the labelled spans of all rows, ``[spans, 5]``: the row, start, end, the label
                of the first word and that of the others; in the order of the rows.

        Returns:
            A sample for each window; its targets are ``[n, S, 2]``: the label of the word for which
            the token answers, or ``NO_TARGET``, and the row.
        """
        texts: list[str]
        given: list[Words | None]
        if self._inputs.use == "words":
            words = read_words(dataset, self._column, split=split)
            texts, given = [" ".join(each) for each in words], list(words)
        else:
            texts = read_texts(dataset, self._column, split=split)
            given = [None] * len(texts)
        spans = by_row(targets, rows=len(texts))
        rows = self._cut_split(
            [texts], lambda some: self._cut(texts[some], given[some]), split=split
        )
        table = WindowTable()
        for place, row in enumerate(rows):
            of_units = self._label_units(row.units, spans[place])
            for window, owned, places in row.owned():
                own = np.full(len(window.tokens), NO_TARGET, dtype=np.int64)
                own[places] = of_units[owned]
                table.add(place, row, window, targets=own)
        return EncodedWindows(
            lengths=table.lengths, tokens=table.tokens, pads=self.pads, targets=table.targets
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

    def _read_checked(
        self,
        inputs: Sequence[Mapping[str, Any]],
        *,
        truncate: bool,  # noqa: ARG002 - nothing is cut off
    ) -> Iterator[EncodedInput | InputError]:
        """Tokenise inputs, texts or lists of words, and cut them into windows."""
        given = [each.get(_TOKENS) for each in inputs]
        texts = [
            each[_TEXT] if words is None else " ".join(words)
            for each, words in zip(inputs, given, strict=True)
        ]
        for text, words, row in zip(texts, given, self._cut(texts, given), strict=True):
            error = self._check_row(row, {_TEXT: text})
            if error is not None:
                yield InputError(str(error), param=_TEXT if words is None else _TOKENS)
                continue
            yield WindowedText(
                windows=self._samples(row),
                text=text,
                words=words,
                units=row.units,
                places=tuple(places for _, _, places in row.owned()),
            )

    def _check(self, given: Mapping[str, Any]) -> InputError | None:
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

    def _cut(self, texts: Sequence[str], given: Sequence[Words | None]) -> Iterator[_Row]:
        """Tokenise texts and cut them into windows.

        Args:
            texts: the texts.
            given: the words that each of them joins; None for a text.
        """
        whole = self._tokenize_whole(texts)
        for text, words, tokenized in zip(texts, given, whole, strict=True):
            own = tokenized.offsets_of(0)
            yield _Row(
                tokens=tokenized.tokens,
                windows=cut_windows(tokenized.sequence_ids, most=self.sequence_length),
                units=find_units(text, own) if words is None else find_given_units(words, own),
            )
