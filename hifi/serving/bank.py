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
from hifi.backbones.passes import LayerPasses
from hifi.deltas.placement import check_range
from hifi.deltas.row_names import shapes_of
from hifi.errors import BankClosedError, InvalidArgumentError
from hifi.serving.fan_out import Stage, plan_fan_out
from hifi.serving.mixed_batch import (
    Group,
    answer_alike,
    arrange,
    blocks_of,
    by_head,
    check_tokens,
    enough_on,
)
from hifi.serving.mixed_rows import TASK_HEAD, BankedTask, MixedRows, RowPlaces
from hifi.serving.slots import Layout, Slots
from hifi.serving.task_logits import TaskLogits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hifi.deltas.delta import HeadDelta


@dataclass(frozen=True, eq=False)
class PackedDelta:
    """A head delta in host memory, laid out so that one copy moves it to the device.

    Attributes:
        flat: rows and task head, ``[layout.size]``, in the model's dtype; in pinned memory if the
            model is on a GPU.
        layout: the position of each tensor; equal for deltas that fit the same slot. It depends on
            the number of heads in each layer, not on which heads they are.
        places: where the rows go in the model.
        head: computes logits from a hidden state; None without a task head.
        owner: identifies the bank that packed it.
    """

    flat: Tensor
    layout: Layout
    places: RowPlaces
    head: TaskLogits | None
    owner: object

    @property
    def nbytes(self) -> int:
        """The bytes of the flat tensor, and so of its slot."""
        return self.layout.nbytes


