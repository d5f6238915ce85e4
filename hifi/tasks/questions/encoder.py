"""Encodes questions with their contexts, long ones as overlapping windows of the context."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hifi.data.characters import end_of_character, start_of_character
from hifi.data.columns import read_texts
from hifi.data.task_types import QUESTION_INPUT
from hifi.errors import DataError, InputError, TextTooLongError
from hifi.tasks.base import EncodedInput, Sample, digest_of
from hifi.tasks.text import IDS, MASK, EncodedTexts, TextEncoder, portions, require_offsets
from hifi.tasks.windows import cut_windows
from hifi.tasks.words.units import trim_offsets

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import PreTrainedConfig

    from hifi.backbones.models import ModelSource

QUESTION, CONTEXT = (field.name for field in QUESTION_INPUT.fields)
# What the tokens of a window are to an answer; FIRST and LAST may be added.
NEITHER, CANDIDATE, FIRST, LAST = -1, 0, 1, 2
_Integers = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class WindowedQuestion(EncodedInput):
    """An encoded question.

    Attributes:
        context: the text in which the answer is looked for.
        windows: the samples.
        characters: of each token of each window: its first character in the context, and one after
            its last one, ``[S, 2]``; equal for tokens at which no answer can begin or end.
    """

    context: str
    windows: tuple[Sample, ...]
    characters: tuple[NDArray[np.int64], ...]

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The windows, in their order."""
        return self.windows


@dataclass(frozen=True, eq=False)
class _Row:
    """A tokenised question with its context.

    Attributes:
        tokens: ``input_ids``, and ``token_type_ids`` if tokenizer and model have them.
        texts: of each token: 0 for the question, 1 for the context, -1 for special tokens.
        characters: as in :class:`WindowedQuestion`, of all tokens.
        windows: the tokens of each window.
    """

    tokens: Mapping[str, NDArray[np.int64]]
    texts: NDArray[np.int64]
    characters: NDArray[np.int64]
    windows: Sequence[NDArray[np.int64]]


@dataclass(frozen=True, eq=False, kw_only=True)
class EncodedQuestions(EncodedTexts):
    """The windows of questions with their contexts.

    Their targets are ``[n, S, 2]``: for each token ``NEITHER`` if an answer cannot begin or end
    there, else ``CANDIDATE``, with ``FIRST`` and ``LAST`` added for the answer's ends; and the row.
    Both ends are at the first token of a window in which the answer is not: in which it is not as a
    whole, if another window has all of it.

    Attributes:
        characters: of each token, as in :class:`WindowedQuestion`, ``[Σ lengths, 2]``.
        contexts: of each row.
        answers: of each row; none if the context has no answer.
    """

    characters: NDArray[np.int64]
    contexts: Sequence[str]
    answers: Sequence[Sequence[str]]

    @property
    def rows(self) -> int:
        """The number of questions."""
        return len(self.contexts)

    @cached_property
    def row_of(self) -> NDArray[np.int64]:
        """The row of each window, ``[n]``; increasing."""
        rows: NDArray[np.int64] = self.targets[:, 0, 1].long().numpy()
        return rows

    def text(self, window: int, first: int, last: int) -> str:
        """Return the text of a span of a window's tokens."""
        begin = self._starts[window]
        start, end = self.characters[begin + first, 0], self.characters[begin + last, 1]
        context: str = self.contexts[self.row_of[window]]
        return context[start:end]

    def digest(self) -> str:
        """Return a hash of token sequences, targets, contexts and all answers."""
        pairs = zip(self.contexts, self.answers, strict=True)
        texts = ["\0".join([context, *own]).encode() for context, own in pairs]
        return digest_of([super().digest().encode(), self.characters, *texts])


