"""Classification of a text or a pair of texts, any number of classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import transformers
from torch import Tensor, nn

from hifi.data.columns import label_indices, label_order, read_labels
from hifi.data.task_types import CLASSIFICATION, TaskType
from hifi.tasks import metrics
from hifi.tasks.base import Answer, Sample, Task
from hifi.tasks.probe import ClassProbe, ProbeKind
from hifi.tasks.text import TextTask

if TYPE_CHECKING:
    from datasets import Dataset

    from hifi.backbones.models import AutoClass
    from hifi.data.labels import Label


@dataclass(frozen=True, kw_only=True)
class ClassTask(Task):
    """Base class of classifications, for any kind of input."""

    probe: ClassVar[ProbeKind | None] = ClassProbe()

    @classmethod
    def read_classes(cls, dataset: Dataset, label: str) -> tuple[Label, ...]:
        """Read the classes of the training split."""
        labels = read_labels(dataset, label, split="train")
        return tuple(label_order(dataset, label, labels, split="train"))

    def targets(self, dataset: Dataset, *, split: str) -> Tensor:
        """Read the class indices, int64 ``[n]``."""
        known = self.classes or ()
        labels = read_labels(dataset, self.label, split=split, known=known)
        indices = label_indices(labels, known=known, column=self.label, split=split)
        return torch.tensor(indices, dtype=torch.int64)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross entropy of a batch, in float32."""
        return nn.functional.cross_entropy(logits.float(), targets)

    def evaluate(self, logits: Tensor, targets: Tensor) -> dict[str, float]:
        """Compute the declared metrics of logits ``[n, classes]``."""
        return metrics.measure_classes(
            self.declaration.metrics,
            targets.numpy(),
            logits.argmax(-1).numpy(),
            num_classes=self.num_labels,
        )

    def only_answer(self, logits: Tensor, targets: Tensor) -> str | None:
        """Return the class that all samples get although their targets differ; else None."""
        predicted = logits.argmax(-1).unique()
        if len(predicted) > 1 or len(targets.unique()) == 1:
            return None
        return str((self.labels or ())[int(predicted)])

    def answer(self, logits: Tensor, sample: Sample) -> Answer:  # noqa: ARG002 - of any input alike
        """Return the likeliest class, its softmax share, and that of every class by name."""
        shares = logits.softmax(-1).tolist()
        names = [str(name) for name in self.labels or ()]
        best = int(logits.argmax())
        scores = dict(zip(names, shares, strict=True))
        return {"label": names[best], "score": shares[best], "scores": scores}


@dataclass(frozen=True, kw_only=True)
class Classification(TextTask, ClassTask):
    """Classification of texts; ``inputs`` are one or two text columns."""

    declaration: ClassVar[TaskType] = CLASSIFICATION
    auto_class: ClassVar[AutoClass] = transformers.AutoModelForSequenceClassification
