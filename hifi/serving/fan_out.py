"""Plan the passes of one text asked of many tasks: layers that no task changes run once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hifi.serving.mixed_rows import BankedTask


@dataclass(frozen=True)
class Stage:
    """A pass through consecutive layers.

    Attributes:
        first: the layer at which it starts.
        end: the layer before which it ends; None runs the rest of the model.
        rows: the batch's row of each of its samples.
        tasks: the task of each of its samples; None as long as no task has changed a layer.
        parents: the sample of the stage before whose states each sample continues; empty in the
            first stage.
    """

    first: int
    end: int | None
    rows: tuple[int, ...]
    tasks: tuple[BankedTask | None, ...]
    parents: tuple[int, ...]


@dataclass(frozen=True)
class FanOut:
    """The passes for pairs of a row and a task, and where the pairs' answers are.

    Attributes:
        stages: in order.
        samples: of each pair, its sample in the last stage.
    """

    stages: tuple[Stage, ...]
    samples: tuple[int, ...]


def plan_fan_out(rows: Sequence[int], tasks: Sequence[BankedTask | None]) -> FanOut:
    """Share every layer below the first one that a task of the row changes.

    A row runs once up to the first layer that one of its tasks changes. There this task's sample
    splits off, while the others still share the row's, up to the next such layer. Tasks that change
    no layer share the row's sample to the end.

    Args:
        rows: the batch's row of each pair.
        tasks: the task of each pair; None for the bare backbone.
    """
    firsts = [_first_layer(task) for task in tasks]
    starts = sorted({0, *(first for first in firsts if first is not None)})
    stages: list[Stage] = []
    before: dict[tuple[int, int | None], int] = {}
    for place, start in enumerate(starts):
        keys = [
            (row, pair if first is not None and first <= start else None)
            for pair, (row, first) in enumerate(zip(rows, firsts, strict=True))
        ]
        samples = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        stages.append(
            Stage(
                first=start,
                end=starts[place + 1] if place + 1 < len(starts) else None,
                rows=tuple(row for row, _ in samples),
                tasks=tuple(None if pair is None else tasks[pair] for _, pair in samples),
                parents=tuple(
                    before[key] if key in before else before[key[0], None] for key in samples
                )
                if before
                else (),
            )
        )
        before = samples
    return FanOut(tuple(stages), tuple(samples[key] for key in keys))


def _first_layer(task: BankedTask | None) -> int | None:
    """Return the lowest layer that a task changes; None if it changes none."""
    return None if task is None else min(task.places.layers, default=None)
