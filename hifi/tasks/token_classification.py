"""Token classification: entities in texts, or a class for each word."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from hifi.data.columns import (
    read_labelled_spans,
    read_tag_set,
    read_tags,
    read_texts,
    read_words,
)
from hifi.data.inference import find_layout
from hifi.data.tag_sets import TagSet
from hifi.data.tags import OUTSIDE, Entity, write_tags
from hifi.data.task_types import TOKEN_CLASSIFICATION, TaskType
from hifi.errors import AnswerError
from hifi.tasks.base import only_column
from hifi.tasks.classification import weigh
from hifi.tasks.probe import ProbeKind, WordProbe
from hifi.tasks.report import ClassReport, report_entities
from hifi.tasks.text import TextTask
from hifi.tasks.windows import NO_TARGET
from hifi.tasks.words.encoder import WindowedText, WordEncoder
from hifi.tasks.words.entities import Agreement, Entities, WordLabels, f1, find_entities, share
from hifi.tasks.words.units import word_starts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset
    from transformers import PreTrainedConfig

    from hifi.backbones.models import AutoClass, ModelSource
    from hifi.data.classes.weights import ClassWeights
    from hifi.data.spec import TaskSpec
    from hifi.data.task_types import Layout
    from hifi.tasks.base import Answer, EncodedInput, Examples
    from hifi.tasks.words.entities import Integers


@dataclass(frozen=True, kw_only=True)
class TokenClassification(TextTask):
    """Classification of the words of a text; ``classes`` are ``O``, and ``B-`` and ``I-`` tags.

    Without ``O`` among them every word has one of its own, as parts of speech.

    Attributes:
        layout: whether the data has lists of words with tags, or texts with spans.
        tags: what those of the training split mean; None for a task that only predicts.
        class_weights: of each class in the training loss; None for equal ones.
    """

    declaration: ClassVar[TaskType] = TOKEN_CLASSIFICATION
    auto_class: ClassVar[AutoClass] = transformers.AutoModelForTokenClassification
    probe: ClassVar[ProbeKind | None] = WordProbe()

    layout: Layout = TOKEN_CLASSIFICATION.layouts[0]
    tags: TagSet | None = None
    class_weights: tuple[float, ...] | None = None

    @classmethod
    def of(cls, spec: TaskSpec, dataset: Dataset) -> Self:
        """Build a task from a complete spec and the training split."""
        layout, label = find_layout(spec), only_column(spec.learned)
        tags = read_tag_set(dataset, label, use=layout.label.use, split="train")
        return cls(
            inputs=spec.inputs,
            label=label,
            classes=tags.labels,
            metric=cls.declaration.choose_metric(spec.metric),
            layout=layout,
            tags=tags,
        )

    @cached_property
    def meaning(self) -> WordLabels:
        """What the classes mean."""
        return WordLabels.of([str(label) for label in self.labels or ()])

    def load_encoder(
        self, source: ModelSource, config: PreTrainedConfig, *, max_length: int
    ) -> WordEncoder:
        """Load the model's tokenizer, and set the pad token in its configuration."""
        (columns,) = self.layout.inputs
        return WordEncoder(
            source,
            config,
            inputs=columns,
            column=self.inputs[0],
            outside=self.meaning.outside,
            max_length=max_length,
        )

    def targets(self, dataset: Dataset, *, split: str) -> Tensor:
        """Read the labelled spans of all rows, int64 ``[spans, 5]``.

        Returns:
            The row, start and end in characters of the text, which lists of words form joined by
            spaces, and the classes of the first word and of the others; in the order of the rows.
            A table of rows would be as wide as the one with the most spans.
        """
        column, known = only_column(self.label), self.tags or TagSet.of_types([])
        if self.layout.label.use == "tags":
            entities = read_tags(dataset, column, words=self.inputs[0], split=split, known=known)
            words = read_words(dataset, self.inputs[0], split=split)
            spans = [_in_characters(own, each) for own, each in zip(words, entities, strict=True)]
        else:
            found = read_labelled_spans(
                dataset, column, texts=self.inputs[0], split=split, known=known
            )
            read_texts(dataset, self.inputs[0], split=split)
            spans = [[(span.start, span.end, span.label) for span in row] for row in found]
        place = {name: index for index, name in enumerate(self.meaning.types)}
        table = [
            (row, start, end, place[name])
            for row, own in enumerate(spans)
            for start, end, name in own
        ]
        rows, kinds = np.split(np.array(table, dtype=np.int64).reshape(-1, 4), [3], axis=1)
        first, other = self.meaning.first[kinds], self.meaning.other[kinds]
        return torch.from_numpy(np.concatenate([rows, first, other], axis=1))

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross entropy of the words of a batch, in float32."""
        return self._loss(logits, targets, weight=None)

    def training_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over the words of each one's loss times its class's weight."""
        if self.class_weights is None:
            return self.loss(logits, targets)
        return self._loss(logits, targets, weight=logits.new_tensor(self.class_weights).float())

    def _loss(self, logits: Tensor, targets: Tensor, *, weight: Tensor | None) -> Tensor:
        mine = targets[:, : logits.shape[1], 0].flatten().long()  # a batch may be shorter
        total = nn.functional.cross_entropy(
            logits.flatten(0, 1).float(),
            mine,
            weight=weight,
            ignore_index=NO_TARGET,
            reduction="sum",
        )
        return total / (mine != NO_TARGET).sum().clamp(min=1)

    def weighted(self, weights: ClassWeights | None, *, targets: Tensor) -> Self:
        """Return this task with weights of its classes in the training loss, as classifications."""
        if weights is None:
            return self
        names = [str(label) for label in self.classes or ()]
        labels, _ = _words_of(targets)
        return replace(self, class_weights=weigh(weights, names=names, rows=labels))

    @property
    def counted(self) -> str:
        """Words for the accuracy, else entities."""
        return "words" if self.metric == "accuracy" else "entities"

    def count_answers(self, targets: Tensor) -> int:
        """Return the number of words or entities that the metric compares; at least 1."""
        if self.metric == "accuracy":
            return max(1, len(_words_of(targets)[0]))
        return max(1, len(self._entities(*_words_of(targets)).types))

    def count_rows(self, targets: Tensor) -> dict[str, int]:
        """Return the number of entities of each type."""
        types = self._entities(*_words_of(targets)).types
        counts = np.bincount(types, minlength=len(self.meaning.types))
        return dict(zip(self.meaning.types, counts.tolist(), strict=True))

    def evaluate(self, logits: Tensor, examples: Examples) -> dict[str, float]:
        """Compute precision, recall and F1 of entities, and the share of words that are right."""
        found, wanted, rows = _compare(logits, examples.targets)
        counts = self._agreement(found, wanted, rows)
        precision = share(counts.right.sum(), counts.found.sum())
        recall = share(counts.right.sum(), counts.wanted.sum())
        return {
            "f1": f1(precision, recall),
            "precision": precision,
            "recall": recall,
            "accuracy": share((found == wanted).sum(), len(wanted)),
        }

    def only_answer(self, logits: Tensor, examples: Examples) -> str | None:
        """Return the class that all words get although theirs differ; else None."""
        found, wanted, _ = _compare(logits, examples.targets)
        if len(np.unique(found)) > 1 or len(np.unique(wanted)) == 1:
            return None
        return str((self.labels or ())[int(found[0])])

    def report(self, logits: Tensor, examples: Examples, *, split: str) -> ClassReport:
        """Return the scores of each type of entities."""
        counts = self._agreement(*_compare(logits, examples.targets))
        return report_entities(
            self.meaning.types,
            right=counts.right,
            found=counts.found,
            wanted=counts.wanted,
            split=split,
        )

    def answer(self, logits: Sequence[Tensor], given: EncodedInput) -> Answer:
        """Return the entities, with the mean probability of their words' classes; of words tags."""
        if not isinstance(given, WindowedText):
            raise AnswerError("the input is not encoded for token-classification")
        shares = torch.cat(
            [
                values.softmax(-1)[torch.from_numpy(places)]
                for values, places in zip(logits, given.places, strict=True)
            ]
        )
        scores, labels = (each.numpy() for each in shares.max(-1))
        units, types = given.units, self.meaning.types
        found = self._entities(labels, np.zeros(len(labels), dtype=np.int64))
        entities = []
        for first, last, kind in found.keys.tolist():
            start, end = int(units.starts[first]), int(units.ends[last])
            entities.append(
                {
                    "start": start,
                    "end": end,
                    "label": types[kind],
                    "score": float(scores[first : last + 1].mean()),
                    "text": given.text[start:end],
                }
            )
        tags = None if given.words is None else self._tags(given, found)
        return {"entities": entities, "tags": tags}

    def _tags(self, given: WindowedText, found: Entities) -> list[str | None]:
        """Return the tag of each given word; None without ``O`` for one that is not read."""
        words = given.words or ()
        place = np.searchsorted(word_starts(words), given.units.starts)
        entities = [
            Entity(int(place[first]), int(place[last]), self.meaning.types[kind])
            for first, last, kind in found.keys.tolist()
        ]
        if OUTSIDE in (self.labels or ()):
            return list(write_tags(entities, words=len(words), scheme="BIO"))
        known = {entity.first: entity.type for entity in entities}
        return [known.get(number) for number in range(len(words))]

    def _agreement(self, found: Integers, wanted: Integers, rows: Integers) -> Agreement:
        return Agreement.of(
            self._entities(found, rows), self._entities(wanted, rows), types=len(self.meaning.types)
        )

    def _entities(self, labels: Integers, rows: Integers) -> Entities:
        return find_entities(labels, rows, self.meaning)


def _in_characters(words: Sequence[str], entities: Sequence[Entity]) -> list[tuple[int, int, str]]:
    """Return the characters of entities in the text that words form, joined by spaces."""
    starts = word_starts(words)
    return [
        (starts[each.first], starts[each.last] + len(words[each.last]), each.type)
        for each in entities
    ]


def _words_of(targets: Tensor) -> tuple[Integers, Integers]:
    """Return the class and the row of each word, ``[U]``."""
    words = targets[targets[..., 0] != NO_TARGET].long().numpy()
    return words[:, 0], words[:, 1]


def _compare(logits: Tensor, targets: Tensor) -> tuple[Integers, Integers, Integers]:
    """Return the likeliest class, the true class and the row of each word, ``[U]``."""
    mine = targets[:, : logits.shape[1]]
    is_word = mine[..., 0] != NO_TARGET
    wanted, rows = _words_of(mine)
    return logits.argmax(-1)[is_word].numpy(), wanted, rows
