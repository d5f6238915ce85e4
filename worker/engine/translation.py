"""From the service's words to the library's and back: the one place where they meet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hifi.data.settings import Hyperparameters, Scoring, declared
from hifi.data.spec import TaskSpec
from store.jobs.spec import HubDataset, JobSpec, TaskFields

if TYPE_CHECKING:
    from worker.engine.messages import Told

SPLITS = ("train", "validation")
_FIELDS = {"model": "model", "train": "dataset", "validation": "dataset", "task": "task.type"}


def finetune_arguments(
    spec: JobSpec, *, data: Mapping[str, Any], model: str, revision: str | None
) -> dict[str, Any]:
    """Return the arguments of ``hifi.finetune`` that a job spec asks for.

    Args:
        spec: as it is stored.
        data: the splits as ``finetune`` takes them, by name; ``train`` at least.
        model: the backbone's folder, or its hub id.
        revision: of a hub id.
    """
    scoring = {name: getattr(spec, name) for name in declared(Scoring)}
    if spec.teleport == "uniform":
        scoring["xi"] = None  # nothing depends on it then, and the library would say so
    return {
        "model": model,
        "revision": revision,
        **{split: data[split] for split in SPLITS if split in data},
        "task": TaskSpec(**dict(spec.task)),
        **scoring,
        **dict(spec.training),
    }


def spec_field(argument: str) -> str | None:
    """Return the field of the job spec that an argument of ``finetune`` came from."""
    if argument in declared(Scoring):
        return declared(Scoring)[argument].names[0]
    if argument in declared(Hyperparameters):
        return f"training.{argument}"
    if argument in TaskFields.model_fields:
        return f"task.{argument}"
    return _FIELDS.get(argument)


def hub_data(dataset: HubDataset) -> dict[str, Any]:
    """Return a hub data set's splits as ``finetune`` takes them."""
    return dict.fromkeys(SPLITS, dataset.model_dump())


def file_data(files: Mapping[str, Path]) -> dict[str, Any]:
    """Return an uploaded data set's splits as ``finetune`` takes them."""
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
    settings = (each.names[0] for each in declared(Scoring).values())
    names = ("fingerprint", *settings, "num_layers")
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
