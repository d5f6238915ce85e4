"""HiFi as ``hifi.finetune`` runs it, with heads by any score and strategy."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.paper.methods.base import Outcome, Run, encode, evaluate, logits_by
from hifi.backbones.models import load_config
from hifi.deltas.delta import HeadDelta
from hifi.deltas.metadata import ENCODINGS
from hifi.training.finetuning import finetune

if TYPE_CHECKING:
    from benchmarks.paper.methods.base import MetricsBySplit
    from hifi.deltas.metadata import Encoding
    from hifi.tasks import Examples
    from hifi.training.events import TrainingEvent
    from hifi.training.preparation import Prepared

RunMethod = Callable[[Run], Outcome]
SPLITS = ("validation", "test")
K = 3  # heads of a layer, the paper's


def tuned_heads(*, encodings: Sequence[Encoding] = (), **settings: Any) -> RunMethod:
    """Return the ``run`` of a method that is ``finetune`` with ``fitted`` arguments.

    Args:
        encodings: in which the delta is encoded, read back and measured too.
        settings: arguments of ``finetune``.
    """
    return lambda run: tune(run, settings, encodings=encodings)


def fitted(run: Run, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of ``finetune`` with the number of heads, if a strategy is among them.

    It is ``K`` in each layer; a budget is as large as that.
    """
    strategy = settings.get("strategy")
    if strategy is None:
        return dict(settings)
    if strategy != "budget":
        return {"k": K, **settings}
    return {"budget": K * load_config(run.source).num_hidden_layers, **settings}


def tune(run: Run, settings: Mapping[str, Any], *, encodings: Sequence[Encoding] = ()) -> Outcome:
    """Run ``finetune`` with these arguments, and measure its result."""
    evaluations: list[Mapping[str, float]] = []

    def listen(event: TrainingEvent) -> None:
        if event.kind == "evaluated":
            evaluations.append(dict(event.metrics))

    result = finetune(
        model=run.source.path,
        train=run.splits.train,
        validation=run.splits.validation,
        task=run.task.spec,
        precision="float32",
        device="cpu",
        head_start=run.head_start,
        on_event=listen,
        **run.hyperparameters,
        **fitted(run, settings),
    )
    used, merged = result.delta.metadata.training, _Merged(run)
    sizes: dict[str, int] = {}
    encoded: dict[str, MetricsBySplit] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "delta.safetensors"
        for encoding in ENCODINGS:
            result.delta.save(path, encoding=encoding)
            sizes[encoding] = path.stat().st_size
            if encoding in encodings:
                encoded[encoding] = merged.measure(HeadDelta.load(path))
    return Outcome(
        evaluations=evaluations,
        best=next(index for index, each in enumerate(evaluations) if each == result.metrics),
        test=merged.measure(result.delta, ["test"])["test"] if run.splits.test else None,
        seconds={"selection": result.selection_seconds, "training": result.train_seconds},
        trained_weights=result.trainable_parameters,
        stored_bytes=sizes,
        fingerprint=result.delta.metadata.fingerprint,
        learning_rate=used["learning_rate"],
        epochs=used["epochs"],
        heads=[(head.layer, head.head) for head in result.selection.heads],
        encoded=encoded,
        warnings=[warning.code for warning in result.warnings],
    )


class _Merged:
    """A fresh model of a run's task, loaded when the first delta is merged into it."""

    def __init__(self, run: Run) -> None:
        self._run = run

    @cached_property
    def _ready(self) -> Prepared:
        return self._run.prepare()

    @cached_property
    def _test(self) -> Examples | None:
        rows = self._run.splits.test
        return None if rows is None else encode(self._ready, rows, split="test")

    def _examples(self, split: str) -> Examples | None:
        return self._test if split == "test" else self._ready.data.validation

    def measure(self, delta: HeadDelta, splits: Sequence[str] = SPLITS) -> MetricsBySplit:
        """Measure the model with a delta merged on these splits; None where there is none."""
        ready, model = self._ready, self._ready.loaded.model.eval()
        rows = {split: self._examples(split) for split in splits}
        displaced = delta.merge(model)
        try:
            return {
                split: None
                if each is None
                else evaluate(ready, each, logits_by(model, ready.data.task))
                for split, each in rows.items()
            }
        finally:
            displaced.merge(model)
