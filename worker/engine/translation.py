"""Translate between the service's terms and the library's; no other module does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hifi.data.settings import Scoring, declared
from hifi.data.spec import SPLITS, IfLabelled, TaskSpec

if TYPE_CHECKING:
    from store.jobs.spec import HubDataset, JobSpec
    from worker.engine.messages import EngineEvent


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
        scoring["xi"] = None  # unused then; the library would warn
    splits = {split: data[split] for split in SPLITS if split in data}
    if "test" in splits:
        splits["test"] = IfLabelled(splits["test"])
    return {
        "model": model,
        "revision": revision,
        **splits,
        "task": TaskSpec(**dict(spec.task)),
        **scoring,
        **dict(spec.training),
    }


def hub_data(dataset: HubDataset) -> dict[str, Any]:
    """Return a hub data set's splits as ``finetune`` takes them."""
    return dict.fromkeys(SPLITS, dataset.model_dump())


def file_data(files: Mapping[str, Path]) -> dict[str, Any]:
    """Return an uploaded data set's splits as ``finetune`` takes them."""
    return {split: str(path) for split, path in files.items()}


def heads_document(
    selection: Mapping[str, Any], *, job_id: str, model: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a selection in the form of the API.

    Args:
        selection: from the engine: ``HeadSelection.to_dict()`` with
            ``trainable_parameters``, ``fraction`` and ``head_dim``.
        job_id: of the job.
        model: the backbone's id.

    Returns:
        The job's summary, and the whole document with all scores.
    """
    layers = selection["layers"]
    heads = [[layer["layer"], head] for layer in layers for head in layer["selected"]]
    counts = {name: selection[name] for name in ("trainable_parameters", "fraction")}
    settings = (each.names[0] for each in declared(Scoring).values())
    names = ("fingerprint", *settings, "num_layers")  # a selection leaves out what is the paper's
    document = {
        "object": "job.heads",
        "job": job_id,
        "model": model,
        **{name: selection[name] for name in names if name in selection},
        "num_heads": len(layers[0]["importance"]),
        "head_dim": selection["head_dim"],
        **counts,
        "layers": layers,
    }
    return {"heads": heads, **counts}, document


def is_reported_step(event: EngineEvent) -> bool:
    """Return whether a step becomes an event of the job.

    About a hundred steps of a job do, whatever its length; the same ones after a resume.
    """
    every = -(-event.total_steps // 100)
    return event.step % every == 0 or event.step in (1, event.total_steps)