class QuestionEncoder(TextEncoder):
    """A tokenizer for questions with contexts; thread-safe.

    A question that leaves a longer context less than half of a window is cut to the other half. A
    context is never cut off.

    Args:
        source: the model.
        config: its configuration; gets the pad token.
        columns: the columns of questions and of contexts.
        max_length: the most tokens of a window, including special tokens.
        stride: tokens of the context that two windows share; None for a quarter.

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
        columns: Sequence[str],
        max_length: int,
        stride: int | None,
    ) -> None:
        super().__init__(
            source, config, columns=columns, max_length=max_length, request=QUESTION_INPUT
        )
        require_offsets(self._tokenizer, source)
        self._stride = stride
        settings = {name: value for name, value in self.metadata.items() if name != "text"}
        self.metadata = {**dict(zip((QUESTION, CONTEXT), columns, strict=True)), **settings}

    def encode(self, dataset: Dataset, *, split: str, targets: Tensor) -> EncodedQuestions:
        """Check the texts of a split and cut the contexts into windows.

        Args:
            dataset: contains the input columns.
            split: for messages.
            targets: the answers of all rows, int64 ``[answers, 3]``: the row, and the start and end
                in its context; in the order of the rows. The first one of a row is learned.

        Raises:
            DataError: a text is missing or blank, has no token, or one without an embedding.
        """
        questions, contexts = (read_texts(dataset, column, split=split) for column in self._columns)
        edges = np.searchsorted(targets[:, 0].numpy(), np.arange(len(contexts) + 1))
        answers = [targets[start:end, 1:].tolist() for start, end in pairwise(edges)]
        tokens: dict[str, list[_Integers]] = {}
        characters: list[_Integers] = []
        marks: list[_Integers] = []
        rows: list[int] = []
        for some in portions([questions, contexts]):
            cut = self._cut(questions[some], contexts[some])
            for place, row in enumerate(cut, start=some.start):
                self._check_row(row, [questions[place], contexts[place]], split=split, place=place)
                answer = self._answer(row, answers[place], split=split, place=place)
                for window, part in zip(row.windows, _parts(row, answer), strict=True):
                    for name, values in row.tokens.items():
                        tokens.setdefault(name, []).append(values[window])
                    characters.append(row.characters[window])
                    marks.append(_mark(row.characters[window], part))
                    rows.append(place)
        lengths = np.array([len(each) for each in marks], dtype=np.int64)
        whole = torch.full((len(marks), int(lengths.max()), 2), NEITHER, dtype=torch.int32)
        whole[..., 1] = torch.tensor(rows, dtype=torch.int32)[:, None]
        for number, own in enumerate(marks):
            whole[number, : len(own), 0] = torch.from_numpy(own)
        return EncodedQuestions(
            lengths=lengths,
            tokens={name: np.concatenate(parts) for name, parts in tokens.items()},
            pads=self.pads,
            targets=whole,
            characters=np.concatenate(characters),
            contexts=contexts,
            answers=[
                [context[start:end] for start, end in spans]
                for context, spans in zip(contexts, answers, strict=True)
            ],
        )

    def _answer(
        self, row: _Row, answers: Sequence[Sequence[int]], *, split: str, place: int
    ) -> _Integers:
        """Return the tokens of the answer that is learned; empty without one."""
        found = [_tokens_of(row, answer) for answer in answers[:1]]
        if not all(map(len, found)):
            reason = "the tokenizer produces no token for the answer"
            raise DataError(reason, split=split, row=place + 1, column=self._columns[1])
        return found[0] if found else np.array([], dtype=np.int64)

    def _check_row(self, row: _Row, texts: Sequence[str], *, split: str, place: int) -> None:
        columns = [[text] for text in texts]
        self._check_ids([row.tokens[IDS].tolist()], columns, split=split, first_row=place + 1)
        missing = _unread(row)
        if missing is not None:
            reason = "the tokenizer produces no token for this text"
            raise DataError(reason, split=split, row=place + 1, column=self._columns[missing])

    def read(
        self,
        inputs: Sequence[Mapping[str, Any]],
        *,
        truncate: bool,
    ) -> list[EncodedInput | InputError]:
        """Check and tokenise inputs of predictions."""
        read: list[EncodedInput | InputError | None] = [self._check(given) for given in inputs]
        sound = [place for place, error in enumerate(read) if error is None]
        questions, contexts = (
            [inputs[place][name] for place in sound] for name in (QUESTION, CONTEXT)
        )
        rows = self._cut(questions, contexts) if sound else ()
        for place, context, row in zip(sound, contexts, rows, strict=True):
            ids = {name: values.tolist() for name, values in row.tokens.items()}
            read[place] = (
                self._check_tokens(ids, inputs[place])
                or (None if truncate else _check_length(row))
                or self._windowed(row, context)
            )
        return [entry for entry in read if entry is not None]

    def _windowed(self, row: _Row, context: str) -> EncodedInput | InputError:
        missing = _unread(row)
        if missing is not None:
            reason = "the tokenizer produces no token for this text"
            return InputError(reason, param=self._names[missing])
        samples = []
        for window in row.windows:
            chosen = torch.from_numpy(window)
            tokens = {name: torch.from_numpy(values)[chosen] for name, values in row.tokens.items()}
            tokens[MASK] = torch.ones(len(window), dtype=torch.int64)
            samples.append(Sample(tokens, {**self.pads, MASK: 0}, len(window)))
        characters = tuple(row.characters[window] for window in row.windows)
        return WindowedQuestion(context, tuple(samples), characters)

    def _cut(self, questions: Sequence[str], contexts: Sequence[str]) -> Iterator[_Row]:
        """Tokenise questions with their contexts, and cut the contexts into windows."""
        encoded = self._tokenizer(
            list(questions),
            list(contexts),
            return_attention_mask=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        for place, context in enumerate(contexts):
            texts = np.array(
                [-1 if each is None else each for each in encoded.encodings[place].sequence_ids]
            )
            kept = _kept(texts, most=self.sequence_length)
            windows = cut_windows(
                [None if each < 0 else int(each) for each in texts[kept]],
                most=self.sequence_length,
                sequence=1,
                overlap=self._stride,
            )
            yield _Row(
                tokens={
                    name: np.array(encoded[name][place], dtype=np.int64)
                    for name in self.pads
                    if name in encoded
                },
                texts=texts,
                characters=_characters(context, encoded["offset_mapping"][place], texts),
                windows=[kept[window.tokens] for window in windows],
            )


def _kept(texts: NDArray[np.int64], *, most: int) -> NDArray[np.int64]:
    """Return all tokens, without the end of a question that is too long.

    Args:
        texts: as in :class:`_Row`.
        most: tokens of a window.
    """
    question, context = (np.flatnonzero(texts == text) for text in (0, 1))
    room = most - (len(texts) - len(question) - len(context))
    return np.setdiff1d(np.arange(len(texts)), question[max(1, room // 2, room - len(context)) :])


def _check_length(row: _Row) -> TextTooLongError | None:
    """Return an error if a question is cut."""
    whole = int((row.texts == 0).sum())
    kept = int((row.texts[row.windows[0]] == 0).sum())
    if kept == whole:
        return None
    reason = f"the question has {whole} tokens; beside this context the task reads {kept}"
    return TextTooLongError(f"{reason}, and truncate is off", param=QUESTION)


def _characters(
    context: str, offsets: Sequence[tuple[int, int]], texts: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the characters of the context that each token stands for, ``[S, 2]``."""
    found = np.zeros((len(texts), 2), dtype=np.int64)
    own = np.flatnonzero(texts == 1).tolist()
    trimmed = trim_offsets(context, [offsets[place] for place in own])
    for place, (start, end) in zip(own, trimmed, strict=True):
        if start < end:
            found[place] = start_of_character(context, start), end_of_character(context, end)
    return found


