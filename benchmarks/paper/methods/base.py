"""What every method is given, what it returns, and how it is declared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save

from hifi.data.settings import Hyperparameters
from hifi.data.splits import load_split
from hifi.training.batching import evaluation_batches, gather
from hifi.training.forward import Scored
from hifi.training.preparation import prepare

if TYPE_CHECKING:
    from torch import Tensor, nn

    from benchmarks.paper.splits import Rows, Splits
    from benchmarks.paper.tasks import PaperTask
    from hifi.backbones.models import ModelSource
    from hifi.deltas.metadata import Encoding
    from hifi.tasks import Examples, Task
    from hifi.training.preparation import Prepared

Metrics = Mapping[str, float]
MetricsBySplit = Mapping[str, Metrics | None]
# Encodings that lose something, so that what is read back has to be measured.
LOSSY: tuple[Encoding, ...] = ("bfloat16", "int8")
# Factors of the usual rate that a search tries, the same for every method.
_TRIAL_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
_SIGNIFICANT = 6
_BATCH = 32  # of evaluations


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """The settings and the rows of one run.

    Attributes:
        source: the backbone.
        task: the task.
        splits: its rows.
        head_start: where the task head starts, one of the method's.
        hyperparameters: arguments of ``hifi.data.settings.Hyperparameters`` and of ``finetune``;
            what is missing is the library's default.
    """

    source: ModelSource
    task: PaperTask
    splits: Splits
    head_start: str
    hyperparameters: Mapping[str, Any]

    @property
    def settings(self) -> Hyperparameters:
        """The settings of a run in float32."""
        return Hyperparameters(
            **self.hyperparameters, head_start=self.head_start, precision="float32"
        )

    def prepare(self, *, has_validation: bool = True) -> Prepared:
        """Encode the rows, or only those of training, and load the model, on the CPU."""
        return prepare(
            self.source,
            spec=self.task.spec,
            train=self.splits.train,
            validation=self.splits.validation if has_validation else None,
            settings=self.settings,
            device=torch.device("cpu"),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """The result of one run.

    Attributes:
        evaluations: all metrics on validation, with ``loss``, after each epoch, or every few;
            before them those of the start, unless the task head starts at random.
        best: the index of the evaluation whose weights count.
        test: all metrics on test; None without one.
        seconds: of ``selection`` and ``training``.
        trained_weights: numbers that the optimizer or solver sets.
        stored_bytes: of a file with what one stores for the task, by encoding.
        fingerprint: of the backbone as stored.
        learning_rate: the peak that was used; None if the method has none.
        epochs: how many were asked for; None if the method has none.
        heads: (layer, head) of the tuned heads; None for a method without.
        encoded: the metrics of what is read back from a file in further encodings, by encoding and
            split, ``validation`` and ``test``; empty for a method that is not measured in them.
        warnings: codes of what the library warned of, such as ``one_class``; none of rivals.
    """

    evaluations: Sequence[Metrics]
    best: int
    test: Metrics | None
    seconds: Mapping[str, float]
    trained_weights: int
    stored_bytes: Mapping[str, int]
    fingerprint: str
    learning_rate: float | None = None
    epochs: int | None = None
    heads: Sequence[tuple[int, int]] | None = None
    encoded: Mapping[str, MetricsBySplit] = field(default_factory=dict)
    warnings: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Method:
    """A compared method, as data.

    Attributes:
        name: on the command line and in the tables.
        run: trains and measures.
        usual_rate: the learning rate without a search; None if the method has none. Trials try it
            and the same multiples of it for every method.
        head_starts: where its task head can start, its own usual start first.
        has_defaults: whether it chooses rate and epochs itself when it is asked to.
        environment: of ``benchmarks.paper.rivals.environments``, if it needs one of its own.
        classifies_few: whether it is only for few rows, and those with classes.
    """

    name: str
    run: Callable[[Run], Outcome]
    usual_rate: float | None
    head_starts: tuple[str, ...]
    has_defaults: bool = False
    environment: str | None = None
    classifies_few: bool = False

    @property
    def trial_rates(self) -> tuple[float, ...]:
        """The learning rates of a search, increasing."""
        if self.usual_rate is None:
            return ()
        rates = (self.usual_rate * factor for factor in _TRIAL_FACTORS)
        return tuple(float(f"{rate:.{_SIGNIFICANT}g}") for rate in rates)


def encode(ready: Prepared, rows: Rows, *, split: str) -> Examples:
    """Encode further rows as those of a prepared task."""
    task = ready.data.task
    dataset = load_split(rows, split=split, columns=task.columns)
    targets = task.targets(dataset, split=split)
    return ready.data.encoder.encode(dataset, split=split, targets=targets)


def evaluate(
    ready: Prepared, examples: Examples, logits: Callable[[Mapping[str, Tensor]], Tensor]
) -> Metrics:
    """Return all metrics of a task and its loss on a split.

    A threshold of the answers is fitted on the split itself, as on validation in ``finetune``.

    Args:
        ready: the task.
        examples: the split.
        logits: returns those of a batch's inputs, on the CPU.
    """
    batches = evaluation_batches(examples.lengths, batch_size=_BATCH)
    with torch.no_grad():
        parts = [logits(examples.batch(indices).inputs).float() for indices in batches]
    task = ready.data.task
    scored = Scored(task, gather(parts, batches), examples)
    return scored.metrics(task.with_answers(task.fit_answers(scored.found, examples)))


def logits_by(model: nn.Module, task: Task) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """Return the function that computes a model's logits of a batch's inputs."""
    return lambda inputs: task.logits_of(model(**inputs))


def file_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the size of a safetensors file with these tensors."""
    return len(save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}))
