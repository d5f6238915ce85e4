"""The overhead of the service: a job through it against ``hifi.finetune`` alone."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks.data import read_rows
from benchmarks.rows import Row, print_rows
from benchmarks.service.alone import Run, fine_tune
from benchmarks.service.deployment import (
    THREADS,
    Deployment,
    database_of,
    embedded,
    end_in_order,
    stopped,
)
from hifi.backbones.models import resolve_model
from hifi.backbones.packaged import PACKAGED_MODEL
from hifi.cli.docstrings import build_data_set
from service.client import Client
from store.jobs.spec import JobSpec
from store.storage import ArtifactStorage
from store.tables import Dataset, Job
from tests.tiny_tasks import write_jsonl
from worker.engine.translation import file_data, finetune_arguments

_MRPC = {"type": "classification", "text": ["sentence1", "sentence2"], "label": "label"}
_DOCSTRINGS = {"type": "classification", "text": ["text"], "label": "library"}
_SETTLE_SECONDS = 3.0  # for suspended processes to catch up
_STAGES = {
    "claim": "POST to the claim",
    "loading": "claim to the first scores: data and backbone",
    "selection": "selection",
    "training": "training, evaluations and checkpoints",
    "storing": "artifacts written and stored",
    "reporting": "end of the job to its client",
}


@dataclass(frozen=True, kw_only=True)
class Size:
    """The size of the measurement; ``rows`` is the most of training data."""

    rows: int
    epochs: int
    repetitions: int


FULL = Size(rows=4000, epochs=2, repetitions=5)
QUICK = Size(rows=160, epochs=1, repetitions=1)


class Service:
    """The embedded service with a data set, for one job at a time."""

    def __init__(self, deployment: Deployment, folder: Path, *, rows: int) -> None:
        task = _write_data(folder, rows=rows)
        train, validation = (folder / f"{split}.jsonl" for split in ("train", "validation"))
        with Client(deployment.url) as client:
            dataset = client.datasets.push(train, validation=validation)["id"]
        self._deployment = deployment
        self._spec = {"model": PACKAGED_MODEL, "task": task, "dataset": dataset}

    def run(self, *, epochs: int) -> Run:
        """Post a job and follow it to its end."""
        with Client(self._deployment.url) as client:
            posted, start = time.time(), time.perf_counter()
            identifier = client.jobs.create({**self._spec, "training": {"epochs": epochs}})["id"]
            events = list(client.jobs.watch(identifier))
            seconds, seen = time.perf_counter() - start, time.time()
            job = client.jobs.get(identifier)
        if job["status"] != "succeeded" or job["artifact"] is None or job["started_at"] is None:
            raise RuntimeError(f"{identifier} {job['status']}: {job['error']}")
        at: dict[str, float] = {}  # the last of each kind; the database has our clock
        for event in events:
            kind = event["data"]["status"] if event["type"] == "status" else event["type"]
            at[kind] = _time_of(event["created_at"])
        names = ("selecting", "training", "message", "succeeded")
        moments = [posted, _time_of(job["started_at"]), *(at[name] for name in names), seen]
        lengths = (b - a for a, b in pairwise(moments))
        return Run(
            seconds=seconds,
            stages=dict(zip(_STAGES, lengths, strict=True)),
            sha256=job["artifact"]["encodings"]["float32"]["sha256"],
            costs={},
        )

    def arguments(self, folder: Path) -> dict[str, Any]:
        """Return the first job's arguments of ``hifi.finetune``, with copies of the same files."""
        storage = ArtifactStorage(str(self._deployment.home / "artifacts"))
        with database_of(self._deployment) as database, database.read() as session:
            dataset = session.get_one(Dataset, self._spec["dataset"])
            spec = session.scalars(sa.select(Job.spec).order_by(Job.created_at)).first()
            files = {split: folder / f"{split}.parquet" for split in dataset.splits}
            for split, file in files.items():
                storage.fetch(dataset.tenant_id, dataset.splits[split]["sha256"], to=file)
        arguments = finetune_arguments(
            JobSpec.model_validate(spec),
            data=file_data(files),
            model=str(resolve_model(PACKAGED_MODEL).path),
            revision=None,
        )
        return {**arguments, "device": "cpu"}


def _time_of(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def _write_data(folder: Path, *, rows: int) -> dict[str, Any]:
    """Write MRPC if it is available, otherwise the demo's data set; return the task."""
    if not os.environ.get("HIFI_TEST_DATA"):
        build_data_set(folder, rows_per_library=min(rows // 4, 1000), seed=0)
        return _DOCSTRINGS
    for split in ("train", "validation"):
        write_jsonl(folder / f"{split}.jsonl", read_rows("mrpc", split)[:rows])
    return _MRPC


def measure(size: Size) -> Iterator[tuple[Run, Run]]:
    """Run the same fine-tune through the service and alone, in turns, with the backbone in memory.

    The service's processes are suspended while the other side runs, so that it has the machine for
    itself.
    """
    with (
        tempfile.TemporaryDirectory() as name,
        embedded() as deployment,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
    ):
        service = Service(deployment, Path(name), rows=size.rows)
        # As in a worker.
        os.environ |= {
            "OMP_NUM_THREADS": THREADS,
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }

        def alone(arguments: Mapping[str, Any]) -> Run:
            with stopped(deployment.processes[0].pid):
                run = pool.submit(fine_tune, arguments).result()
            time.sleep(_SETTLE_SECONDS)
            return run

        service.run(epochs=1)
        arguments = service.arguments(Path(name))
        alone(arguments)
        arguments["epochs"] = size.epochs
        for turn in range(size.repetitions):
            if turn % 2 == 0:
                served, other = service.run(epochs=size.epochs), alone(arguments)
            else:
                other, served = alone(arguments), service.run(epochs=size.epochs)
            yield served, other


def main(size: Size = FULL) -> Iterator[Row]:
    """Measure the overhead; takes eight minutes on two cores."""
    pairs = list(measure(size))
    served, alone = zip(*pairs, strict=True)
    ours, theirs = (statistics.median(run.seconds for run in side) for side in (served, alone))
    what = "MRPC" if os.environ.get("HIFI_TEST_DATA") else "the demo's data"
    label = f"a job on {what}, {size.epochs} epochs, {THREADS} threads: "
    yield Row(f"{label}through the embedded service", ours, unit="s")
    yield Row(f"{label}hifi.finetune alone", theirs, unit="s")
    yield Row(f"{label}service / alone", ours / theirs, "≤ 1.05")
    yield Row(f"{label}service − alone", ours - theirs, "≤ 2", unit="s")
    for name, stage in _STAGES.items():
        lengths = [(run.stages[name], other.stages.get(name, 0.0)) for run, other in pairs]
        difference = statistics.median(here - there for here, there in lengths)
        yield Row(f"{label}of that, {stage}", difference, unit="s")
    for name in alone[0].costs:
        cost = statistics.median(run.costs[name] for run in alone)
        yield Row(f"the service's work on a delta, measured alone: {name}", cost, unit="s")
    different = sum(run.sha256 != other.sha256 for run, other in pairs)
    yield Row(f"{label}deltas that differ between the two sides", different, "≤ 0")


if __name__ == "__main__":
    end_in_order()
    print_rows(main(QUICK if "--quick" in sys.argv[1:] else FULL))
