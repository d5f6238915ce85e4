"""Many head deltas on one resident backbone, and batches that mix their tasks."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from hifi.backbones.heads import describe
from hifi.deltas.row_names import shapes_of
from hifi.errors import BankClosedError, InvalidArgumentError
from hifi.serving.mixed_batch import (
    TASK_HEAD,
    BankedTask,
    Group,
    answer_alike,
    arrange,
    blocks_of,
    by_head,
    enough_on,
)
from hifi.serving.mixed_rows import MixedRows, RowPlaces
from hifi.serving.slots import Layout, Slots
from hifi.serving.task_logits import TaskLogits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hifi.deltas.delta import HeadDelta


@dataclass(frozen=True, eq=False)
class PackedDelta:
    """A head delta as a bank holds it, on the host: one copy brings it to the device.

    Attributes:
        flat: rows and task head, ``[layout.size]``, in the model's dtype; in pinned memory where
            the model is on a GPU.
        layout: where each lies; equal for deltas that fit the same slot. Which heads they are of
            does not count, only how many of each layer.
        places: where the rows go in the model.
        head: what makes logits of a hidden state; None without a task head.
        owner: stands for the bank that packed it.
    """

    flat: Tensor
    layout: Layout
    places: RowPlaces
    head: TaskLogits | None
    owner: object

    @property
    def nbytes(self) -> int:
        """Count the bytes of the flat tensor, which are those of its slot."""
        return self.layout.nbytes


class HeadBank:
    """Holds any number of head deltas for one backbone; a batch may mix their tasks.

    One pass over the backbone answers all samples: the projections of all of them are one product,
    and then each task's selected heads are replaced for its own samples. An answer is that of the
    model with that delta merged, whatever else is in the batch, up to rounding.

    Deltas lie in slots on the model's device. A slot that is free again takes the next delta of its
    layout without an allocation: for tasks with as many heads per layer and as many labels, that is
    every slot.

    Methods may be called from any thread; on a GPU, all of them on one stream, as it is where
    nobody asks for another. One batch is computed at a time. What comes and goes meanwhile waits
    for none: a batch that has its turn keeps the slots of its tasks until it is done.

    Args:
        model: the bare backbone (``AutoModel``), in eval mode; it stays as it is and can be used
            beside the bank, but not while another thread's batch is computed: that one's rows would
            be mixed in.

    Raises:
        InvalidArgumentError: a model with a task head, or in training mode.
        TunerError: a tuner, an adapter or a quantiser holds the model's projections.
        UnsupportedArchitectureError: the model's heads are not known.

    Example:
        >>> bank = HeadBank(AutoModel.from_pretrained(path).eval())
        >>> bank.add("mrpc", HeadDelta.load("mrpc.safetensors"))
        >>> answers = bank.forward(batch, ["mrpc", None])  # logits; a hidden state
    """

    def __init__(self, model: PreTrainedModel) -> None:
        describe(model)
        if model.base_model is not model:
            limit = "the bare backbone, as AutoModel loads it"
            raise InvalidArgumentError("model", value=type(model).__name__, limit=limit)
        _check_mode(model)
        self._model = model
        self._mixed = MixedRows(model)
        self._slots = Slots(model.device)
        self._owner = object()
        self._tasks: dict[str, BankedTask] = {}
        self._is_closed = False
        self._heads: WeakValueDictionary[str, TaskLogits] = WeakValueDictionary()
        self._lock = threading.Lock()  # what is in the bank
        self._building = threading.Lock()  # of task heads
        self._turn = threading.Lock()  # of batches
        self._side = _side_stream(model.device)

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    @property
    def nbytes(self) -> int:
        """Add up the bytes of all slots, free ones included."""
        return self._slots.nbytes

    def has_free_slot(self, layout: Layout) -> bool:
        """Say whether a delta of this layout would be put in without an allocation."""
        return self._slots.has_free(layout)

    def release_free_slots(self) -> None:
        """Give back the memory of slots in which no delta is."""
        self._slots.release_free()

    def pack(self, delta: HeadDelta) -> PackedDelta:
        """Check a head delta and lay it out on the host, for :meth:`put`.

        Args:
            delta: of this backbone; one without a task head gives last hidden states.

        Raises:
            BackboneMismatchError: it is of another backbone, as ``HeadDelta.merge`` sees it.
            TaskNotSupportedError: it has a task head and does not say for which task.
            TaskHeadMismatchError: the task head is not that of its task.
            DeltaFileError: it records what no tokenizer or model could take.
        """
        with self._aside():
            rows = delta.rows_on(self._model)
        places = RowPlaces.of(rows, model=self._model)
        head = self._head_for(delta) if delta.task_head else None
        if head is not None:
            head.check(delta.task_head)
        weights = {TASK_HEAD + name: tensor for name, tensor in sorted(delta.task_head.items())}
        layout = Layout.of({**places.parts, **shapes_of(weights)}, dtype=self._model.dtype)
        flat = torch.zeros(
            layout.size, dtype=layout.dtype, pin_memory=self._model.device.type == "cuda"
        )
        parts = layout.split(flat)
        places.write(rows, parts)
        for name, tensor in weights.items():
            parts[name].copy_(tensor)
        return PackedDelta(flat, layout, places, head, self._owner)

    def put(self, name: str, packed: PackedDelta) -> None:
        """Take a packed head delta in, or another one in the place of that name's.

        It is copied into a free slot of its layout, or into a new one where none is free. A name
        has its former delta until the copy is made; so that one's slot is not the one taken.

        Args:
            name: by which samples ask for it.
            packed: by this bank; it stays as it is.

        Raises:
            InvalidArgumentError: another bank has packed it.
            BankClosedError: the bank is closed.
            torch.OutOfMemoryError: a GPU has no memory for a new slot; nothing has changed.
        """
        if packed.owner is not self._owner:
            limit = "a delta that this bank has packed"
            raise InvalidArgumentError("packed", value="another bank's", limit=limit)
        slot = self._slots.fill(packed.flat, layout=packed.layout)
        try:
            former = self._exchange(
                name, BankedTask.of(slot, places=packed.places, head=packed.head)
            )
        except BankClosedError:
            self._slots.let_go(slot)
            self.release_free_slots()
            raise
        if former is not None:
            self._slots.let_go(former.slot)

    def add(self, name: str, delta: HeadDelta) -> None:
        """Pack a head delta and put it in.

        Args:
            name: by which samples ask for it.
            delta: of this backbone; one without a task head gives last hidden states.

        Raises:
            BackboneMismatchError, TaskNotSupportedError, TaskHeadMismatchError, DeltaFileError: as
                :meth:`pack` does.
            BankClosedError, torch.OutOfMemoryError: as :meth:`put` does.
        """
        self.put(name, self.pack(delta))

    def remove(self, name: str) -> None:
        """Let go of a head delta; its slot is free for the next one of its layout.

        A batch that is under way still has it, and the slot is free after that.

        Raises:
            InvalidArgumentError: there is none of that name.
        """
        with self._lock:
            self._check_names([name])
            task = self._tasks.pop(name)
        self._slots.let_go(task.slot)

    def bytes_of(self, name: str) -> int:
        """Count the bytes that a head delta takes here.

        Raises:
            InvalidArgumentError: there is none of that name.
        """
        with self._lock:
            self._check_names([name])
            return self._tasks[name].slot.layout.nbytes

    def close(self) -> None:
        """Leave the model as it was, after the batch that is under way; the others are refused."""
        with self._turn, self._lock:
            self._is_closed = True
            self._mixed.close()
            tasks, self._tasks = self._tasks, {}
        for task in tasks.values():
            self._slots.let_go(task.slot)
        self.release_free_slots()

    @torch.inference_mode()
    def forward(self, batch: Mapping[str, Tensor], names: Sequence[str | None]) -> list[Tensor]:
        """Answer a batch whose samples may be of different tasks.

        Args:
            batch: what the backbone's ``forward`` takes, ``[B, …]``, padded.
            names: of each sample the head delta's name, as it is when the batch has its turn; None
                for the bare backbone.

        Returns:
            One tensor per sample, in the order of the batch: its task's logits ``[labels]``, or
            ``[S, labels]`` where every token has some, padding included; the last hidden state
            ``[S, D]`` where the name is None or the delta has no task head.

        Raises:
            InvalidArgumentError: a name that is not in the bank, or not one for each sample; the
                model is in training mode by now.
            BankClosedError: the bank is closed.
        """
        _check_mode(self._model)
        sizes = {len(tensor) for tensor in batch.values()}
        if sizes != {len(names)} or not names:
            limit = f"one for each of the batch's {max(sizes, default=0)} samples"
            raise InvalidArgumentError("names", value=f"{len(names)} names", limit=limit)
        with self._turn, self._held(names) as tasks:
            return self._forward(batch, tasks)

    @contextmanager
    def _held(self, names: Sequence[str | None]) -> Iterator[list[BankedTask | None]]:
        """Give each sample's task, and keep their slots from others for a block of code."""
        with self._lock:
            self._check_open()
            self._check_names(name for name in names if name is not None)
            tasks = [None if name is None else self._tasks[name] for name in names]
            slots = {task.slot for task in tasks if task is not None}
            for slot in slots:
                self._slots.hold(slot)
        try:
            yield tasks
        finally:
            for slot in slots:
                self._slots.let_go(slot)

    def _forward(
        self, batch: Mapping[str, Tensor], tasks: Sequence[BankedTask | None]
    ) -> list[Tensor]:
        groups = arrange(tasks, enough=enough_on(self._model.device))
        order = [place for group in groups for place in group.places]
        index = torch.tensor(order, device=self._model.device)
        arranged = {key: tensor[index] for key, tensor in batch.items()}
        with self._mixed.mixing(blocks_of(groups)), self._cutting(groups):
            hidden: Tensor = self._model(**arranged).last_hidden_state
        answers: dict[int, Tensor] = {}
        for alike in by_head(groups):
            for group, answer in zip(alike, answer_alike(alike, hidden, arranged), strict=True):
                answers.update(zip(group.places, answer, strict=True))
        return [answers[place] for place in range(len(tasks))]

    @contextmanager
    def _cutting(self, groups: Sequence[Group]) -> Iterator[None]:
        """Let the last layer go on with the first token alone if nobody reads another."""
        modules = {group.first_token_from for group in groups}  # one, or None, or both
        name = modules.pop() if len(modules) == 1 else None
        if name is None:
            yield
            return
        hook = self._model.get_submodule(name).register_forward_pre_hook(_cut)
        try:
            yield
        finally:
            hook.remove()

    def _aside(self) -> AbstractContextManager[object]:
        """Read the backbone's rows beside a batch that a GPU still computes, and not after it."""
        return nullcontext() if self._side is None else torch.cuda.stream(self._side)

    def _exchange(self, name: str, task: BankedTask) -> BankedTask | None:
        """Give a name to a task, and return the one that had it."""
        with self._lock:
            self._check_open()
            former = self._tasks.get(name)
            self._tasks[name] = task
            return former

    def _check_open(self) -> None:
        if self._is_closed:
            raise BankClosedError("the bank is closed: it answers no more")

    def _check_names(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self._tasks:
                limit = "the name of a head delta in the bank"
                raise InvalidArgumentError("names", value=name, limit=limit)

    def _head_for(self, delta: HeadDelta) -> TaskLogits:
        """Find what makes logits for tasks like this one, or build it."""
        task = delta.metadata.task or {}
        shapes = sorted((name, tuple(t.shape)) for name, t in delta.task_head.items())
        key = repr(
            (task.get("type"), task.get("pad_token_id"), len(delta.metadata.labels or ()), shapes)
        )
        with self._building:
            head = self._heads.get(key)
            if head is None:
                head = self._heads[key] = TaskLogits(self._model, delta)
            return head


def _check_mode(model: PreTrainedModel) -> None:
    if model.training:
        raise InvalidArgumentError("model", value="training mode", limit="model.eval()")


def _side_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Make a stream that sees what has been asked of a GPU until now, and goes its own way then."""
    if device.type != "cuda":
        return None
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream


def _cut(_module: object, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Cut ``[B, S, D]`` arguments to ``[B, 1, D]`` (a forward pre-hook)."""
    return tuple(argument[:, :1].contiguous() for argument in arguments)
