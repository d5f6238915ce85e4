"""Prepare predictions for a head delta: encode inputs as in training, and collate batches."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hifi.backbones.models import max_positions, reads
from hifi.deltas.loading import configure_for
from hifi.errors import InvalidArgumentError, TaskNotSupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from hifi.backbones.models import ModelSource
    from hifi.data.task_types import Layout
    from hifi.deltas.delta import HeadDelta
    from hifi.tasks import Encoder, Sample, Task


@dataclass(frozen=True)
class TaskRecord:
    """The settings for predictions that a head delta records.

    Attributes:
        task: with its input columns and classes; converts logits to answers.
        max_length: the most tokens of a text; None if not recorded, then the model's limit applies.
        pad_token_id: None if not recorded.
    """

    task: Task
    max_length: int | None
    pad_token_id: int | None

    @classmethod
    def of(cls, delta: HeadDelta, config: PreTrainedConfig) -> TaskRecord:
        """Read and check the record of a delta.

        Args:
            delta: with a task head.
            config: of its backbone.

        Raises:
            TaskNotSupportedError: the delta does not record its task, columns or classes, has no
                task head, or its task does not fit the backbone.
            DeltaFileError: the delta records an impossible pad token, padding side or length.
        """
        task = configure_for(copy.deepcopy(config), delta)
        declared = task.declaration
        if not delta.task_head:
            raise TaskNotSupportedError("the head delta has no task head, so it cannot predict")
        if not reads(config, auto_class=task.auto_class):
            raise TaskNotSupportedError(
                f"the head delta's {declared.name} task needs a model that reads "
                f"{declared.input_kind}s"
            )
        if bool(task.classes) != declared.has_classes:
            raise TaskNotSupportedError(
                f"the head delta does not record the classes of a {declared.name} task"
            )
        record = dict(delta.metadata.task or {})
        inputs = next(filter(None, (_inputs(record, each) for each in declared.layouts)), None)
        if inputs is None:
            raise TaskNotSupportedError(
                f"the head delta does not record the columns that its {declared.name} task reads"
            )
        return cls(
            task=replace(task, inputs=inputs),
            max_length=record.get("max_length"),
            pad_token_id=record.get("pad_token_id"),
        )

    @property
    def encoding(self) -> tuple[object, ...]:
        """The settings of an encoder; records with equal ones can share an encoder."""
        kind, count = type(self.task), len(self.task.inputs)
        return (
            *(kind.load_encoder, kind.declaration.requests, count),
            *(self.max_length, self.pad_token_id),
            *self.task.encoding,
        )

    def load_encoder(self, source: ModelSource, model: PreTrainedModel) -> Encoder:
        """Load the tokenizer or image processor of the backbone, set up as in training.

        Args:
            source: the backbone.
            model: the backbone; not changed.

        Raises:
            ModelError: it is missing, or does not fit the model.
            InvalidArgumentError: the recorded length leaves a text without a token, or exceeds the
                model's limit.
        """
        config = copy.deepcopy(model.config)
        if self.pad_token_id is not None:
            config.pad_token_id = self.pad_token_id
        return self.task.load_encoder(source, config, max_length=self._length_for(model))

    def _length_for(self, model: PreTrainedModel) -> int:
        """Return the maximum number of tokens of an input."""
        limit = max_positions(model)
        if self.max_length is None:
            return sys.maxsize if limit is None else limit
        if limit is not None and self.max_length > limit:
            # On a GPU, a token without a position embedding makes the whole process unusable.
            raise InvalidArgumentError("max_length", value=self.max_length, limit=f"1 to {limit}")
        return self.max_length


def _inputs(record: Mapping[str, Any], layout: Layout) -> tuple[str, ...] | None:
    """Return the input columns of a layout that a delta's task records; None if they are not."""
    found: list[str] = []
    for columns in layout.inputs:
        names = record.get(columns.field)
        if columns.most == 1 and not isinstance(names, list):
            names = [names]  # a single column is recorded without a list
        if names is None and not columns.least:
            continue
        if not isinstance(names, list) or not columns.least <= len(names) <= columns.most:
            return None
        found += map(str, names)
    return tuple(found)


def collate(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Put samples into one batch, padded on the right to the longest of them.

    Args:
        samples: of one backbone.

    Returns:
        The arguments of the backbone's ``forward``, ``[B, …]``.

    Raises:
        InvalidArgumentError: some samples have an input that others lack.
    """
    names = list(samples[0].inputs)
    for sample in samples:
        if sample.inputs.keys() != samples[0].inputs.keys():
            limit = f"{names} of every sample"
            raise InvalidArgumentError("samples", value=list(sample.inputs), limit=limit)
    longest = max(sample.length for sample in samples)
    return {
        name: torch.stack([_padded(sample, name, length=longest) for sample in samples])
        for name in names
    }


def _padded(sample: Sample, name: str, *, length: int) -> Tensor:
    tensor = sample.inputs[name]
    if name not in sample.pads or len(tensor) == length:
        return tensor
    fill = tensor.new_full((length - len(tensor),), sample.pads[name])
    return torch.cat((tensor, fill))
