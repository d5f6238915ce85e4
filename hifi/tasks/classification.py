"""Classification of a text or a pair of texts, any number of classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import torch
import transformers
from torch import Tensor, nn

from hifi.data.columns import label_indices, label_order, read_labels
from hifi.tasks import metrics
from hifi.tasks.base import Task
from hifi.tasks.text import TextTask

if TYPE_CHECKING:
    from datasets import Dataset

    from hifi.backbones.models import AutoClass


@dataclass(frozen=True, kw_only=True)
class ClassTask(Task):
    """What classifications share, whatever their inputs are."""

    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "f1", "matthews")
    problem_type: ClassVar[str] = "single_label_classification"

    @classmethod
    def from_data(
        cls, dataset: Dataset, *, inputs: tuple[str, ...], label: str, metric: str | None
    ) -> Self:
        """Make the task; its classes are those of the training split."""
        labels = read_labels(dataset, label, split="train")
        classes = tuple(label_order(dataset, label, labels, split="train"))
        return cls(inputs=inputs, label=label, metric=metric or cls.metrics[0], classes=classes)

    def targets(self, dataset: Dataset, *, split: str) -> Tensor:
        """Read the class indices, int64 ``[n]``."""
        known = self.classes or ()
        labels = read_labels(dataset, self.label, split=split, known=known)
        indices = label_indices(labels, known=known, column=self.label, split=split)
        return torch.tensor(indices, dtype=torch.int64)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Give the mean cross entropy of a batch, in float32."""
        return nn.functional.cross_entropy(logits.float(), targets)

    def evaluate(self, logits: Tensor, targets: Tensor) -> dict[str, float]:
        """Give accuracy, F1 and Matthews correlation of logits ``[n, classes]``."""
        truth, predicted = targets.numpy(), logits.argmax(-1).numpy()
        return {
            "accuracy": metrics.accuracy(truth, predicted),
            "f1": metrics.f1(truth, predicted, num_classes=self.num_labels),
            "matthews": metrics.matthews(truth, predicted),
        }


@dataclass(frozen=True, kw_only=True)
class Classification(TextTask, ClassTask):
    """Classification of texts; ``inputs`` are one or two text columns."""

    type: ClassVar[str] = "classification"
    auto_class: ClassVar[AutoClass] = transformers.AutoModelForSequenceClassification
