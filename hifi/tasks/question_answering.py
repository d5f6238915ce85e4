"""Question answering: the part of a context that answers a question."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np
import torch
import transformers
from torch import Tensor

from hifi.data.columns import has_unanswered, read_answer_lists, read_texts
from hifi.data.task_types import QUESTION_ANSWERING, TaskType
from hifi.errors import AnswerError, DeltaFileError
from hifi.tasks.base import only_column
from hifi.tasks.probe import ProbeKind, SpanProbe
from hifi.tasks.questions.encoder import (
    CANDIDATE,
    FIRST,
    LAST,
    QuestionEncoder,
    WindowedQuestion,
)
from hifi.tasks.questions.scores import exact_match, f1
from hifi.tasks.questions.spans import best_spans, best_threshold
from hifi.tasks.report import ClassReport, report_classes
from hifi.tasks.text import TextTask

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datasets import Dataset
    from transformers import PreTrainedConfig

    from hifi.backbones.models import AutoClass, ModelSource
    from hifi.data.spec import TaskSpec
    from hifi.tasks.base import Answer, EncodedInput, Examples
    from hifi.tasks.questions.encoder import EncodedQuestions

_THRESHOLD = "no_answer_threshold"
_STRIDE = "stride"
_BEST = 20  # spans among which the probability of an answer is shared
_SCORES = {"exact_match": exact_match, "f1": f1}
_NO_ANSWER = "no answer"


@dataclass(frozen=True, kw_only=True)
class QuestionAnswering(TextTask):
    """Search for the answer to a question in a context, ``inputs[0]`` and ``inputs[1]``.

    Attributes:
        stride: tokens of a long context that two windows share; None for a quarter.
        no_answer_threshold: a question gets no answer if the score of none exceeds that of the best
            span by more; None if every question gets one, because all of the training split do.
    """

    declaration: ClassVar[TaskType] = QUESTION_ANSWERING
    auto_class: ClassVar[AutoClass] = transformers.AutoModelForQuestionAnswering
    probe: ClassVar[ProbeKind | None] = SpanProbe()

    stride: int | None = None
    no_answer_threshold: float | None = None

    @classmethod
    def of(cls, spec: TaskSpec, dataset: Dataset) -> Self:
        """Build a task from a complete spec and the training split."""
        task = super().of(spec, dataset)
        if has_unanswered(dataset, only_column(task.label)):
            return replace(task, no_answer_threshold=0.0)
        return task

    @property
    def encoding(self) -> tuple[object, ...]:
        """What else determines how inputs are encoded."""
        return (self.stride,)

    def load_encoder(
        self, source: ModelSource, config: PreTrainedConfig, *, max_length: int
    ) -> QuestionEncoder:
        """Load the model's tokenizer, and set the pad token in its configuration."""
        return QuestionEncoder(
            source, config, columns=self.inputs, max_length=max_length, stride=self.stride
        )

    def targets(self, dataset: Dataset, *, split: str) -> Tensor:
        """Read the answers of all rows, int64 ``[answers, 3]``: the row, the start and the end."""
        column = only_column(self.label)
        rows = read_answer_lists(dataset, column, contexts=self.inputs[1], split=split)
        for each in self.inputs:
            read_texts(dataset, each, split=split)
        table = [(row, answer.start, answer.end) for row, own in enumerate(rows) for answer in own]
        return torch.tensor(table, dtype=torch.int64).reshape(-1, 3)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross entropy of the first and the last token, in float32."""
        marks = targets[:, : logits.shape[1], 0]  # a batch may be shorter
        is_candidate = marks >= CANDIDATE
        shares = logits.float().masked_fill(~is_candidate[..., None], -torch.inf).log_softmax(1)
        ends = [is_candidate & (marks & end > 0) for end in (FIRST, LAST)]
        first, last = (shares[..., place][end].mean() for place, end in enumerate(ends))
        return -(first + last) / 2

    def count_answers(self, targets: Tensor) -> int:
        """Return the number of questions."""
        return len(targets[:, 0, 1].unique())

    def fit_answers(self, logits: Tensor, examples: Examples) -> Mapping[str, float]:
        """Choose the threshold of no answer with the highest metric, if some have no answer."""
        if self.no_answer_threshold is None:
            return {}
        score = _SCORES[self.metric]
        pairs = list(zip(_texts(logits, examples), _questions(examples).answers, strict=True))
        chosen = best_threshold(
            logits[:, 0].numpy(),
            answered=np.array([score(text, wanted) for text, wanted in pairs]),
            declined=np.array([score("", wanted) for _, wanted in pairs]),
        )
        return {_THRESHOLD: chosen}

    def with_answers(self, fitted: Mapping[str, Any]) -> Self:
        """Return this task with its threshold and its stride."""
        task, threshold, stride = self, fitted.get(_THRESHOLD), fitted.get(_STRIDE)
        if threshold is not None:
            if not isinstance(threshold, float) or not math.isfinite(threshold):
                raise _outside(_THRESHOLD, threshold, "a number is needed")
            task = replace(task, no_answer_threshold=threshold)
        if stride is not None:
            if type(stride) is not int or stride < 0:
                raise _outside(_STRIDE, stride, "a whole number of at least 0 is needed")
            task = replace(task, stride=stride)
        return task

    def condense(self, logits: Tensor, examples: Examples) -> Tensor:
        """Return the best answer of each row; among equals that of its first window.

        Returns:
            float64 ``[rows, 4]``: by how much the score of no answer exceeds that of the best span;
            the span's window, and its first and last token.
        """
        questions = _questions(examples)
        marks = examples.targets[:, : logits.shape[1], 0]
        is_context = marks >= CANDIDATE
        is_context[:, 0] = False
        spans = best_spans(logits, is_context)
        scores, rows = spans.scores[:, 0].double().numpy(), questions.row_of
        order = np.lexsort((-scores, rows))
        best = order[np.unique(rows[order], return_index=True)[1]]
        none = np.full(questions.rows, np.inf)
        np.minimum.at(none, rows, spans.none.double().numpy())
        first, last = (each[:, 0].numpy()[best] for each in (spans.first, spans.last))
        return torch.from_numpy(np.stack([none - scores[best], best, first, last], axis=1))

    def evaluate(self, logits: Tensor, examples: Examples) -> dict[str, float]:
        """Compute F1 and exact match, the mean over the questions, as SQuAD's script does."""
        found = self._answers(logits, examples)
        pairs = list(zip(found, _questions(examples).answers, strict=True))
        return {
            name: float(np.mean([score(text, wanted) for text, wanted in pairs]))
            for name, score in _SCORES.items()
        }

    def only_answer(self, logits: Tensor, examples: Examples) -> str | None:
        """Return the answer that all questions get although theirs differ; else None."""
        found = set(self._answers(logits, examples))
        wanted = {tuple(sorted(set(each))) for each in _questions(examples).answers}
        return (min(found) or _NO_ANSWER) if len(found) == 1 < len(wanted) else None

    def report(self, logits: Tensor, examples: Examples, *, split: str) -> ClassReport | None:
        """Compare which questions get an answer with which have one; None if all have one."""
        if self.no_answer_threshold is None:
            return None
        found = self._answers(logits, examples)
        wanted = [bool(each) for each in _questions(examples).answers]
        has_none = [
            np.array([not each for each in some], dtype=np.int64) for some in (wanted, found)
        ]
        return report_classes(("an answer", _NO_ANSWER), *has_none, split=split)

    @staticmethod
    def logits_of(output: Any) -> Tensor:  # noqa: ANN401 - each model has an output class
        """Return the logits of first and last token, ``[B, S, 2]``."""
        return torch.stack([output.start_logits, output.end_logits], dim=-1)

    def answer(self, logits: Sequence[Tensor], given: EncodedInput) -> Answer:
        """Return the likeliest part of the context; its probability is that among the best 20."""
        if not isinstance(given, WindowedQuestion):
            raise AnswerError("the input is not encoded for question-answering")
        scores: dict[tuple[int, int], float] = {}
        none = math.inf
        for values, characters in zip(logits, given.characters, strict=True):
            is_context = torch.from_numpy(characters[:, 0] < characters[:, 1])
            spans = best_spans(values[None], is_context[None], count=_BEST)
            none = min(none, spans.none.item())
            ends = zip(spans.first[0].tolist(), spans.last[0].tolist(), strict=True)
            for (first, last), score in zip(ends, spans.scores[0].tolist(), strict=True):
                if score > -math.inf:  # otherwise there are fewer spans
                    place = int(characters[first, 0]), int(characters[last, 1])
                    scores[place] = max(score, scores.get(place, -math.inf))
        best = sorted(scores, key=lambda place: (-scores[place], place))[:_BEST]
        table = [scores[place] for place in best]
        start, end = best[0]
        if self.no_answer_threshold is None:
            share = torch.tensor(table, dtype=torch.float64).softmax(0)[0].item()
            return _answer(given.context, start, end, share)
        shares = torch.tensor([*table, none], dtype=torch.float64).softmax(0)
        if none - table[0] > self.no_answer_threshold:
            return {"answer": None, "score": shares[-1].item(), "start": None, "end": None}
        return _answer(given.context, start, end, shares[0].item())

    def _answers(self, found: Tensor, examples: Examples) -> list[str]:
        """Return the answer of each row; an empty text for none."""
        texts, threshold = _texts(found, examples), self.no_answer_threshold
        if threshold is None:
            return texts
        pairs = zip(texts, found[:, 0].tolist(), strict=True)
        return ["" if margin > threshold else text for text, margin in pairs]

    def settings(self) -> dict[str, Any]:
        """Return the configuration entries, and the threshold, which transformers does not use."""
        known, threshold = super().settings(), self.no_answer_threshold
        return known if threshold is None else {**known, _THRESHOLD: threshold}

    def describe(self) -> dict[str, Any]:
        """Describe the task for a head delta, with the stride and the threshold, if it has them."""
        own = {_STRIDE: self.stride, _THRESHOLD: self.no_answer_threshold}
        return {
            **super().describe(),
            **{name: value for name, value in own.items() if value is not None},
        }


def _questions(examples: Examples) -> EncodedQuestions:
    return cast("EncodedQuestions", examples)  # what this task's encoder returns


def _texts(found: Tensor, examples: Examples) -> list[str]:
    """Return the text of the best span of each row."""
    questions = _questions(examples)
    return [questions.text(*place) for place in found[:, 1:].long().tolist()]


def _answer(context: str, start: int, end: int, score: float) -> Answer:
    return {"answer": context[start:end], "score": score, "start": start, "end": end}


def _outside(name: str, value: object, limit: str) -> DeltaFileError:
    return DeltaFileError(f"the head delta's task records {name}={value!r}: {limit}")
