"""The base classes of task types: columns, encoding, loss, metrics, answers, description."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

import numpy as np

from hifi.backbones.models import reads
from hifi.data.classes.weights import check_task
from hifi.data.spec import column_names
from hifi.errors import AnswerError, InputError, ModelError

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedConfig
    from transformers.image_processing_utils import BaseImageProcessor
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from hifi.backbones.models import AutoClass, ModelSource
    from hifi.data.classes.weights import ClassWeights
    from hifi.data.labels import Label
    from hifi.data.spec import TaskSpec
    from hifi.data.task_types import TaskType
    from hifi.tasks.probe import ProbeKind
    from hifi.tasks.report import ClassReport

Answer: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """Samples in one padded batch.

    Attributes:
        inputs: arguments of ``model.forward``, and possibly more (``token_type_ids``).
        targets: class indices or values for the task's loss, ``[B, …]``. If every token has one,
            they are padded to the longest sample of the split.
    """

    inputs: Mapping[str, Tensor]
    targets: Tensor

    def to(self, device: torch.device, *, dtype: torch.dtype) -> Batch:
        """Move the batch to a device, and floating inputs (pixels) to the model's dtype."""
        moved = {
            name: value.to(device, dtype) if value.is_floating_point() else value.to(device)
            for name, value in self.inputs.items()
        }
        return Batch(moved, self.targets.to(device))


class Examples(ABC):
    """One encoded split.

    Attributes:
        lengths: tokens of each sample, int64 ``[n]``.
        targets: as in :class:`Batch`, ``[n, …]``.
    """

    lengths: NDArray[np.int64]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def rows(self) -> int:
        """The number of rows of the data, which may have several samples each."""
        return len(self)

    @abstractmethod
    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """Collate some samples, padded on the right to the longest of them."""

    @abstractmethod
    def digest(self) -> str:
        """Return a hash of the model's inputs and the targets: ``sha256:…``."""


class EncodedInput(ABC):
    """An encoded input of a prediction: a sample, or several that are answered together."""

    @property
    @abstractmethod
    def samples(self) -> tuple[Sample, ...]:
        """The samples, in the order in which their logits are read."""


@dataclass(frozen=True, eq=False)
class Sample(EncodedInput):
    """What the model reads at once.

    Attributes:
        inputs: arguments of ``model.forward``: tokens ``[S]``, or pixels ``[C, h, w]``.
        pads: padding values by name; pixels have none.
        length: number of tokens in the model.
    """

    inputs: Mapping[str, Tensor]
    pads: Mapping[str, int]
    length: int

    @property
    def samples(self) -> tuple[Sample, ...]:
        """This sample alone."""
        return (self,)


