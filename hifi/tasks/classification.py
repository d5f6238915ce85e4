"""Classification of a text or a pair of texts, any number of classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import torch
import transformers
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from hifi.data.classes.weights import BALANCED, ClassWeights, check_labels
from hifi.data.columns import label_indices, label_order, read_labels
from hifi.data.task_types import CLASSIFICATION, TaskType
from hifi.tasks import metrics
from hifi.tasks.base import Answer, EncodedInput, Task, only_column
from hifi.tasks.probe import ClassProbe, ProbeKind
from hifi.tasks.report import ClassReport, report_classes
from hifi.tasks.text import TextTask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset
    from numpy.typing import NDArray

    from hifi.backbones.models import AutoClass
    from hifi.data.labels import Label
    from hifi.tasks.base import Examples


@dataclass(frozen=True, kw_only=True)
class ClassTask(Task):
    """Base class of classifications, for any kind of input.

    Attributes:
        class_weights: of each class in the training loss, in the order of the logits; their mean
            over the training rows is 1. None for equal ones.
    """

    probe: ClassVar[ProbeKind | None] = ClassProbe()

    class_weights: tuple[float, ...] | None = None

    @classmethod
    def read_classes(cls, dataset: Dataset, label: str | tuple[str, ...]) -> tuple[Label, ...]:
        """Read the classes of the training split."""
        column = only_column(label)
        labels = read_labels(dataset, column, split="train")
        return tuple(label_order(dataset, column, labels, split="train"))

    def targets(self, dataset: Dataset, *, split: str) -> Tensor:
        """Read the class indices, int64 ``[n]``."""
        known, column = self.classes or (), only_column(self.label)
        labels = read_labels(dataset, column, split=split, known=known)
        indices = label_indices(labels, known=known, column=column, split=split)
        return torch.tensor(indices, dtype=torch.int64)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross entropy of a batch, in float32."""
        return nn.functional.cross_entropy(logits.float(), targets)

    def training_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over a batch of each sample's loss times its class's weight.

        torch divides by the sum of the batch's weights instead, and so by another number in each
        batch: a batch of one class would then ignore its weight.
        """
        if self.class_weights is None:
            return self.loss(logits, targets)
        precise = logits.float()
        weights = precise.new_tensor(self.class_weights)
        total = nn.functional.cross_entropy(precise, targets, weight=weights, reduction="sum")
        return total / len(targets)

    def weighted(self, weights: ClassWeights | None, *, targets: Tensor) -> Self:
        """Return this task with weights of its classes in the training loss.

        They are divided by their mean over the training rows, so that the learning rate keeps its
        meaning: only their ratios matter. ``balanced`` weights are those of scikit-learn,
        w_c = n / (C n_c) for the C classes that occur, n_c times in n rows; their mean is 1.
        """
        if weights is None:
            return self
        names = [str(label) for label in self.classes or ()]
        return replace(self, class_weights=weigh(weights, names=names, rows=targets.numpy()))

    def count_rows(self, targets: Tensor) -> dict[str, int]:
        """Return the number of rows of each class."""
        names = [str(label) for label in self.labels or ()]
        return dict(zip(names, targets.bincount(minlength=len(names)).tolist(), strict=True))

    def evaluate(self, logits: Tensor, examples: Examples) -> dict[str, float]:
        """Compute the declared metrics of logits ``[n, classes]``."""
        return metrics.measure_classes(
            self.declaration.metrics,
            examples.targets.numpy(),
            logits.argmax(-1).numpy(),
            num_classes=self.num_labels,
        )

    def only_answer(self, logits: Tensor, examples: Examples) -> str | None:
        """Return the class that all samples get although their targets differ; else None."""
        predicted = logits.argmax(-1).unique()
        if len(predicted) > 1 or len(examples.targets.unique()) == 1:
            return None
        return str((self.labels or ())[int(predicted)])

    def report(self, logits: Tensor, examples: Examples, *, split: str) -> ClassReport:
        """Return the scores of each class and the confusion matrix."""
        names = [str(name) for name in self.labels or ()]
        predictions = logits.argmax(-1).numpy()
        return report_classes(names, examples.targets.numpy(), predictions, split=split)

    def answer(self, logits: Sequence[Tensor], given: EncodedInput) -> Answer:  # noqa: ARG002 - of any input alike
        """Return the likeliest class, its softmax share, and that of every class by name."""
        (values,) = logits
        shares = values.softmax(-1).tolist()
        names = [str(name) for name in self.labels or ()]
        best = int(values.argmax())
        scores = dict(zip(names, shares, strict=True))
        return {"label": names[best], "score": shares[best], "scores": scores}


def weigh(
    weights: ClassWeights, *, names: Sequence[str], rows: NDArray[np.int64]
) -> tuple[float, ...]:
    """Return the weight of each class, as :meth:`ClassTask.weighted` does.

    Args:
        weights: checked.
        names: of the classes.
        rows: the class of each row, ``[n]``.

    Raises:
        InvalidArgumentError: a weight is for none of the classes.
    """
    check_labels(weights, labels=names)
    values = np.ones(len(names))
    if isinstance(weights, str):
        present = np.unique(rows)
        values[present] = compute_class_weight(BALANCED, classes=present, y=rows)
    else:
        values[:] = [weights.get(name, 1.0) for name in names]
        values /= values.max()  # the sum of large ones would be infinite
        values /= values[rows].mean()
    return tuple(values.tolist())


@dataclass(frozen=True, kw_only=True)
class Classification(TextTask, ClassTask):
    """Classification of texts; ``inputs`` are one or two text columns."""

    declaration: ClassVar[TaskType] = CLASSIFICATION
    auto_class: ClassVar[AutoClass] = transformers.AutoModelForSequenceClassification
