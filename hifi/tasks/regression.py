"""Regression: one number for a text or a pair of texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from hifi.data.columns import read_targets
from hifi.data.task_types import REGRESSION, TaskType
from hifi.tasks import metrics
from hifi.tasks.base import only_column
from hifi.tasks.probe import NumberProbe, ProbeKind
from hifi.tasks.text import TextTask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset

    from hifi.backbones.models import AutoClass
    from hifi.tasks.base import Answer, EncodedInput, Examples


@dataclass(frozen=True, kw_only=True)
class Regression(TextTask):
    """Regression on texts; ``inputs`` are one or two text columns."""

    declaration: ClassVar[TaskType] = REGRESSION
    auto_class: ClassVar[AutoClass] = transformers.AutoModelForSequenceClassification
    probe: ClassVar[ProbeKind | None] = NumberProbe()

    def targets(self, dataset: Dataset, *, split: str) -> Tensor:
        """Read the numbers, float32 ``[n]``."""
        numbers = read_targets(dataset, only_column(self.label), split=split)
        return torch.tensor(numbers, dtype=torch.float32)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error of a batch, in float32."""
        return nn.functional.mse_loss(logits.float().squeeze(-1), targets)

    def evaluate(self, logits: Tensor, examples: Examples) -> dict[str, float]:
        """Compute the declared metrics of logits ``[n, 1]``."""
        truth = examples.targets.numpy().astype(np.float64)
        predicted = logits.squeeze(-1).numpy().astype(np.float64)
        return metrics.measure_numbers(self.declaration.metrics, truth, predicted)

    def answer(self, logits: Sequence[Tensor], given: EncodedInput) -> Answer:  # noqa: ARG002 - logits suffice
        """Return the number."""
        (value,) = logits
        return {"value": value.item()}