class HeadBank:
    """Holds any number of head deltas for one backbone; a batch may mix their tasks.

    One pass over the backbone answers all samples: one product computes the projections of all
    samples, then each task's selected heads are replaced for its own samples. Up to rounding, an
    answer equals that of the merged model, and does not depend on the rest of the batch.

    Deltas lie in slots on the model's device. A freed slot takes the next delta of its layout
    without an allocation. Tasks with the same number of heads per layer and the same number of
    labels have the same layout.

    Methods may be called from any thread; on a GPU, all calls must use the same stream, as they do
    by default. One batch is computed at a time. Adding and removing deltas does not wait for it:
    a running batch holds the slots of its tasks until it is done.

    Args:
        model: the bare backbone (``AutoModel``), in eval mode. It is not changed and can be used
            outside the bank, but not while another thread computes a batch: the batch's rows would
            be mixed in.

    Raises:
        InvalidArgumentError: a model with a task head, or in training mode.
        TunerError: a tuner, an adapter or a quantiser wraps the model's projections.
        UnsupportedArchitectureError: the model's architecture is not supported.

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
        self._passes = LayerPasses(model)
        self._slots = Slots(model.device)
        self._owner = object()
        self._tasks: dict[str, BankedTask] = {}
        self._is_closed = False
        self._heads: WeakValueDictionary[str, TaskLogits] = WeakValueDictionary()
        self._lock = threading.Lock()  # for the deltas in the bank
        self._building = threading.Lock()  # for building task heads
        self._turn = threading.Lock()  # for computing batches
        self._side = _side_stream(model.device)

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    @property
    def nbytes(self) -> int:
        """The bytes of all slots, including free ones."""
        return self._slots.nbytes

    def has_free_slot(self, layout: Layout) -> bool:
        """Return whether a delta of this layout can be added without an allocation."""
        return self._slots.has_free(layout)

    def release_free_slots(self) -> None:
        """Release the memory of free slots."""
        self._slots.release_free()

    def pack(self, delta: HeadDelta) -> PackedDelta:
        """Check a head delta and lay it out in host memory, for :meth:`put`.

        Args:
            delta: of this backbone; without a task head its answers are last hidden states.

        Raises:
            BackboneMismatchError: the delta is of another backbone, as in ``HeadDelta.merge``.
            TaskNotSupportedError: the delta has a task head but does not record its task.
            TaskHeadMismatchError: the task head does not fit the task.
            DeltaFileError: the delta records values that no tokenizer or model accepts.
        """
        # On a GPU, do not wait for a running batch. torch.cuda.stream(None) would initialise CUDA.
        with nullcontext() if self._side is None else torch.cuda.stream(self._side):
            rows = delta.rows_on(self._model)
        check_range({**rows, **delta.task_head}, dtype=self._model.dtype)
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
        """Add a packed head delta, or replace the delta of that name.

        The delta is copied into a free slot of its layout, or into a new slot if none is free. The
        name keeps its previous delta until the copy is complete, so the copy needs another slot.

        Args:
            name: the name that samples use.
            packed: packed by this bank; not changed.

        Raises:
            InvalidArgumentError: another bank packed it.
            BankClosedError: the bank is closed.
            torch.OutOfMemoryError: the GPU has no memory for a new slot; nothing has changed.
        """
        if packed.owner is not self._owner:
            limit = "a delta that this bank packed"
            raise InvalidArgumentError("packed", value="another bank's", limit=limit)
        slot = self._slots.fill(packed.flat, layout=packed.layout)
        task = BankedTask(slot, packed.places, packed.head)
        try:
            with self._lock:
                self._check_open()
                former = self._tasks.get(name)
                self._tasks[name] = task
        except BankClosedError:
            self._slots.let_go(slot)
            self.release_free_slots()
            raise
        if former is not None:
            self._slots.let_go(former.slot)

    def add(self, name: str, delta: HeadDelta) -> None:
        """Pack a head delta and add it.

        Args:
            name: the name that samples use.
            delta: of this backbone; without a task head its answers are last hidden states.

        Raises:
            BackboneMismatchError, TaskNotSupportedError, TaskHeadMismatchError, DeltaFileError: as
                in :meth:`pack`.
            BankClosedError, torch.OutOfMemoryError: as in :meth:`put`.
        """
        self.put(name, self.pack(delta))

    def remove(self, name: str) -> None:
        """Remove a head delta and free its slot for the next delta of its layout.

        A running batch keeps the delta; its slot is freed after the batch.

        Raises:
            InvalidArgumentError: no delta has that name.
        """
        with self._lock:
            self._check_names([name])
            task = self._tasks.pop(name)
        self._slots.let_go(task.slot)

    def bytes_of(self, name: str) -> int:
        """Return the bytes of a head delta's slot.

        Raises:
            InvalidArgumentError: no delta has that name.
        """
        with self._lock:
            self._check_names([name])
            return self._tasks[name].slot.layout.nbytes

    def close(self) -> None:
        """Restore the model after the running batch; refuse all other batches."""
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
            batch: the inputs of the backbone's ``forward``, ``[B, …]``, padded.
            names: the name of each sample's head delta, looked up when the computation starts; None
                for the bare backbone.

        Returns:
            One tensor per sample, in the order of the batch: its task's logits ``[labels]``, or
            ``[S, labels]`` if every token has some, including padding; the last hidden state
            ``[S, D]`` if the name is None or the delta has no task head.

        Raises:
            InvalidArgumentError: a name is not in the bank, the numbers of names and samples
                differ, a token or token type has no embedding, or the model is in training mode.
            BankClosedError: the bank is closed.
        """
        _check_mode(self._model)
        sizes = {len(tensor) for tensor in batch.values()}
        if sizes != {len(names)} or not names:
            limit = f"one for each of the batch's {max(sizes, default=0)} samples"
            raise InvalidArgumentError("names", value=f"{len(names)} names", limit=limit)
        check_tokens(batch, config=self._model.config)
        with self._turn, self._held(names) as tasks:
            return self._forward(batch, range(len(names)), tasks)

    @torch.inference_mode()
    def fan_out(
        self, batch: Mapping[str, Tensor], names: Sequence[Sequence[str | None]]
    ) -> list[list[Tensor]]:
        """Ask several tasks about each sample of a batch.

        A sample runs once through the layers below the first one that any of its tasks changes;
        there each task's own rows take over. With deltas of the upper layers that is most of the
        pass. Up to rounding, the answers are those of :meth:`forward`.

        Args:
            batch: as in :meth:`forward`.
            names: the names of each sample's head deltas, at least one of a sample.

        Returns:
            For each sample one tensor per name, in their order, as :meth:`forward` returns them.

        Raises:
            InvalidArgumentError, BankClosedError: as in :meth:`forward`, or a sample has no name.
        """
        _check_mode(self._model)
        sizes = {len(tensor) for tensor in batch.values()}
        if sizes != {len(names)} or not names or not all(names):
            limit = f"some for each of the batch's {max(sizes, default=0)} samples"
            raise InvalidArgumentError("names", value=f"those of {len(names)}", limit=limit)
        check_tokens(batch, config=self._model.config)
        rows = [row for row, wanted in enumerate(names) for _ in wanted]
        flat = [name for wanted in names for name in wanted]
        with self._turn, self._held(flat) as tasks:
            answers = iter(self._forward(batch, rows, tasks))
        return [[next(answers) for _ in wanted] for wanted in names]

    @contextmanager
    def _held(self, names: Sequence[str | None]) -> Iterator[list[BankedTask | None]]:
        """Yield each sample's task; hold their slots during the block."""
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
        self,
        batch: Mapping[str, Tensor],
        rows: Sequence[int],
        tasks: Sequence[BankedTask | None],
    ) -> list[Tensor]:
        """Answer pairs of a row of the batch and a task."""
        pairs = arrange(tasks, enough=enough_on(self._model.device))
        plan = plan_fan_out(rows, tasks)
        begin, *others = plan.stages
        hidden, places = self._run(batch, begin, states=None, pairs=pairs)
        for stage in others:
            states = hidden[[places[parent] for parent in stage.parents]]
            hidden, places = self._run(batch, stage, states=states, pairs=pairs)
        order = _order_of(pairs)
        chosen = [places[plan.samples[pair]] for pair in order]
        if chosen != list(range(len(hidden))):
            hidden = hidden[chosen]
        inputs = _pick(batch, [rows[pair] for pair in order])
        answers: dict[int, Tensor] = {}
        for alike in by_head(pairs):
            for group, answer in zip(alike, answer_alike(alike, hidden, inputs), strict=True):
                answers.update(zip(group.places, answer, strict=True))
        return [answers[pair] for pair in range(len(tasks))]

    def _run(
        self,
        batch: Mapping[str, Tensor],
        stage: Stage,
        *,
        states: Tensor | None,
        pairs: Sequence[Group],
    ) -> tuple[Tensor, dict[int, int]]:
        """Run a stage.

        Args:
            batch: of all rows.
            stage: the stage.
            states: with which its samples start; None at the embeddings.
            pairs: the pairs to answer at the end.

        Returns:
            The states that enter its end, or the last hidden state; and each sample's place there.
        """
        groups = arrange(stage.tasks, enough=enough_on(self._model.device))
        order = _order_of(groups)
        places = {sample: place for place, sample in enumerate(order)}
        inputs = _pick(batch, [stage.rows[sample] for sample in order])
        start: AbstractContextManager[object] = nullcontext()
        if states is not None:
            start = self._passes.running_from(stage.first, states[order])
        with self._mixed.mixing(blocks_of(groups)), start:
            if stage.end is not None:
                return self._passes.states_before(stage.end, inputs), places
            with self._cutting(pairs):
                return self._model(**inputs).last_hidden_state, places

    def _cutting(self, groups: Sequence[Group]) -> AbstractContextManager[object]:
        """Make the last layer compute only the first token if no task reads another."""
        modules = {group.first_token_from for group in groups}  # one, or None, or both
        name = modules.pop() if len(modules) == 1 else None
        if name is None:
            return nullcontext()
        return self._model.get_submodule(name).register_forward_pre_hook(_cut)

    def _check_open(self) -> None:
        if self._is_closed:
            raise BankClosedError("the bank is closed")

    def _check_names(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self._tasks:
                limit = "the name of a head delta in the bank"
                raise InvalidArgumentError("names", value=name, limit=limit)

    def _head_for(self, delta: HeadDelta) -> TaskLogits:
        """Return the task logits for tasks like this one; build them if they are new."""
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


def _order_of(groups: Sequence[Group]) -> list[int]:
    """Return the samples of groups in the order of the arranged batch."""
    return [place for group in groups for place in group.places]


def _pick(batch: Mapping[str, Tensor], rows: Sequence[int]) -> dict[str, Tensor]:
    """Return some rows of a batch."""
    index = torch.tensor(rows, device=next(iter(batch.values())).device)
    return {name: tensor[index] for name, tensor in batch.items()}


def _check_mode(model: PreTrainedModel) -> None:
    if model.training:
        raise InvalidArgumentError("model", value="training mode", limit="model.eval()")


def _side_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Create a stream that waits for the work queued on a GPU so far, but not for later work."""
    if device.type != "cuda":
        return None
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream


def _cut(_module: object, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Cut ``[B, S, D]`` arguments to ``[B, 1, D]`` (a forward pre-hook)."""
    return tuple(argument[:, :1].contiguous() for argument in arguments)
