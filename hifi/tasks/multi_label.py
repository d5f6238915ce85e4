"""Multi-label classification: any number of labels for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from hifi.data.classes.weights import ClassWeights, check_labels
from hifi.data.columns import label_set_indices, label_set_order, read_flags, read_label_sets
from hifi.data.task_types import MULTI_LABEL, TaskType
from hifi.errors import DeltaFileError
from hifi.tasks import metrics
from hifi.tasks.probe import LabelsProbe, ProbeKind
from hifi.tasks.report import ClassReport, report_label_sets
from hifi.tasks.text import TextTask
from hifi.tasks.thresholds import best_threshold

if TYPE_CHECKING:
    from datasets import Dataset

    from hifi.backbones.models import AutoClass
    from hifi.data.labels import Label
    from hifi.tasks.base import Answer, EncodedInput, Examples
    from hifi.tasks.metrics import Floats

DEFAULT_THRESHOLD = 0.5  # without a validation split
_THRESHOLD = "threshold"
_NO_LABEL = "(no label)"


@dataclass(frozen=True, kw_only=True)
class MultiLabel(TextTask):
    """Classification of texts by labels that do not exclude each other.

    Attributes:
        threshold: the probability from which on a row has a label; None if it is still to be
            chosen on the validation split.
        row_weights: of the rows that have each label, beside 1 for those that have not, in the
            training loss; None for equal ones.
        mean_weight: of all rows and labels of the training split.
    """

    declaration: ClassVar[TaskType] = MULTI_LABEL
    auto_class: ClassVar[AutoClass] = transformers.AutoModelForSequenceClassification
    probe: ClassVar[ProbeKind | None] = LabelsProbe()

    threshold: float | None = None
    row_weights: tuple[float, ...] | None = None
    mean_weight: float = 1.0

    @classmethod
    def read_classes(cls, dataset: Dataset, label: str | tuple[str, ...]) -> tuple[Label, ...]:
        """Read the labels of the training split: the columns' names, or the lists' entries."""
        if not isinstance(label, str):
            return label
        sets = read_label_sets(dataset, label, split="train")
        return tuple(label_set_order(dataset, label, sets, split="train"))

    def targets(self, dataset: Dataset, *, split: str) -> Tensor:
        """Read which row has which label, bool, ``[n, labels]``."""
        if not isinstance(self.label, str):
            flags = [read_flags(dataset, column, split=split) for column in self.label]
            return torch.tensor(flags).T.contiguous()
        known = self.classes or ()
        sets = read_label_sets(dataset, self.label, split=split, known=known)
        indices = label_set_indices(sets, known=known, column=self.label, split=split)
        found = torch.zeros(len(sets), len(known), dtype=torch.bool)
        for row, labels in enumerate(indices):
            found[row, labels] = True
        return found

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean binary cross entropy of a batch, in float32."""
        precise = logits.float()
        return nn.functional.binary_cross_entropy_with_logits(precise, targets.to(precise.dtype))

    def training_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over a batch, with the weights of the rows that have a label."""
        if self.row_weights is None:
            return self.loss(logits, targets)
        precise = logits.float()
        weights = precise.new_tensor(self.row_weights)
        loss = nn.functional.binary_cross_entropy_with_logits(
            precise, targets.to(precise.dtype), pos_weight=weights
        )
        return loss / self.mean_weight

    def weighted(self, weights: ClassWeights | None, *, targets: Tensor) -> Self:
        """Return this task with weights of the rows that have a label, beside 1 for the others.

        The loss is divided by the mean of all weights, so that the learning rate keeps its meaning.
        ``balanced`` gives both sides of each label the same sum: the rows without it divided by
        those with it.
        """
        if weights is None:
            return self
        names = [str(label) for label in self.classes or ()]
        check_labels(weights, labels=names)
        rows, counts = len(targets), targets.double().sum(0).numpy()
        if isinstance(weights, str):
            values = np.where(counts > 0, (rows - counts) / np.maximum(counts, 1), 1.0)
            values = np.maximum(values, 1 / rows)  # of a label that all rows have
        else:
            values = np.array([weights.get(name, 1.0) for name in names])
        mean = float(np.mean((counts * values + rows - counts) / rows))
        return replace(self, row_weights=tuple(values.tolist()), mean_weight=mean)

    def count_rows(self, targets: Tensor) -> dict[str, int]:
        """Return the number of rows that have each label."""
        names = [str(label) for label in self.labels or ()]
        return dict(zip(names, targets.sum(0).int().tolist(), strict=True))

    def evaluate(self, logits: Tensor, examples: Examples) -> dict[str, float]:
        """Compute the declared metrics of logits ``[n, labels]``, with this task's threshold."""
        return metrics.measure_label_sets(
            self.declaration.metrics,
            examples.targets.bool().numpy(),
            _scores(logits),
            threshold=self._threshold,
        )

    def fit_answers(self, logits: Tensor, examples: Examples) -> Mapping[str, float]:
        """Choose the threshold with the highest metric; it is one for all labels.

        Of equal ones it is the closest to one half. The mean average precision depends on no
        threshold, so micro F1 chooses for it.
        """
        if self.threshold is not None:
            return {_THRESHOLD: self.threshold}
        by = "micro_f1" if self.metric == "mean_average_precision" else self.metric
        truth, scores = examples.targets.bool().numpy(), _scores(logits)
        chosen = best_threshold(truth, scores, metric=by, usual=DEFAULT_THRESHOLD)
        return {_THRESHOLD: chosen}

    def with_answers(self, fitted: Mapping[str, Any]) -> Self:
        """Return this task with its threshold."""
        threshold = fitted.get(_THRESHOLD)
        if threshold is None:
            return self
        if not isinstance(threshold, float) or not 0 < threshold < 1:
            limit = "a number above 0 and below 1 is needed"
            raise DeltaFileError(f"the head delta's task records threshold={threshold!r}: {limit}")
        return replace(self, threshold=threshold)

    def only_answer(self, logits: Tensor, examples: Examples) -> str | None:
        """Return the labels that all samples get although their targets differ; else None."""
        found = (_scores(logits) >= self._threshold).astype(np.int8)
        if (found != found[0]).any() or bool((examples.targets == examples.targets[0]).all()):
            return None
        names = [str((self.labels or ())[index]) for index in np.flatnonzero(found[0])]
        return ", ".join(names) or _NO_LABEL

    def report(self, logits: Tensor, examples: Examples, *, split: str) -> ClassReport:
        """Return the scores of each label."""
        names = [str(name) for name in self.labels or ()]
        found = _scores(logits) >= self._threshold
        return report_label_sets(names, examples.targets.bool().numpy(), found, split=split)

    def answer(self, logits: Sequence[Tensor], given: EncodedInput) -> Answer:  # noqa: ARG002 - logits suffice
        """Return the labels from the threshold on, and the probability of each label."""
        (values,) = logits
        names = [str(name) for name in self.labels or ()]
        scores = dict(zip(names, values.sigmoid().tolist(), strict=True))
        labels = [name for name, score in scores.items() if score >= self._threshold]
        return {"labels": labels, "scores": scores}

    @property
    def _threshold(self) -> float:
        return DEFAULT_THRESHOLD if self.threshold is None else self.threshold

    def settings(self) -> dict[str, Any]:
        """Return the configuration entries, with the threshold, which transformers does not use."""
        return {**super().settings(), _THRESHOLD: self._threshold}

    def describe(self) -> dict[str, Any]:
        """Describe the task for a head delta, with the threshold of its answers."""
        return {**super().describe(), _THRESHOLD: self._threshold}


def _scores(logits: Tensor) -> Floats:
    return logits.double().sigmoid().numpy()
