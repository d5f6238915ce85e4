"""Encodes questions with their contexts, long ones as overlapping windows of the context."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hifi.data.characters import end_of_character, start_of_character
from hifi.data.columns import read_texts
from hifi.data.task_types import QUESTION_INPUT
from hifi.errors import DataError, InputError, TextTooLongError
from hifi.tasks.base import digest_of
from hifi.tasks.windows import (
    NO_TARGET,
    CutRow,
    EncodedWindows,
    WindowedInput,
    WindowEncoder,
    WindowTable,
    by_row,
    cut_windows,
    trim_offsets,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedConfig

    from hifi.backbones.models import ModelSource
    from hifi.tasks.base import EncodedInput

QUESTION, CONTEXT = (field.name for field in QUESTION_INPUT.fields)
# What the tokens of a window are to an answer, if anything; FIRST and LAST may be added.
CANDIDATE, FIRST, LAST = 0, 1, 2
_Integers = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True, eq=False, kw_only=True)
class WindowedQuestion(WindowedInput):
    """An encoded question.

    Attributes:
        context: the text in which the answer is looked for.
        characters: of each token of each window: its first character in the context, and one after
            its last one, ``[S, 2]``; equal for tokens at which no answer can begin or end.
    """

    context: str
    characters: tuple[NDArray[np.int64], ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class _Row(CutRow):
    """A tokenised question with its context.

    Attributes:
        texts: of each token: 0 for the question, 1 for the context, -1 for special tokens.
        characters: as in :class:`WindowedQuestion`, of all tokens.
    """

    texts: NDArray[np.int64]
    characters: NDArray[np.int64]

    @property
    def unread(self) -> int | None:
        """Return which of the two texts has no token; None if both have one."""
        if not (self.texts == 0).any():
            return 0
        return None if (self.characters[:, 0] < self.characters[:, 1]).any() else 1


@dataclass(frozen=True, eq=False, kw_only=True)
class EncodedQuestions(EncodedWindows):
    """The windows of questions with their contexts.

    Their targets are ``[n, S, 2]``: for each token ``NO_TARGET`` if an answer cannot begin or
    end there, else ``CANDIDATE``, with ``FIRST`` and ``LAST`` added for the answer's ends; and the
    row. Both ends are at the first token of a window in which the answer is not: in which it is not
    as a whole, if another window has all of it.

    Attributes:
        characters: of each token, as in :class:`WindowedQuestion`, ``[Σ lengths, 2]``.
        contexts: of each row.
        answers: of each row; none if the context has no answer.
    """

    characters: NDArray[np.int64]
    contexts: Sequence[str]
    answers: Sequence[Sequence[str]]

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


class QuestionEncoder(WindowEncoder):
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
        InvalidArgumentError, ModelError: as :class:`WindowEncoder`.
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
            source,
            config,
            columns=dict(zip((QUESTION, CONTEXT), columns, strict=True)),
            max_length=max_length,
            request=QUESTION_INPUT,
        )
        self._stride = stride

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
        answers = [each.tolist() for each in by_row(targets, rows=len(contexts))]
        rows = self._cut_split(
            [questions, contexts],
            lambda some: self._cut(questions[some], contexts[some]),
            split=split,
        )
        table, characters = WindowTable(), []
        for place, row in enumerate(rows):
            answer = self._answer(row, answers[place], split=split, place=place)
            for window, part in zip(row.windows, _parts(row, answer), strict=True):
                own = row.characters[window.tokens]
                characters.append(own)
                table.add(place, row, window, targets=_mark(own, part))
        return EncodedQuestions(
            lengths=table.lengths,
            tokens=table.tokens,
            pads=self.pads,
            targets=table.targets,
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

    def _read_checked(
        self, inputs: Sequence[Mapping[str, Any]], *, truncate: bool
    ) -> Iterator[EncodedInput | InputError]:
        """Tokenise questions with their contexts, and cut the contexts into windows."""
        questions, contexts = ([given[name] for given in inputs] for name in (QUESTION, CONTEXT))
        for given, row in zip(inputs, self._cut(questions, contexts), strict=True):
            yield (
                self._check_row(row, given)
                or (None if truncate else _check_length(row))
                or WindowedQuestion(
                    windows=self._samples(row),
                    context=given[CONTEXT],
                    characters=tuple(row.characters[window.tokens] for window in row.windows),
                )
            )

    def _cut(self, questions: Sequence[str], contexts: Sequence[str]) -> Iterator[_Row]:
        """Tokenise questions with their contexts, and cut the contexts into windows."""
        whole = self._tokenize_whole(questions, contexts)
        for context, tokenized in zip(contexts, whole, strict=True):
            texts = np.array([-1 if each is None else each for each in tokenized.sequence_ids])
            kept = _kept(texts, most=self.sequence_length)
            windows = cut_windows(
                [None if each < 0 else int(each) for each in texts[kept]],
                most=self.sequence_length,
                sequence=1,
                overlap=self._stride,
            )
            yield _Row(
                tokens=tokenized.tokens,
                windows=[replace(window, tokens=kept[window.tokens]) for window in windows],
                texts=texts,
                characters=_characters(context, tokenized.offsets_of(1), texts),
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
    kept = int((row.texts[row.windows[0].tokens] == 0).sum())
    if kept == whole:
        return None
    reason = f"the question has {whole} tokens; beside this context the task reads {kept}"
    return TextTooLongError(f"{reason}, and truncate is off", param=QUESTION)


def _characters(
    context: str, offsets: Sequence[tuple[int, int]], texts: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the characters of the context that each token stands for, ``[S, 2]``.

    Args:
        context: the text.
        offsets: of its tokens.
        texts: as in :class:`_Row`.
    """
    found = np.zeros((len(texts), 2), dtype=np.int64)
    own = np.flatnonzero(texts == 1).tolist()
    for place, (start, end) in zip(own, trim_offsets(context, offsets), strict=True):
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
    inside = [np.flatnonzero(np.isin(window.tokens, answer)) for window in row.windows]
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
    marks = np.where(starts < stops, CANDIDATE, NO_TARGET)
    marks[0] = CANDIDATE
    first, last = (0, 0) if ends is None else ends
    marks[first] += FIRST
    marks[last] += LAST
    return marks
