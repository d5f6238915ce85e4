"""Choices as token sequences: each with the texts that it follows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from hifi.data.columns import read_choices, read_texts
from hifi.data.task_types import CHOICES_INPUT, FEWEST_CHOICES
from hifi.errors import InputError
from hifi.tasks.base import Batch, EncodedInput, Examples, Sample
from hifi.tasks.text import EncodedTexts, TextEncoder

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedConfig

    from hifi.backbones.models import ModelSource

_CHOICES, _TEXT, _SECOND_TEXT = (field.name for field in CHOICES_INPUT.fields)


@dataclass(frozen=True, eq=False)
class EncodedChoice(EncodedInput):
    """The choices of an input of a prediction.

    Attributes:
        choices: a sample for each.
    """

    choices: tuple[Sample, ...]

    @property
    def samples(self) -> tuple[Sample, ...]:
        """A sample for each choice."""
        return self.choices


@dataclass(frozen=True, eq=False, kw_only=True)
class EncodedChoices(Examples):
    """Rows with C token sequences each, one for each choice.

    Attributes:
        lengths: tokens of each row's longest choice, ``[n]``.
        sequences: ``[n·C]``, the choices of a row one after the other.
        count: C.
        targets: the place of each row's right choice, int64 ``[n]``.
    """

    lengths: NDArray[np.int64]
    sequences: EncodedTexts
    count: int
    targets: Tensor

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """Collate some rows: inputs ``[B, C, S]``, padded to the longest choice of all."""
        rows = np.asarray(indices)
        places = (rows[:, None] * self.count + np.arange(self.count)).reshape(-1)
        flat = self.sequences.batch(places).inputs
        inputs = {name: value.unflatten(0, (-1, self.count)) for name, value in flat.items()}
        return Batch(inputs, self.targets[rows])

    def digest(self) -> str:
        """Return a hash of token sequences and targets."""
        return self.sequences.digest()


class ChoiceEncoder(TextEncoder):
    """A tokenizer with its settings, for choices and the texts that they follow.

    A choice is the second text of a pair whose first one is the row's text. Of two texts, the
    second one and the choice, with a space between them, are the second text of the pair. Without a
    text, a choice is a single text.

    Args:
        source: the model.
        config: its configuration; gets the pad token.
        texts: none, one or two text columns.
        choices: the columns of the choices: one of lists, or several of texts.
        count: the number of choices of a row in training; other inputs may have more or less.
        max_length: the most tokens of a sequence, including special tokens; longer ones are
            truncated, the longer text of the pair first.

    Raises:
        InvalidArgumentError, ModelError: as in :class:`TextEncoder`.
    """

    def __init__(
        self,
        source: ModelSource,
        config: PreTrainedConfig,
        *,
        texts: Sequence[str],
        choices: Sequence[str],
        count: int,
        max_length: int,
    ) -> None:
        super().__init__(source, config, columns=[*texts[:1], choices[0]], max_length=max_length)
        self.metadata = {**self.metadata, "text": list(texts), "choices": list(choices)}
        self._texts, self._choices, self._count = tuple(texts), tuple(choices), count
        self._names = (_TEXT, _CHOICES) if texts else (_CHOICES,)
        self._wanted = (_TEXT, _SECOND_TEXT)[: len(texts)]

    def encode(self, dataset: Dataset, *, split: str, targets: Tensor) -> EncodedChoices:
        """Check the texts and choices of a split and tokenise them.

        Raises:
            DataError: a text or a choice is missing or has no token, or a token for which the model
                has no embedding; or a row has another number of choices.
        """
        texts = [read_texts(dataset, column, split=split) for column in self._texts]
        choices = read_choices(dataset, self._choices, split=split, count=self._count)
        rows = [
            self._pairs([column[row] for column in texts], own) for row, own in enumerate(choices)
        ]
        columns = list(zip(*chain.from_iterable(rows), strict=True))
        right = targets.repeat_interleave(self._count)  # of each choice's row
        sequences = self.encode_texts(columns, split=split, targets=right, per_row=self._count)
        lengths = sequences.lengths.reshape(-1, self._count).max(1)
        return EncodedChoices(
            lengths=lengths, sequences=sequences, count=self._count, targets=targets
        )

    def _read_checked(
        self, inputs: Sequence[Mapping[str, Any]], *, truncate: bool
    ) -> Iterator[EncodedInput | InputError]:
        """Tokenise the choices of inputs that passed the check."""
        rows = [
            self._pairs([given[name] for name in self._wanted], given[_CHOICES]) for given in inputs
        ]
        given = [dict(zip(self._names, pair, strict=True)) for row in rows for pair in row]
        samples = super()._read_checked(given, truncate=truncate)
        for row in rows:
            yield self._join(list(islice(samples, len(row))))

    @staticmethod
    def _join(samples: Sequence[EncodedInput | InputError]) -> EncodedChoice | InputError:
        """Return the choices of an input, or the first error of one of them."""
        sound: list[Sample] = []
        for sample in samples:
            if isinstance(sample, InputError):
                return sample
            sound += sample.samples
        return EncodedChoice(tuple(sound))

    @staticmethod
    def _pairs(texts: Sequence[str], choices: Sequence[str]) -> list[tuple[str, ...]]:
        """Return what is tokenised for each choice: one text or two."""
        if len(texts) < 2:
            return [(*texts, choice) for choice in choices]
        first, second = texts
        return [(first, f"{second} {choice}") for choice in choices]

    def _check(self, given: Mapping[str, Any]) -> InputError | None:
        about = {0: "choices", 1: "choices and one text", 2: "choices and two texts"}
        what = f"the task reads {about[len(self._wanted)]}"
        if _CHOICES not in given:
            return InputError(f"{what}: {_CHOICES} is missing", param=_CHOICES)
        if len(given[_CHOICES]) < FEWEST_CHOICES:
            return InputError(f"at least {FEWEST_CHOICES} choices are needed", param=_CHOICES)
        for place, choice in enumerate(given[_CHOICES]):
            if not choice.strip():
                return InputError("the choice is empty", param=f"{_CHOICES}.{place}")
        for name in self._wanted:
            if not given.get(name, "").strip():
                state = "empty" if name in given else "missing"
                return InputError(f"{what}: {name} is {state}", param=name)
        for name in sorted(given.keys() - {_CHOICES, *self._wanted}):
            return InputError(f"{what}, not {name}", param=name)
        return None
