"""Many head deltas on one resident backbone, and batches that mix their tasks."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hifi.backbone import describe
from hifi.errors import InvalidArgumentError
from hifi.mixed_rows import Block, MixedRows, TaskRows
from hifi.task_logits import TaskLogits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hifi.delta import HeadDelta


@dataclass(frozen=True, eq=False)
class _Task:
    """A head delta in the bank.

    Attributes:
        rows: its rows.
        head: what makes logits of a hidden state; None without a task head.
        weights: of the task head.
    """

    rows: TaskRows
    head: TaskLogits | None
    weights: Mapping[str, Tensor]

    @property
    def bytes(self) -> int:
        return self.rows.bytes + sum(tensor.nbytes for tensor in self.weights.values())


_BARE, _FEW, _MANY = range(3)
_ENOUGH = 4  # samples of one task for a product of their own; chosen, not measured


@dataclass(frozen=True)
class _Group:
    """The samples of one task in a batch.

    Attributes:
        task: None for the bare backbone.
        places: of the samples in the batch.
    """

    task: _Task | None
    places: tuple[int, ...]

    @property
    def kind(self) -> tuple[int, tuple[tuple[int, int], ...]]:
        """Give what groups of one product have in common."""
        if self.task is None:
            return _BARE, ()
        return _MANY if len(self.places) >= _ENOUGH else _FEW, self.task.rows.shape

    def answer(self, hidden: Tensor, batch: Mapping[str, Tensor]) -> Iterable[Tensor]:
        """Give logits, or the last hidden state where there is no task head."""
        if self.task is None or self.task.head is None:
            return hidden
        return self.task.head.apply(self.task.weights, hidden=hidden, batch=batch)


class HeadBank:
    """Holds any number of head deltas for one backbone; a batch may mix their tasks.

    One pass over the backbone answers all samples: the projections of all of them are one product,
    and then each task's selected heads are replaced for its own samples. An answer is that of the
    model with that delta merged, whatever else is in the batch, up to rounding.

    Methods may be called from several threads; one batch is computed at a time.

    Args:
        model: the bare backbone (``AutoModel``), in eval mode; it stays as it is and can be used
            beside the bank.

    Raises:
        InvalidArgumentError: a model with a task head, or in training mode.
        TunerError: a tuner, an adapter or a quantiser holds the model's projections.
        UnsupportedArchitectureError: the model's heads are not known.

    Example:
        >>> bank = HeadBank(AutoModel.from_pretrained(path).eval())
        >>> bank.add("mrpc", HeadDelta.load("mrpc.safetensors"))
        >>> logits, hidden = bank.forward(batch, ["mrpc", None])
    """

    def __init__(self, model: PreTrainedModel) -> None:
        describe(model)
        if model.base_model is not model:
            limit = "the bare backbone, as AutoModel loads it"
            raise InvalidArgumentError("model", value=type(model).__name__, limit=limit)
        if model.training:
            raise InvalidArgumentError("model", value="training mode", limit="model.eval()")
        self._model = model
        self._mixed = MixedRows(model)
        self._tasks: dict[str, _Task] = {}
        self._heads: dict[str, TaskLogits] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    def add(self, name: str, delta: HeadDelta) -> None:
        """Take a head delta in, or another one in the place of that name's.

        Args:
            name: by which samples ask for it.
            delta: of this backbone; one without a task head gives last hidden states.

        Raises:
            BackboneMismatchError: it is of another backbone, as ``HeadDelta.with_base`` sees it.
            TaskNotSupportedError: it has a task head and does not say for which task.
            TaskHeadMismatchError: the task head is not that of its task.
            DeltaFileError: it records what no tokenizer or model could take.
        """
        rows = TaskRows.of(delta.with_base(self._model).rows, model=self._model)
        if delta.task_head:
            head = self._head_for(delta)
            task = _Task(rows, head, head.weights_of(delta))
        else:
            task = _Task(rows, None, {})
        with self._lock:
            self._tasks[name] = task

    def remove(self, name: str) -> None:
        """Let go of a head delta; a batch that is under way still has it.

        Raises:
            InvalidArgumentError: there is none of that name.
        """
        with self._lock:
            self._check_names([name])
            del self._tasks[name]

    def bytes_of(self, name: str) -> int:
        """Count the bytes that a head delta takes here.

        Raises:
            InvalidArgumentError: there is none of that name.
        """
        with self._lock:
            self._check_names([name])
            return self._tasks[name].bytes

    def close(self) -> None:
        """Leave the model as it was."""
        with self._lock:
            self._mixed.close()
            self._tasks.clear()

    @torch.inference_mode()
    def forward(self, batch: Mapping[str, Tensor], names: Sequence[str | None]) -> list[Tensor]:
        """Answer a batch whose samples may be of different tasks.

        Args:
            batch: what the backbone's ``forward`` takes, ``[B, …]``, padded.
            names: of each sample the head delta's name; None for the bare backbone.

        Returns:
            One tensor per sample, in the order of the batch: its task's logits ``[labels]``; the
            last hidden state ``[S, D]`` where the name is None or the delta has no task head.

        Raises:
            InvalidArgumentError: a name that is not in the bank, or not one for each sample.
        """
        sizes = {len(tensor) for tensor in batch.values()}
        if sizes != {len(names)} or not names:
            limit = f"one for each of the batch's {max(sizes, default=0)} samples"
            raise InvalidArgumentError("names", value=f"{len(names)} names", limit=limit)
        with self._lock:
            self._check_names(name for name in names if name is not None)
            return self._forward(batch, names)

    def _forward(self, batch: Mapping[str, Tensor], names: Sequence[str | None]) -> list[Tensor]:
        groups = self._arrange(names)
        order = [place for group in groups for place in group.places]
        index = torch.tensor(order, device=self._model.device)
        arranged = {key: tensor[index] for key, tensor in batch.items()}
        with self._mixed.mixing(_blocks(groups)):
            hidden: Tensor = self._model(**arranged).last_hidden_state
        answers: dict[int, Tensor] = {}
        start = 0
        for group in groups:
            samples = slice(start, start + len(group.places))
            start = samples.stop
            part = {key: tensor[samples] for key, tensor in arranged.items()}
            given = hidden[samples]
            answers.update(zip(group.places, group.answer(given, part), strict=True))
        return [answers[place] for place in range(len(names))]

    def _arrange(self, names: Sequence[str | None]) -> list[_Group]:
        """Group samples by task, and stand tasks beside each other that are one product."""
        places: dict[str | None, list[int]] = {}
        for place, name in enumerate(names):
            places.setdefault(name, []).append(place)
        groups = [
            _Group(None if name is None else self._tasks[name], tuple(mine))
            for name, mine in places.items()
        ]
        return sorted(groups, key=lambda group: group.kind)

    def _check_names(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self._tasks:
                raise InvalidArgumentError("names", value=name, limit="a delta in the bank")

    def _head_for(self, delta: HeadDelta) -> TaskLogits:
        """Find what makes logits for tasks like this one, or build it."""
        task = delta.metadata.task or {}
        shapes = sorted((name, tuple(t.shape)) for name, t in delta.task_head.items())
        key = repr(
            (task.get("type"), task.get("pad_token_id"), len(delta.metadata.labels or ()), shapes)
        )
        if key not in self._heads:
            self._heads[key] = TaskLogits(self._model, delta)
        return self._heads[key]


def _blocks(groups: Sequence[_Group]) -> list[Block]:
    """Say what is multiplied together: the many samples of a task, or the few of many tasks."""
    blocks: list[Block] = []
    start = 0
    for (size, _), alike in groupby(groups, key=lambda group: group.kind):
        members = list(alike)
        for tasks in [members] if size == _FEW else [[group] for group in members]:
            rows = [group.task.rows for group in tasks if group.task for _ in group.places]
            stop = start + sum(len(group.places) for group in tasks)
            if rows:
                blocks.append(Block(slice(start, stop), rows if size == _FEW else rows[:1]))
            start = stop
    return blocks
