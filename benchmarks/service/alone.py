"""``hifi.finetune`` without the service, in a process of its own with the backbone in memory.

Each order is one line of JSON: ``arguments`` of ``hifi.finetune``, and ``folder`` for what the
service would store. The answer tells the seconds of the call and its stages; how long it takes to
write what the service stores, and to store it, is measured after it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.service.line_process import answer_lines
from hifi.backbones.models import resolve_model
from hifi.deltas.metadata import ENCODINGS
from hifi.training.finetuning import finetune
from store.storage import ArtifactStorage
from worker.computing import make_resident_backbones
from worker.results import write_artifacts

if TYPE_CHECKING:
    from hifi.backbones.resident import ResidentBackbones
    from hifi.deltas.delta import HeadDelta
    from hifi.training.events import TrainingEvent


def answer(backbones: ResidentBackbones, order: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out one order."""
    marks: dict[str, float] = {}
    start = time.perf_counter()

    def mark(event: TrainingEvent) -> None:
        marks.setdefault(event.kind, time.perf_counter() - start)

    result = finetune(**order["arguments"], backbones=backbones, on_event=mark)
    seconds = time.perf_counter() - start
    stages = {
        "loading": marks["selecting"],
        "selection": marks["selected"] - marks["selecting"],
        "training": marks["finished"] - marks["selected"],
        "storing": seconds - marks["finished"],
    }
    folder = Path(order["folder"])
    return {"seconds": seconds, "stages": stages, **_store(result.delta, order, folder)}


def _store(delta: HeadDelta, order: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Do what the service does with a delta."""
    model = resolve_model(order["arguments"]["model"]).path
    marks = [time.perf_counter()]
    artifacts = write_artifacts(delta, model_path=model, folder=folder)
    marks.append(time.perf_counter())
    storage = ArtifactStorage(str(folder / "store"))
    for file in artifacts.values():
        storage.put("tenant", file)
    marks.append(time.perf_counter())
    for encoding in ENCODINGS:
        delta.save(folder / f"{encoding}.safetensors", encoding=encoding)
    marks.append(time.perf_counter())
    written, stored, encoded = (b - a for a, b in pairwise(marks))
    digest = hashlib.sha256(artifacts["float32"].read_bytes()).hexdigest()
    costs = {
        "writing all artifacts": written,
        "of these the three encodings, once more": encoded,
        "upload to a folder": stored,
    }
    return {"costs": costs, "sha256": digest}


if __name__ == "__main__":
    answer_lines(partial(answer, make_resident_backbones("cpu")))
