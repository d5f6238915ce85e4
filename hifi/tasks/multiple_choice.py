"""Multiple choice: the right one of several texts, after none, one or two texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
import transformers
from torch import Tensor, nn

from hifi.data.columns import count_row_choices, read_numbering, read_right_choices
from hifi.data.task_types import MULTIPLE_CHOICE, TaskType
from hifi.tasks import metrics
from hifi.tasks.base import Answer, EncodedInput, only_column
from hifi.tasks.choice_encoder import ChoiceEncoder
from hifi.tasks.probe import ChoiceProbe, ProbeKind
from hifi.tasks.text import TextTask

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedConfig

    from hifi.backbones.models import AutoClass, ModelSource
    from hifi.data.numbering import Numbering
    from hifi.data.spec import TaskSpec
    from hifi.tasks.base import Examples


@dataclass(frozen=True, kw_only=True)
class MultipleChoice(TextTask):
    """Choice of the right text; ``inputs`` are the text columns and those of the choices.

    Attributes:
        num_texts: the number of text columns; the others hold the choices.
        numbering: of the choices of a row by the labels; None for a head delta's task.
    """

    declaration: ClassVar[TaskType] = MULTIPLE_CHOICE
    auto_class: ClassVar[AutoClass] = transformers.AutoModelForMultipleChoice
    probe: ClassVar[ProbeKind | None] = ChoiceProbe()

    num_texts: int = 0
    numbering: Numbering | None = None

    @classmethod
    def of(cls, spec: TaskSpec, dataset: Dataset) -> Self:
        """Build a task from a complete spec and the training split."""
        task = super().of(spec, dataset)
        count = count_row_choices(dataset, spec.choices)
        numbering = read_numbering(dataset, only_column(task.label), count=count)
        return replace(task, num_texts=len(spec.text), numbering=numbering)

    @property
    def num_logits(self) -> int:
        """The number of choices."""
        return super().num_logits if self.numbering is None else self.numbering.count

    @property
    def encoding(self) -> tuple[object, ...]:
        """What else determines how inputs are encoded."""
        return (self.num_texts,)

    def load_encoder(
        self, source: ModelSource, config: PreTrainedConfig, *, max_length: int
    ) -> ChoiceEncoder:
        """Load the model's tokenizer, and set the pad token in its configuration."""
        return ChoiceEncoder(
            source,
            config,
            texts=self.inputs[: self.num_texts],
            choices=self.inputs[self.num_texts :],
            count=self.num_logits,
            max_length=max_length,
        )

    def targets(self, dataset: Dataset, *, split: str) -> Tensor:
        """Read the place of each row's right choice, int64 ``[n]``."""
        if self.numbering is None:
            raise TypeError("a head delta's task reads no targets")
        column = only_column(self.label)
        places = read_right_choices(dataset, column, split=split, numbering=self.numbering)
        return torch.tensor(places, dtype=torch.int64)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross entropy of the choices of a row, ``[B, C]``, in float32."""
        return nn.functional.cross_entropy(logits.float(), targets)

    def evaluate(self, logits: Tensor, examples: Examples) -> dict[str, float]:
        """Compute the accuracy of logits ``[n, C]``."""
        return metrics.measure_classes(
            self.declaration.metrics,
            examples.targets.numpy(),
            logits.argmax(-1).numpy(),
            num_classes=self.num_logits,
        )

    def only_answer(self, logits: Tensor, examples: Examples) -> str | None:
        """Return the choice that all rows get although their targets differ; else None."""
        predicted = logits.argmax(-1).unique()
        if self.numbering is None or len(predicted) > 1 or len(examples.targets.unique()) == 1:
            return None
        return str(self.numbering.labels[int(predicted)])

    def with_answers(self, fitted: Mapping[str, Any]) -> Self:
        """Return this task with the number of text columns that a head delta records."""
        texts = fitted.get("text")
        return replace(self, num_texts=len(texts)) if isinstance(texts, list) else self

    def answer(self, logits: Sequence[Tensor], given: EncodedInput) -> Answer:  # noqa: ARG002 - of any input alike
        """Return the likeliest choice, its softmax share, and that of every choice."""
        shares = torch.cat([each.reshape(-1) for each in logits]).softmax(-1)
        best = int(shares.argmax())
        return {"choice": best, "score": float(shares[best]), "scores": shares.tolist()}
