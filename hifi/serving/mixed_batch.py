"""Check the samples of a mixed batch, and group them for products of rows and of task heads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from hifi.errors import InvalidArgumentError
from hifi.serving.mixed_rows import BankedTask, Block

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_Kind: TypeAlias = tuple[int, tuple[tuple[int, int], ...]]  # a constant below, and RowPlaces.shape
_BARE, _FEW, _MANY = range(3)
# From how many samples on a task gets its own product. MiniLM on one core, 64 samples of 8 tokens,
# 3 heads tuned per layer, time of all products of a pass in ms, one product per task / one stacked
# for all: one sample per task 65 / 75, two 41 / 69, three 33 / 67, four 30 / 68, six 24 / 63, eight
# 24 / 66. With 32 and with 128 tokens, products per task also win from two samples on; with one
# sample the two are within 8 %. A GPU launches a kernel per product: its value is chosen, not
# measured.
_ENOUGH_ON_CPU, _ENOUGH = 2, 4
_STACKED_BYTES = 1 << 26  # of weights that are stacked for one product


@dataclass(frozen=True)
class Group:
    """The samples of one task in a batch.

    Attributes:
        task: None for the bare backbone.
        places: positions of the samples in the batch.
        start: position of the first one in the arranged batch; the others follow it.
        kind: equal for groups that are multiplied in the same way.
    """

    task: BankedTask | None
    places: tuple[int, ...]
    start: int
    kind: _Kind

    @property
    def samples(self) -> slice:
        """The samples' positions in the arranged batch."""
        return slice(self.start, self.start + len(self.places))

    @property
    def head(self) -> tuple[object, ...]:
        """A key that is equal for groups whose task heads are computed together."""
        if self.task is None or self.task.head is None or self.first_token_from is None:
            return (self.start,)  # equal to no other group's
        return self.task.head, len(self.places)

    @property
    def first_token_from(self) -> str | None:
        """The module from which on only the first token is read, as in TaskLogits."""
        if self.task is None or self.task.head is None:
            return None
        return self.task.head.first_token_from

    def answer(self, hidden: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return logits, or the last hidden state if there is no task head."""
        own = hidden[self.samples]
        if self.task is None or self.task.head is None:
            return own
        part = {key: tensor[self.samples] for key, tensor in batch.items()}
        return self.task.head.apply(self.task.head_weights, hidden=own, batch=part)


def enough_on(device: torch.device) -> int:
    """Return the number of samples from which on a task gets its own product on a device."""
    return _ENOUGH_ON_CPU if device.type == "cpu" else _ENOUGH


def check_tokens(batch: Mapping[str, Tensor], *, config: PreTrainedConfig) -> None:
    """Raise if a batch has a token or a token type that the backbone has no embedding for.

    A CPU would raise an IndexError without a place; a GPU would make the whole process unusable.

    Raises:
        InvalidArgumentError: the message has the sample and the limit.
    """
    for name, field in (("input_ids", "vocab_size"), ("token_type_ids", "type_vocab_size")):
        count = getattr(config, field, None)
        if name not in batch or not count:  # a DeBERTa without token types ignores them
            continue
        outside = ((batch[name] < 0) | (batch[name] >= count)).nonzero()
        if len(outside):
            sample, *place = outside[0].tolist()
            raise InvalidArgumentError(
                name,
                value=int(batch[name][(sample, *place)]),
                limit=f"sample {sample} of the batch: 0 to {count - 1}, the backbone's embeddings",
            )


def arrange(tasks: Sequence[BankedTask | None], *, enough: int) -> list[Group]:
    """Group samples by task, and order the groups so that each product's are contiguous."""
    places: dict[BankedTask | None, list[int]] = {}
    for place, task in enumerate(tasks):
        places.setdefault(task, []).append(place)
    kinds = {task: _kind_of(task, len(mine), enough=enough) for task, mine in places.items()}
    groups: list[Group] = []
    start = 0
    for task in sorted(places, key=kinds.__getitem__):
        groups.append(Group(task, tuple(places[task]), start, kinds[task]))
        start += len(places[task])
    return groups


def _kind_of(task: BankedTask | None, count: int, *, enough: int) -> _Kind:
    if task is None:
        return _BARE, ()
    return _MANY if count >= enough else _FEW, task.places.shape


def blocks_of(groups: Sequence[Group]) -> list[Block]:
    """Return the blocks, each one product: many samples of one task, or few of many tasks."""
    blocks: list[Block] = []
    for (size, _), alike in groupby(groups, key=lambda group: group.kind):
        for part in _cut_to_size(alike, _bytes_of_rows) if size == _FEW else ([g] for g in alike):
            tasks = [group.task for group in part if group.task for _ in group.places]
            if tasks:
                samples = slice(part[0].samples.start, part[-1].samples.stop)
                blocks.append(Block(samples, tasks if len(part) > 1 else tasks[:1]))
    return blocks


def by_head(groups: Sequence[Group]) -> Iterator[list[Group]]:
    """Yield lists of groups whose task heads are computed together."""
    alike: dict[object, list[Group]] = {}
    for group in groups:
        alike.setdefault(group.head, []).append(group)
    for members in alike.values():
        yield from _cut_to_size(members, _bytes_of_head)


def answer_alike(
    alike: Sequence[Group], hidden: Tensor, batch: Mapping[str, Tensor]
) -> Iterable[Tensor]:
    """Return the answers of a list of groups from :func:`by_head`."""
    tasks = [group.task for group in alike if group.task]
    if len(alike) == 1 or tasks[0].head is None:
        return [group.answer(hidden, batch) for group in alike]
    first = torch.stack([hidden[group.samples, :1] for group in alike])  # [t, n, 1, D]
    return tasks[0].head.apply_to_many([task.head_weights for task in tasks], hidden=first)


def _bytes_of_rows(group: Group) -> int:
    return 0 if group.task is None else group.task.widest * len(group.places)


def _bytes_of_head(group: Group) -> int:
    return 0 if group.task is None else sum(w.nbytes for w in group.task.head_weights.values())


def _cut_to_size(
    groups: Iterable[Group], count_bytes: Callable[[Group], int]
) -> Iterator[list[Group]]:
    """Split groups so that the weights stacked for one product stay within the limit."""
    part: list[Group] = []
    held = 0
    for group in groups:
        more = count_bytes(group)
        if part and held + more > _STACKED_BYTES:
            yield part
            part, held = [], 0
        part.append(group)
        held += more
    if part:
        yield part
