"""HiFi as ``hifi.finetune`` runs it, with heads by any score and strategy."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.paper.methods.base import Outcome, Run, encode, evaluate, logits_by
from hifi.backbones.models import load_config
from hifi.deltas.metadata import ENCODINGS
from hifi.training.finetuning import FinetuneResult, finetune

if TYPE_CHECKING:
    from hifi.training.events import TrainingEvent

RunMethod = Callable[[Run], Outcome]
K = 3  # heads of a layer, the paper's


def tuned_heads(**settings: Any) -> RunMethod:
    """Return the ``run`` of a method that is ``finetune`` with ``fitted`` arguments."""
    return lambda run: tune(run, settings)


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


def tune(run: Run, settings: Mapping[str, Any]) -> Outcome:
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
    used = result.delta.metadata.training
    return Outcome(
        evaluations=evaluations,
        best=next(index for index, each in enumerate(evaluations) if each == result.metrics),
        test=_test(run, result),
        seconds={"selection": result.selection_seconds, "training": result.train_seconds},
        trained_weights=result.trainable_parameters,
        stored_bytes=_stored_bytes(result),
        fingerprint=result.delta.metadata.fingerprint,
        learning_rate=used["learning_rate"],
        epochs=used["epochs"],
        heads=[(head.layer, head.head) for head in result.selection.heads],
    )


def _stored_bytes(result: FinetuneResult) -> dict[str, int]:
    """Return the size of the delta file in every encoding."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "delta.safetensors"
        sizes: dict[str, int] = {}
        for encoding in ENCODINGS:
            result.delta.save(path, encoding=encoding)
            sizes[encoding] = path.stat().st_size
    return sizes


def _test(run: Run, result: FinetuneResult) -> Mapping[str, float] | None:
    """Measure the merged model on the test rows."""
    if run.splits.test is None:
        return None
    ready = run.prepare(has_validation=False)
    model = ready.loaded.model
    result.delta.merge(model)
    return evaluate(ready, encode(ready, run.splits.test, split="test"), logits_by(model))
