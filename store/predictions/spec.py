"""What a batch prediction is asked to do, as its row keeps it."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

Format: TypeAlias = Literal["parquet", "jsonl"]
SplitName: TypeAlias = Literal["train", "validation", "test"]


class PredictingJob(BaseModel):
    """A job whose head delta answers the rows.

    Attributes:
        type: of its task.
        columns: of the data set, by the fields of an input; several of choices are a tuple.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    type: str
    columns: dict[str, str | tuple[str, ...]]


class PredictionSpec(BaseModel):
    """A batch prediction, checked.

    Attributes:
        split: of the data set.
        format: of the result.
        truncate: whether a text of too many tokens is cut; otherwise its row gets an error.
        jobs: at least one, each once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: SplitName
    format: Format
    truncate: bool
    jobs: list[PredictingJob]