class Encoder(ABC):
    """Encodes rows as a model's inputs: a tokenizer or an image processor with its settings.

    Attributes:
        metadata: settings that predictions must use too (pad token, max_length, …); plain JSON.
        sequence_length: the maximum number of tokens of a sample.
    """

    metadata: Mapping[str, Any]
    sequence_length: int

    @abstractmethod
    def encode(self, dataset: Dataset, *, split: str, targets: Tensor) -> Examples:
        """Check the inputs of a split and encode them, once for all epochs.

        Args:
            dataset: contains the input columns.
            split: for messages.
            targets: the result of :meth:`Task.targets`, stored with the inputs.

        Raises:
            DataError: a row cannot be used.
        """

    @abstractmethod
    def read(
        self, inputs: Sequence[Mapping[str, Any]], *, truncate: bool
    ) -> Sequence[EncodedInput | InputError]:
        """Encode inputs of predictions as the training split was encoded; thread-safe.

        Args:
            inputs: with the fields of the task type's request.
            truncate: False refuses texts that training would have truncated.

        Returns:
            An encoded input or an error for each.
        """


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """One task: its type, its columns, and the classes of the training split.

    Attributes:
        inputs: the input columns.
        label: the label column, or several.
        metric: a declared metric; the step with the highest value is the best.
        classes: the data's labels, in the order of the logits; None for a task without classes.
        names: what answers call the classes, if not by the data's labels: those of a checkpoint's
            task head that is kept.
    """

    declaration: ClassVar[TaskType]
    auto_class: ClassVar[AutoClass]  # builds a model with this task's head
    probe: ClassVar[ProbeKind | None] = None  # how its linear probe is fitted, if it has one

    inputs: tuple[str, ...]
    label: str | tuple[str, ...]
    metric: str
    classes: tuple[Label, ...] | None = None
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        self.declaration.choose_metric(self.metric)

    @classmethod
    def read_classes(
        cls,
        dataset: Dataset,  # noqa: ARG003 - only tasks with classes read them
        label: str | tuple[str, ...],  # noqa: ARG003 - as above
    ) -> tuple[Label, ...] | None:
        """Read the classes of the training split; None for a task without classes.

        Raises:
            DataError: the labels cannot be used.
        """
        return None

    @classmethod
    def of(cls, spec: TaskSpec, dataset: Dataset) -> Self:
        """Build a task from a complete spec and the training split.

        Raises:
            DataError: the labels cannot be used.
            InvalidArgumentError: the task type does not have this metric.
        """
        label = spec.learned
        return cls(
            inputs=spec.inputs,
            label=label,
            classes=cls.read_classes(dataset, label),
            metric=cls.declaration.choose_metric(spec.metric),
        )

    @property
    def type(self) -> str:
        """The task type's name."""
        return self.declaration.name

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The label column, or several."""
        return column_names("label", self.label)

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that the task reads."""
        return (*self.inputs, *self.label_columns)

    @property
    def labels(self) -> tuple[Label, ...] | None:
        """The classes as answers and head deltas name them, in the order of the logits."""
        return self.names or self.classes

    @property
    def num_labels(self) -> int:
        """The number of logits of a sample, or of a token."""
        return len(self.classes) if self.classes else self.declaration.num_labels or 1

    @property
    def num_logits(self) -> int:
        """The number of logits that a loss compares: of a sample, or of all choices of a row."""
        return self.num_labels

    @classmethod
    def check_reads(cls, source: ModelSource, config: PreTrainedConfig) -> None:
        """Refuse a model that does not read this task's inputs.

        Raises:
            ModelError: transformers has no class for this model with the task's head.
        """
        if not reads(config, auto_class=cls.auto_class):
            raise ModelError(
                f"{source.name} has the architecture {config.model_type!r}, which does not read "
                f"{cls.declaration.input_kind}s; this task needs a model that does"
            )

    @classmethod
    @abstractmethod
    def set_padding(cls, source: ModelSource, config: PreTrainedConfig) -> None:
        """Set the padding in a configuration, for head deltas that do not record it.

        Raises:
            ModelError: the model's tokenizer is missing or cannot be loaded.
        """

    @classmethod
    @abstractmethod
    def load_processor(
        cls, source: ModelSource, config: PreTrainedConfig, *, record: Mapping[str, Any]
    ) -> PreTrainedTokenizerBase | BaseImageProcessor:
        """Load the tokenizer or image processor for a merged model.

        Args:
            source: the model.
            config: of the merged model; gets the tokenizer's pad token.
            record: the task that the head delta records.

        Raises:
            ModelError: it is missing or cannot be loaded.
        """

    @abstractmethod
    def load_encoder(
        self, source: ModelSource, config: PreTrainedConfig, *, max_length: int
    ) -> Encoder:
        """Load the model's tokenizer or image processor, and update the configuration.

        Raises:
            ModelError: it is missing or does not fit the model.
        """

    @abstractmethod
    def targets(self, dataset: Dataset, *, split: str) -> Tensor:
        """Read the targets, ``[n, …]``, as in :class:`Batch`; or what the encoder makes them of.

        Raises:
            DataError: a target is missing, or is a class that the training split does not have.
        """

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch, in float32.

        Args:
            logits: ``[B, num_logits]``, or ``[B, S, num_labels]`` if every token has some.
            targets: as in :class:`Batch`.
        """

    def training_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss that a training step lowers: of weighted classes, if they are."""
        return self.loss(logits, targets)

    def weighted(
        self,
        weights: ClassWeights | None,
        *,
        targets: Tensor,  # noqa: ARG002 - only tasks with classes count them
    ) -> Self:
        """Return this task with weights of its classes in the training loss.

        Args:
            weights: checked; None for none.
            targets: of the training split.

        Raises:
            InvalidArgumentError: the task learns no classes, or not one of the labels.
        """
        check_task(weights, has_classes=False, task=self.type)
        return self

    def condense(self, logits: Tensor, examples: Examples) -> Tensor:  # noqa: ARG002 - only searches need them
        """Return what metrics, fitted numbers and reports read of logits: by default all of them.

        A task that searches in the logits returns what it finds, so that it searches once.

        Args:
            logits: float32, as in :meth:`loss`, of all samples, on the CPU.
            examples: the samples.
        """
        return logits

    @abstractmethod
    def evaluate(self, logits: Tensor, examples: Examples) -> dict[str, float]:
        """Return every metric of the task.

        Args:
            logits: of all samples, as :meth:`condense` returns them.
            examples: the samples.
        """

    @property
    def encoding(self) -> tuple[object, ...]:
        """What else determines how inputs are encoded, beside the columns' number and lengths."""
        return ()

    @property
    def counted(self) -> str:
        """What the metric compares, for messages."""
        return "rows"

    def count_answers(self, targets: Tensor) -> int:
        """Return the number of answers that the metric compares.

        Args:
            targets: of a split.
        """
        return len(targets)

    def count_rows(self, targets: Tensor) -> dict[str, int]:  # noqa: ARG002 - only tasks with classes have them
        """Return the number of rows of each class, in the order of the logits; or of entities.

        Args:
            targets: of a split.
        """
        return {}

    def fit_answers(self, logits: Tensor, examples: Examples) -> Mapping[str, float]:  # noqa: ARG002 - as above
        """Choose what else turns logits into answers, on the validation split: a threshold.

        Args:
            logits: as in :meth:`evaluate`.
            examples: the samples.

        Returns:
            Plain numbers by name, for :meth:`with_answers`; most tasks have none.
        """
        return {}

    def with_answers(self, fitted: Mapping[str, Any]) -> Self:  # noqa: ARG002 - as above
        """Return this task with the numbers of :meth:`fit_answers`; others are ignored.

        Args:
            fitted: or the record of a head delta, which has them among its entries.

        Raises:
            DeltaFileError: a number is outside its range.
        """
        return self

    def only_answer(self, logits: Tensor, examples: Examples) -> str | None:  # noqa: ARG002 - as above
        """Return the class that all samples get although their targets differ; else None.

        Args:
            logits: as in :meth:`evaluate`.
            examples: the samples.
        """
        return None

    def report(
        self,
        logits: Tensor,  # noqa: ARG002 - only classifications have a report
        examples: Examples,  # noqa: ARG002 - as above
        *,
        split: str,  # noqa: ARG002 - as above
    ) -> ClassReport | None:
        """Return the scores of each class and the confusion matrix; None for other tasks.

        Args:
            logits: as in :meth:`evaluate`.
            examples: the samples.
            split: that was measured.
        """
        return None

    @staticmethod
    def logits_of(output: Any) -> Tensor:  # noqa: ANN401 - each model has an output class
        """Return the logits in the output of the task's model."""
        logits: Tensor = output.logits
        return logits

    def read_answer(self, logits: Sequence[Tensor], given: EncodedInput) -> Answer:
        """Return the answer to an input.

        Args:
            logits: of each sample, ``[num_labels]``; or ``[S, num_labels]``, padded like its batch.
            given: the input.

        Returns:
            The fields of the declared answer.

        Raises:
            AnswerError: the logits are not finite.
        """
        is_by_token = self.declaration.logits == "token"
        exact = [
            (each[: sample.length] if is_by_token else each).double()
            for each, sample in zip(logits, given.samples, strict=True)
        ]
        if not all(each.isfinite().all() for each in exact):
            raise AnswerError("the model's answer to this input is not a number")
        return self.answer(exact, given)

    @abstractmethod
    def answer(self, logits: Sequence[Tensor], given: EncodedInput) -> Answer:
        """Convert the logits of an input's samples to the declared answer.

        Args:
            logits: of each sample, float64, finite, ``[num_labels]``; or
                ``[sample.length, num_labels]``.
            given: the input.
        """

    def settings(self) -> dict[str, Any]:
        """Return the configuration entries for a transformers model with this task's head."""
        problem = self.declaration.problem_type
        settings: dict[str, Any] = {} if problem is None else {"problem_type": problem}
        if not self.labels:
            return {**settings, "num_labels": self.num_labels}
        names = [str(name) for name in self.labels]
        return {
            **settings,
            "id2label": dict(enumerate(names)),  # num_labels is its length
            "label2id": {name: index for index, name in enumerate(names)},
        }

    def describe(self) -> dict[str, Any]:
        """Describe the task for a head delta: plain JSON, without the classes."""
        return {
            "type": self.type,
            "label": self.label if isinstance(self.label, str) else list(self.label),
            "metric": self.metric,
            "num_labels": self.num_labels,
            "problem_type": self.declaration.problem_type,
        }


def only_column(label: str | tuple[str, ...]) -> str:
    """Return the label column of a task that has one."""
    (column,) = column_names("label", label)
    return column


def digest_of(parts: Iterable[bytes | NDArray[Any]]) -> str:
    """Return the SHA-256 of byte strings and arrays, each with its length: ``sha256:…``."""
    total = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes()
        total.update(len(content).to_bytes(8, "little"))
        total.update(content)
    return f"sha256:{total.hexdigest()}"
