"""The GLUE tasks of the paper's tables, with its metrics (section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hifi.tasks import TaskSpec

_PAIR = ("sentence1", "sentence2")


@dataclass(frozen=True, kw_only=True)
class PaperTask:
    """One task of the tables.

    Attributes:
        name: of its folder.
        text: its text columns; the labels are in the column ``label``.
        metric: chooses the best epoch, and is the number in the tables.
        type: of the task in hifi.
    """

    name: str
    text: Sequence[str]
    metric: str
    type: str = "classification"

    @property
    def has_classes(self) -> bool:
        """Whether rows can be drawn per class."""
        return self.type == "classification"

    @property
    def spec(self) -> TaskSpec:
        """The task as hifi takes it."""
        return TaskSpec(type=self.type, text=tuple(self.text), label="label", metric=self.metric)


TASKS: Mapping[str, PaperTask] = {
    task.name: task
    for task in (
        PaperTask(name="cola", text=("sentence",), metric="matthews"),
        PaperTask(name="sst2", text=("sentence",), metric="accuracy"),
        PaperTask(name="mrpc", text=_PAIR, metric="f1"),
        PaperTask(name="stsb", text=_PAIR, metric="spearman", type="regression"),
        PaperTask(name="rte", text=_PAIR, metric="accuracy"),
        PaperTask(name="mnli", text=_PAIR, metric="accuracy"),
    )
}
