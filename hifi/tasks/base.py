"""What every task type offers to a fine-tune: columns, encoding, loss, metrics, description."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias

import numpy as np

from hifi.errors import InvalidArgumentError

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedConfig

    from hifi.backbones.models import AutoClass, ModelSource
    from hifi.data.labels import Label

InputKind: TypeAlias = Literal["text", "image"]


@dataclass(frozen=True)
class Batch:
    """Samples in one padded batch.

    Attributes:
        inputs: what ``model.forward`` takes, and possibly more (``token_type_ids``).
        targets: int64 class indices or float32 values, ``[B]``.
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
        targets: int64 class indices or float32 values, ``[n]``.
    """

    lengths: NDArray[np.int64]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    @abstractmethod
    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """Collate some samples, padded on the right to the longest of them."""

    @abstractmethod
    def digest(self) -> str:
        """Hash what the model will see and what it should answer: ``sha256:…``."""


class Encoder(ABC):
    """What turns rows into a model's inputs: a tokenizer or an image processor, set up.

    Attributes:
        metadata: what a prediction must repeat (pad token, max_length, …); plain JSON.
        sequence_length: tokens that the model sees of a sample, at most.
    """

    metadata: Mapping[str, Any]
    sequence_length: int

    @abstractmethod
    def encode(self, dataset: Dataset, *, split: str, targets: Tensor) -> Examples:
        """Check the inputs of a split and encode them, once and for all epochs.

        Args:
            dataset: holds the input columns.
            split: for messages.
            targets: ``[n]``, they travel along.

        Raises:
            DataError: a row that cannot be used.
        """


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """One task: its type, its columns, and what the training split fixed about it.

    Attributes:
        inputs: the input columns.
        label: the column of classes or numbers.
        metric: one of :attr:`metrics`; by it the best step is chosen, higher is better.
        classes: in the order of the logits; None for numbers.
    """

    type: ClassVar[str]
    input_kind: ClassVar[InputKind]  # what the input columns hold
    metrics: ClassVar[tuple[str, ...]]  # the default first
    problem_type: ClassVar[str]
    auto_class: ClassVar[AutoClass]  # gives a backbone this task's head

    inputs: tuple[str, ...]
    label: str
    metric: str
    classes: tuple[Label, ...] | None = None

    def __post_init__(self) -> None:
        if self.metric not in self.metrics:
            limit = f"a {self.type} task has {', '.join(self.metrics)}"
            raise InvalidArgumentError("metric", value=self.metric, limit=limit)

    @classmethod
    @abstractmethod
    def from_data(
        cls, dataset: Dataset, *, inputs: tuple[str, ...], label: str, metric: str | None
    ) -> Self:
        """Make the task of its columns and the training split.

        Args:
            dataset: the training split.
            inputs: the input columns.
            label: the column of classes or numbers.
            metric: None is the first of :attr:`metrics`.

        Raises:
            DataError: labels that cannot be used.
            InvalidArgumentError: a metric that the task does not have.
        """

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that the task reads."""
        return (*self.inputs, self.label)

    @property
    def num_labels(self) -> int:
        """The number of logits of a sample."""
        return 1 if self.classes is None else len(self.classes)

    @abstractmethod
    def load_encoder(
        self, source: ModelSource, config: PreTrainedConfig, *, max_length: int
    ) -> Encoder:
        """Load the model's tokenizer or image processor, and tell the configuration about it.

        Raises:
            ModelError: there is none, or it does not suit the model.
        """

    @abstractmethod
    def targets(self, dataset: Dataset, *, split: str) -> Tensor:
        """Read what should be predicted: int64 class indices or float32 values, ``[n]``.

        Raises:
            DataError: a row that has none, or one that the training split did not have.
        """

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Give the mean loss of a batch, in float32."""

    @abstractmethod
    def evaluate(self, logits: Tensor, targets: Tensor) -> dict[str, float]:
        """Give every metric of the task.

        Args:
            logits: float32 ``[n, num_labels]``, on the CPU.
            targets: ``[n]``, as in :class:`Batch`.
        """

    def settings(self) -> dict[str, Any]:
        """List the configuration entries that give a transformers model this task's head."""
        settings: dict[str, Any] = {"problem_type": self.problem_type}
        if self.classes is None:
            return {**settings, "num_labels": 1}
        names = [str(name) for name in self.classes]
        return {
            **settings,
            "id2label": dict(enumerate(names)),  # num_labels is its length
            "label2id": {name: index for index, name in enumerate(names)},
        }

    def describe(self) -> dict[str, Any]:
        """Describe the task for a head delta: plain JSON, without the classes."""
        return {
            "type": self.type,
            "label": self.label,
            "metric": self.metric,
            "num_labels": self.num_labels,
            "problem_type": self.problem_type,
        }


class Digest:
    """SHA-256 over a sequence of byte strings, each with its length."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, data: bytes | NDArray[Any]) -> None:
        """Add one byte string or array."""
        content = data if isinstance(data, bytes) else np.ascontiguousarray(data).tobytes()
        self._hash.update(len(content).to_bytes(8, "little"))
        self._hash.update(content)

    def __str__(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"
