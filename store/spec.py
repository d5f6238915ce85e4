"""The job spec: what a caller may ask for, validated once, at the door."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StringConstraints

TaskType = Literal[
    "classification",
    "regression",
    "image-classification",
    "question-answering",
    "multiple-choice",
    "token-classification",
    "causal-lm",
]
_NO_NUL = r"^[^\x00]*$"  # Postgres stores none
Metric = Literal["accuracy", "f1", "matthews", "pearson", "spearman"]
Text = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=_NO_NUL)]


class _Spec(BaseModel):
    """Exact types only, no unknown fields, nothing that is not a number."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class TaskFields(_Spec):
    """What the caller says about the task; the rest is inferred from the data's columns."""

    type: TaskType | None = None
    text: (
        Text | Annotated[tuple[Text, ...], Field(strict=False, min_length=1, max_length=2)] | None
    ) = None
    label: Text | None = None
    image: Text | None = None
    metric: Metric | None = None


class TrainingFields(_Spec):
    """Hyperparameters, with the defaults of ``hifi.finetune``."""

    epochs: int = Field(default=3, ge=1, le=1000)
    learning_rate: float = Field(default=3e-4, gt=0, le=1)
    batch_size: int = Field(default=32, ge=1, le=4096)
    max_length: int = Field(default=128, ge=1, le=131072)
    warmup_ratio: float = Field(default=0.06, ge=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0, le=10)
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    early_stopping_patience: int | None = Field(default=None, ge=1, le=1000)


class HubDataset(_Spec):
    """A data set of the hub, where the server allows it."""

    hub: Text
    config: Text | None = None
    revision: Text | None = None


class JobSpec(_Spec):
    """One fine-tune as its caller asks for it.

    Attributes:
        n_samples: calibration samples; where not given 300, or all rows where there are fewer.
        xi: the share ξ of Eq. (2); where not given 0.9. ``ξ`` is accepted for it.
        d: the damping of Eq. (10). ``damping`` is accepted for it.
    """

    model: Text
    dataset: Text | HubDataset
    task: TaskFields = TaskFields()
    k: int = Field(default=3, ge=1, le=1024)
    xi: float | None = Field(default=None, gt=0, lt=1, validation_alias=AliasChoices("xi", "ξ"))
    d: float = Field(default=0.85, ge=0, lt=1, validation_alias=AliasChoices("d", "damping"))
    n_samples: int | None = Field(default=None, ge=1, le=1_000_000)
    strategy: Literal["layer-wise", "mid-top"] = "layer-wise"
    teleport: Literal["information", "uniform"] = "information"
    training: TrainingFields = TrainingFields()
    name: Annotated[str, StringConstraints(max_length=128, pattern=_NO_NUL)] | None = None
    metadata: dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=_NO_NUL)],
        Annotated[str, StringConstraints(max_length=512, pattern=_NO_NUL)],
    ] = Field(default_factory=dict, max_length=16)
