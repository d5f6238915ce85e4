"""What every task type offers: columns, encoding, loss, metrics, answers, description."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

import numpy as np

from hifi.backbones.models import reads
from hifi.errors import AnswerError, InputError, InvalidArgumentError, ModelError

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedConfig
    from transformers.image_processing_utils import BaseImageProcessor
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from hifi.backbones.models import AutoClass, ModelSource
    from hifi.data.labels import Label
    from hifi.data.task_types import TaskType

Answer: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """Samples in one padded batch.

    Attributes:
        inputs: what ``model.forward`` takes, and possibly more (``token_type_ids``).
        targets: what the task's loss compares with logits, ``[B, …]``: class indices, values. Where
            every token has one, they are padded to the longest sample of the split.
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

    @abstractmethod
    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """Collate some samples, padded on the right to the longest of them."""

    @abstractmethod
    def digest(self) -> str:
        """Hash what the model will see and what it should answer: ``sha256:…``."""


@dataclass(frozen=True, eq=False)
class Sample:
    """An encoded input of a prediction.

    Attributes:
        inputs: what ``model.forward`` takes of it: tokens ``[S]``, or pixels ``[C, h, w]``.
        pads: what fills a batch of longer ones, by name; pixels have none.
        length: tokens that the model sees.
    """

    inputs: Mapping[str, Tensor]
    pads: Mapping[str, int]
    length: int


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
            targets: as :meth:`Task.targets` reads them; they travel along.

        Raises:
            DataError: a row that cannot be used.
        """

    @abstractmethod
    def read(
        self, inputs: Sequence[Mapping[str, str]], *, truncate: bool
    ) -> list[Sample | InputError]:
        """Encode inputs of predictions as the training split was encoded, in any thread.

        Args:
            inputs: with the fields of the task type's request.
            truncate: False refuses a text that training would have cut.

        Returns:
            For each a sample, or what is wrong with it; one does not disturb the others.
        """


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """One task: its type, its columns, and what the training split fixed about it.

    Attributes:
        inputs: the input columns.
        label: the column of what is learnt.
        metric: one of the declared ones; by it the best step is chosen, higher is better.
        classes: in the order of the logits; None where the training split names none.
    """

    declaration: ClassVar[TaskType]
    auto_class: ClassVar[AutoClass]  # gives a backbone this task's head

    inputs: tuple[str, ...]
    label: str
    metric: str
    classes: tuple[Label, ...] | None = None

    def __post_init__(self) -> None:
        known = self.declaration.metrics
        if self.metric not in known:
            limit = f"a {self.type} task has {', '.join(known)}"
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
            label: the column of what is learnt.
            metric: None is the first of those declared.

        Raises:
            DataError: labels that cannot be used.
            InvalidArgumentError: a metric that the task does not have.
        """

    @property
    def type(self) -> str:
        """The task type's name."""
        return self.declaration.name

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that the task reads."""
        return (*self.inputs, self.label)

    @property
    def num_labels(self) -> int:
        """The number of logits of a sample, or of a token."""
        return len(self.classes) if self.classes else self.declaration.num_labels or 1

    @classmethod
    def check_reads(cls, source: ModelSource, config: PreTrainedConfig) -> None:
        """Refuse a model that reads something else than this task has.

        Raises:
            ModelError: transformers has no class that gives this model the task's head.
        """
        if not reads(config, auto_class=cls.auto_class):
            raise ModelError(
                f"{source.name} has the architecture {config.model_type!r}, which does not read "
                f"{cls.declaration.input_kind}s; this task needs a model that does"
            )

    @classmethod
    @abstractmethod
    def set_padding(cls, source: ModelSource, config: PreTrainedConfig) -> None:
        """Set in a configuration what a batch is padded with where no head delta says it.

        Raises:
            ModelError: the model has no tokenizer that can be loaded.
        """

    @classmethod
    @abstractmethod
    def load_processor(
        cls, source: ModelSource, config: PreTrainedConfig, *, record: Mapping[str, Any]
    ) -> PreTrainedTokenizerBase | BaseImageProcessor:
        """Load the tokenizer or image processor that goes with a merged model.

        Args:
            source: the model.
            config: of the merged model; agrees with a tokenizer on the pad token afterwards.
            record: what the head delta says of its task.

        Raises:
            ModelError: there is none that can be loaded.
        """

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
        """Read what should be predicted, ``[n, …]``, as in :class:`Batch`.

        Raises:
            DataError: a row that has none, or one that the training split did not have.
        """

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch, in float32.

        Args:
            logits: ``[B, num_labels]``, or ``[B, S, num_labels]`` where every token has some.
            targets: as in :class:`Batch`.
        """

    @abstractmethod
    def evaluate(self, logits: Tensor, targets: Tensor) -> dict[str, float]:
        """Return every metric of the task.

        Args:
            logits: float32, as in :meth:`loss`, of all samples, on the CPU.
            targets: likewise.
        """

    @staticmethod
    def logits_of(output: Any) -> Tensor:  # noqa: ANN401 - each model has an output class
        """Return the logits in what the task's model returned."""
        logits: Tensor = output.logits
        return logits

    def read_answer(self, logits: Tensor, sample: Sample) -> Answer:
        """Read one sample's logits.

        Args:
            logits: ``[num_labels]``; or ``[S, num_labels]``, padded as the sample's batch was.
            sample: the input.

        Returns:
            The fields of the declared answer.

        Raises:
            AnswerError: the logits are no numbers.
        """
        is_by_token = self.declaration.logits == "token"
        exact = (logits[: sample.length] if is_by_token else logits).double()
        if not exact.isfinite().all():
            raise AnswerError("the model's answer to this input is not a number")
        return self.answer(exact, sample)

    @abstractmethod
    def answer(self, logits: Tensor, sample: Sample) -> Answer:
        """Make the declared answer of a sample's logits.

        Args:
            logits: float64, finite, ``[num_labels]``; or ``[sample.length, num_labels]``.
            sample: the input.
        """

    def settings(self) -> dict[str, Any]:
        """List the configuration entries that give a transformers model this task's head."""
        settings: dict[str, Any] = {"problem_type": self.declaration.problem_type}
        if not self.classes:
            return {**settings, "num_labels": self.num_labels}
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
            "problem_type": self.declaration.problem_type,
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