def _tokens_of(row: _Row, answer: Sequence[int]) -> _Integers:
    """Return the tokens of an answer, at which it can begin and end.

    Args:
        row: the question.
        answer: its first character, and one after its last one.
    """
    starts, ends = row.characters.T
    return np.flatnonzero((starts < ends) & (ends > answer[0]) & (starts < answer[1]))


def _parts(row: _Row, answer: _Integers) -> list[tuple[int, int] | None]:
    """Return the first and last token of the answer in each window that has all of it.

    If none has, that is its part in the window that has most of it.

    Args:
        row: the question.
        answer: its tokens; empty for no answer.

    Returns:
        Places in each window; None for no answer there.
    """
    if not len(answer):
        return [None] * len(row.windows)
    inside = [np.flatnonzero(np.isin(window, answer)) for window in row.windows]
    counts = [len(each) for each in inside]
    most = max(counts)
    chosen = {number for number, count in enumerate(counts) if count == most}
    if most < len(answer):
        chosen = {min(chosen)}
    return [
        (int(each[0]), int(each[-1])) if number in chosen else None
        for number, each in enumerate(inside)
    ]


def _mark(characters: NDArray[np.int64], ends: tuple[int, int] | None) -> _Integers:
    """Return the first part of a window's targets, ``[S]``.

    Args:
        characters: of its tokens.
        ends: its tokens at which the answer begins and ends; None for no answer.
    """
    starts, stops = characters.T
    marks = np.where(starts < stops, CANDIDATE, NEITHER)
    marks[0] = CANDIDATE
    first, last = (0, 0) if ends is None else ends
    marks[first] += FIRST
    marks[last] += LAST
    return marks


def _unread(row: _Row) -> int | None:
    """Return which of the two texts has no token; None if both have one."""
    if not (row.texts == 0).any():
        return 0
    return None if (row.characters[:, 0] < row.characters[:, 1]).any() else 1
