"""From the service's words to the library's and back: the one place where they meet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.messages import Told

SPLITS = ("train", "validation")
_TASK_FIELDS = ("text", "label", "image", "metric")
_SCORING = {
    "k": "k",
    "xi": "xi",
    "d": "damping",
    "n_samples": "n_samples",
    "strategy": "strategy",
    "teleport": "teleport",
}
_TRAINING = (
    "epochs",
    "learning_rate",
    "batch_size",
    "max_length",
    "warmup_ratio",
    "weight_decay",
    "seed",
    "precision",
    "early_stopping_patience",
)
_PARAMS = {
    "model": "model",
    "train": "dataset",
    "validation": "dataset",
    "task": "task.type",
    **{name: f"task.{name}" for name in _TASK_FIELDS},
    **{argument: field for field, argument in _SCORING.items()},
    **{name: f"training.{name}" for name in _TRAINING},
}


def finetune_arguments(
    spec: Mapping[str, Any], *, data: Mapping[str, Any], model: str, revision: str | None
) -> dict[str, Any]:
    """Give the arguments of ``hifi.finetune`` that a job spec asks for.

    Args:
        spec: as it is stored, with all fields.
        data: the splits as ``finetune`` takes them, by name; ``train`` at least.
        model: the backbone's folder, or its hub id.
        revision: of a hub id.
    """
    task, training = spec["task"], spec["training"]
    text = task["text"]
    scoring = {argument: spec[field] for field, argument in _SCORING.items()}
    if spec["teleport"] == "uniform":
        scoring["xi"] = None  # nothing depends on it then, and the library would say so
    return {
        "model": model,
        "revision": revision,
        **{split: data[split] for split in SPLITS if split in data},
        "task": task["type"],
        **{name: task[name] for name in _TASK_FIELDS},
        "text": [text] if isinstance(text, str) else text,
        **scoring,
        **{name: training[name] for name in _TRAINING},
    }


def spec_field(argument: str) -> str | None:
    """Give the field of the job spec that an argument of ``finetune`` came from."""
    return _PARAMS.get(argument)


def hub_data(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Give a hub data set's splits as ``finetune`` takes them."""
    source = {name: dataset[name] for name in ("hub", "config", "revision")}
    return dict.fromkeys(SPLITS, source)


def file_data(files: Mapping[str, Path]) -> dict[str, Any]:
    """Give an uploaded data set's splits as ``finetune`` takes them."""
    return {split: str(path) for split, path in files.items()}


def heads_document(
    selection: Mapping[str, Any], *, job_id: str, model: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give a selection as the service shows it.

    Args:
        selection: what the engine tells of it: ``HeadSelection.to_dict()`` with
            ``trainable_parameters``, ``fraction`` and ``head_dim``.
        job_id: whose it is.
        model: the backbone's id.

    Returns:
        What stands in the job, and the whole document with all scores.
    """
    layers = selection["layers"]
    heads = [[layer["layer"], head] for layer in layers for head in layer["selected"]]
    counts = {name: selection[name] for name in ("trainable_parameters", "fraction")}
    names = ("fingerprint", "k", "xi", "d", "strategy", "teleport", "n_samples", "num_layers")
    document = {
        "object": "job.heads",
        "job": job_id,
        "model": model,
        **{name: selection[name] for name in names},
        "num_heads": len(layers[0]["importance"]),
        "head_dim": selection["head_dim"],
        **counts,
        "layers": layers,
    }
    return {"heads": heads, **counts}, document


def is_told_step(told: Told) -> bool:
    """Tell whether a step is worth an event of the job.

    About a hundred of a job are, whatever its length: the same ones however often it is resumed.
    """
    every = -(-told.total_steps // 100)
    return told.step % every == 0 or told.step in (1, told.total_steps)
