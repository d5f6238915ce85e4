"""The tasks of the paper's tables: GLUE with its metrics (section 4.1), and others (Tab. 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hifi.tasks import TaskSpec

_LABEL = {"label": "label"}
_SENTENCE = {"text": ("sentence",), **_LABEL}
_PAIR = {"text": ("sentence1", "sentence2"), **_LABEL}
_ENDINGS = tuple(f"ending{number}" for number in range(4))


@dataclass(frozen=True, kw_only=True)
class PaperTask:
    """One task of the tables.

    Attributes:
        name: of its folder.
        columns: by the fields of a task spec.
        metric: chooses the best epoch, and is the number in the tables.
        type: of the task in hifi.
        held_out: the file with all rows, of which validation rows are drawn; None if training and
            validation have files of their own.
    """

    name: str
    columns: Mapping[str, Any]
    metric: str
    type: str = "classification"
    held_out: str | None = None

    @property
    def has_classes(self) -> bool:
        """Whether rows can be drawn per class."""
        return self.type == "classification"

    @property
    def is_of_table_2(self) -> bool:
        """Whether it classifies or rates whole texts, as the tasks of Tab. 2 do."""
        return self.type in ("classification", "regression")

    @property
    def text(self) -> tuple[str, ...]:
        """The text columns."""
        return self.spec.text

    @property
    def spec(self) -> TaskSpec:
        """The task as hifi takes it."""
        return TaskSpec(type=self.type, metric=self.metric, **self.columns)


TASKS: Mapping[str, PaperTask] = {
    task.name: task
    for task in (
        PaperTask(name="cola", columns=_SENTENCE, metric="matthews"),
        PaperTask(name="sst2", columns=_SENTENCE, metric="accuracy"),
        PaperTask(name="mrpc", columns=_PAIR, metric="f1"),
        PaperTask(name="stsb", columns=_PAIR, metric="spearman", type="regression"),
        PaperTask(name="rte", columns=_PAIR, metric="accuracy"),
        PaperTask(name="mnli", columns=_PAIR, metric="accuracy"),
        PaperTask(
            name="squad",
            columns={name: name for name in ("question", "context", "answers")},
            metric="f1",
            type="question-answering",
        ),
        PaperTask(
            name="swag",
            columns={"text": ("startphrase",), "choices": _ENDINGS, **_LABEL},
            metric="accuracy",
            type="multiple-choice",
            held_out="validation_500",  # whoever has only these rows trains on some of them
        ),
        PaperTask(
            name="wnut17",
            columns={"tokens": "tokens", "tags": "tags"},
            metric="f1",
            type="token-classification",
        ),
        PaperTask(
            name="goemotions",
            columns={"text": ("text",), "label": "labels"},
            metric="macro_f1",
            type="multi-label",
        ),
    )
}
