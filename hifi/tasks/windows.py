"""Texts of any length as overlapping windows, and where in them each part of a text is read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from hifi.data.task_types import TEXT_INPUT
from hifi.errors import DataError, InputError, ModelError
from hifi.tasks.base import EncodedInput, Sample
from hifi.tasks.text import IDS, MASK, UNREAD, EncodedTexts, TextEncoder, portions

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedConfig

    from hifi.backbones.models import ModelSource
    from hifi.data.task_types import Request

OVERLAP = 4  # a window shares a quarter of its text with the next one
NO_TARGET = -1  # of tokens that are no target, and of padding


@dataclass(frozen=True, eq=False)
class Window:
    """What a model reads at once of a text.

    Attributes:
        tokens: which tokens of the whole text, special ones included, ``[S]``.
        first: the window's token that is the first of the text itself.
        start: which token of the text itself that is.
        owned: the tokens of the text itself that are answered from this window: those that are
            nearer to its middle than to that of another one.
    """

    tokens: NDArray[np.int64]
    first: int
    start: int
    owned: range

    def places(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the places in the window of some of its owned tokens of the text."""
        return tokens - self.start + self.first


def cut_windows(
    sequence_ids: Sequence[int | None],
    *,
    most: int,
    sequence: int = 0,
    overlap: int | None = None,
) -> list[Window]:
    """Cut a text into windows; a text that fits is one window.

    Args:
        sequence_ids: of each token of the whole text: which text it belongs to, None for special
            tokens. The text that is cut is contiguous.
        most: tokens of a window, special ones and those of other texts included.
        sequence: the text that is cut; others are in every window.
        overlap: tokens that two windows share, at most half of those that a window has of the text;
            by default a quarter of them.
    """
    ids = np.array([-1 if each is None else each for each in sequence_ids])
    body = np.flatnonzero(ids == sequence)
    if not len(body):
        return [Window(np.arange(len(ids)), 0, 0, range(0))]
    before, after = np.arange(body[0]), np.arange(body[-1] + 1, len(ids))
    room = most - len(before) - len(after)
    if len(body) <= room:
        return [Window(np.arange(len(ids)), len(before), 0, range(len(body)))]
    shared = room // OVERLAP if overlap is None else min(overlap, room // 2)
    step = max(1, room - shared)
    starts = [*range(0, len(body) - room, step), len(body) - room]
    edges = [0, *((a + room + b) // 2 for a, b in pairwise(starts)), len(body)]
    return [
        Window(
            np.concatenate([before, body[start : start + room], after]),
            len(before),
            start,
            range(edges[number], edges[number + 1]),
        )
        for number, start in enumerate(starts)
    ]


@dataclass(frozen=True, eq=False, kw_only=True)
class WindowedInput(EncodedInput):
    """An encoded input of a prediction.

    Attributes:
        windows: the samples.
    """

    windows: tuple[Sample, ...]

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The windows, in their order."""
        return self.windows


@dataclass(frozen=True, eq=False)
class TokenizedRow:
    """The tokens of a text, or of a pair of texts, of any length.

    Attributes:
        tokens: ``input_ids``, and ``token_type_ids`` if tokenizer and model have them.
        sequence_ids: of each token: 0 or 1 for its text, None for special tokens.
        offsets: the characters of its text that each token stands for.
    """

    tokens: Mapping[str, NDArray[np.int64]]
    sequence_ids: Sequence[int | None]
    offsets: Sequence[tuple[int, int]]

    def offsets_of(self, text: int) -> list[tuple[int, int]]:
        """Return the offsets of the tokens of one text."""
        pairs = zip(self.offsets, self.sequence_ids, strict=True)
        return [offset for offset, sequence in pairs if sequence == text]


@dataclass(frozen=True, eq=False, kw_only=True)
class CutRow:
    """A tokenised row, cut into windows.

    Attributes:
        tokens: as in :class:`TokenizedRow`.
        windows: in their order.
    """

    tokens: Mapping[str, NDArray[np.int64]]
    windows: Sequence[Window]

    @property
    @abstractmethod
    def unread(self) -> int | None:
        """Which of the row's texts has no token; None if all have one."""


_Row = TypeVar("_Row", bound=CutRow)


@dataclass(frozen=True, eq=False, kw_only=True)
class EncodedWindows(EncodedTexts):
    """The windows of rows.

    Their targets are ``[n, S, 2]``: what each token is to the task, or ``NO_TARGET``; and the row.
    """

    @property
    def rows(self) -> int:
        """The number of rows of the data."""
        return int(self.row_of[-1]) + 1

    @cached_property
    def row_of(self) -> NDArray[np.int64]:
        """The row of each window, ``[n]``; increasing."""
        rows: NDArray[np.int64] = self.targets[:, 0, 1].long().numpy()
        return rows


class WindowTable:
    """The windows of a split, gathered one after the other; their fields in encoded windows."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._tokens: dict[str, list[NDArray[np.int64]]] = {}
        self._targets: list[NDArray[np.int64]] = []

    def add(self, place: int, row: CutRow, window: Window, *, targets: NDArray[np.int64]) -> None:
        """Add a window.

        Args:
            place: of the row in the split.
            row: has the window.
            window: of the row.
            targets: of the window's tokens, ``[S]``.
        """
        self._rows.append(place)
        for name, values in row.tokens.items():
            self._tokens.setdefault(name, []).append(values[window.tokens])
        self._targets.append(targets)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The tokens of each window, ``[n]``."""
        return np.array([len(own) for own in self._targets], dtype=np.int64)

    @property
    def tokens(self) -> dict[str, NDArray[np.int64]]:
        """The tokens of all windows, each ``[Σ lengths]``."""
        return {name: np.concatenate(parts) for name, parts in self._tokens.items()}

    @property
    def targets(self) -> Tensor:
        """The targets and the rows, int32 ``[n, S, 2]``."""
        size = len(self._rows), max(map(len, self._targets)), 2
        whole = torch.full(size, NO_TARGET, dtype=torch.int32)
        whole[..., 1] = torch.tensor(self._rows, dtype=torch.int32)[:, None]
        for number, own in enumerate(self._targets):
            whole[number, : len(own), 0] = torch.from_numpy(own)
        return whole


class WindowEncoder(TextEncoder):
    """Base class of tokenizers that cut long texts into windows; thread-safe.

    They know which characters a token stands for.

    Args:
        source: the model.
        config: its configuration; gets the pad token.
        columns: one or two columns, by the fields that name them in the metadata.
        max_length: the most tokens of a window, including special tokens.
        request: names the texts of an input for a prediction.

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
        columns: Mapping[str, str],
        max_length: int,
        request: Request = TEXT_INPUT,
    ) -> None:
        names = list(columns.values())
        super().__init__(source, config, columns=names, max_length=max_length, request=request)
        if not self._tokenizer.is_fast:
            raise ModelError(
                f"the tokenizer of {source.name} does not tell the characters of its tokens: save "
                "the model with a fast tokenizer (a tokenizer.json)"
            )
        settings = {name: value for name, value in self.metadata.items() if name != "text"}
        self.metadata = {**columns, **settings}

    def _tokenize_whole(self, *texts: Sequence[str]) -> Iterator[TokenizedRow]:
        """Tokenise texts, or pairs of them, without truncation."""
        encoded = self._tokenizer(
            *map(list, texts),
            return_attention_mask=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        names = [name for name in self.pads if name in encoded]
        for place, encoding in enumerate(encoded.encodings):
            yield TokenizedRow(
                {name: np.array(encoded[name][place], dtype=np.int64) for name in names},
                encoding.sequence_ids,
                encoded["offset_mapping"][place],
            )

    def _cut_split(
        self,
        texts: Sequence[Sequence[str]],
        cut: Callable[[slice], Iterable[_Row]],
        *,
        split: str,
    ) -> Iterator[_Row]:
        """Cut the rows of a split, a portion at a time, and check each.

        Args:
            texts: a sequence for each column.
            cut: cuts some of the rows.
            split: for messages.

        Raises:
            DataError: a text has no token, or one without an embedding.
        """
        for some in portions(texts):
            for place, row in enumerate(cut(some), start=some.start):
                own = [[column[place]] for column in texts]
                self._check_ids([row.tokens[IDS].tolist()], own, split=split, first_row=place + 1)
                if row.unread is not None:
                    column = self._columns[row.unread]
                    raise DataError(UNREAD, split=split, row=place + 1, column=column)
                yield row

    def _check_row(self, row: CutRow, given: Mapping[str, str]) -> InputError | None:
        """Return the error of an input with a text without a token, or with an unknown one."""
        unknown = self._check_tokens({IDS: row.tokens[IDS].tolist()}, given)
        if unknown is not None or row.unread is None:
            return unknown
        return InputError(UNREAD, param=self._names[row.unread])

    def _samples(self, row: CutRow) -> tuple[Sample, ...]:
        """Return the windows of an input as samples."""
        samples = []
        for window in row.windows:
            length = len(window.tokens)
            inputs = {
                name: torch.from_numpy(values[window.tokens]) for name, values in row.tokens.items()
            }
            inputs[MASK] = torch.ones(length, dtype=torch.int64)
            samples.append(Sample(inputs, {**self.pads, MASK: 0}, length))
        return tuple(samples)


def by_row(table: Tensor, *, rows: int) -> list[NDArray[np.int64]]:
    """Divide a table into the parts of each row.

    Args:
        table: int64 ``[entries, 1 + K]``: the row, in increasing order, and what it has.
        rows: their number.

    Returns:
        What each row has, ``[k, K]``.
    """
    entries = table.numpy()
    return np.split(entries[:, 1:], np.searchsorted(entries[:, 0], np.arange(1, rows)))


def trim_offsets(text: str, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return offsets without the space that some tokenizers count as part of the next word."""
    found = []
    for start, end in offsets:
        part = text[start:end]
        begin = start + len(part) - len(part.lstrip())
        found.append((begin, max(begin, start + len(part.rstrip()))))
    return found
