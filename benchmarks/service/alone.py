"""``hifi.finetune`` without the service, with the backbone in memory."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hifi.backbones.models import resolve_model
from hifi.deltas.metadata import ENCODINGS
from hifi.training.finetuning import finetune
from store.storage import ArtifactStorage
from worker.engine.computing import make_resident_backbones
from worker.engine.results import write_artifacts

if TYPE_CHECKING:
    from hifi.deltas.delta import HeadDelta
    from hifi.training.events import TrainingEvent


@dataclass(frozen=True, kw_only=True)
class Run:
    """One fine-tune.

    Attributes:
        seconds: in total.
        stages: seconds of its parts, by name.
        sha256: of the delta in float32.
        costs: seconds of the service's work on a delta, measured separately.
    """

    seconds: float
    stages: Mapping[str, float]
    sha256: str
    costs: Mapping[str, float]


_backbones = cache(make_resident_backbones)


def fine_tune(arguments: Mapping[str, Any]) -> Run:
    """Call ``hifi.finetune``; then time the service's work on the delta separately."""
    marks: dict[str, float] = {}
    start = time.perf_counter()

    def mark(event: TrainingEvent) -> None:
        marks.setdefault(event.kind, time.perf_counter() - start)

    result = finetune(**arguments, backbones=_backbones("cpu"), on_event=mark)
    seconds = time.perf_counter() - start
    stages = {
        "loading": marks["selecting"],
        "selection": marks["selected"] - marks["selecting"],
        "training": marks["finished"] - marks["selected"],
        "storing": seconds - marks["finished"],
    }
    with tempfile.TemporaryDirectory() as folder:
        costs, sha256 = _store(result.delta, arguments["model"], Path(folder))
    return Run(seconds=seconds, stages=stages, costs=costs, sha256=sha256)


def _store(delta: HeadDelta, model: str, folder: Path) -> tuple[dict[str, float], str]:
    """Write and store a delta as the service does; return the seconds of each part and the hash."""
    marks = [time.perf_counter()]
    artifacts = write_artifacts(delta, model_path=resolve_model(model).path, folder=folder)
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
        "of these, the three encodings, measured again": encoded,
        "upload to a folder": stored,
    }
    return costs, digest
