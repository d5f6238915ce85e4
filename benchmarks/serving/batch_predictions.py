"""A batch prediction against the bank alone, and interactive answers before and meanwhile."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from pyarrow import parquet
from transformers import AutoModel

from benchmarks.data import MAX_LENGTH, MODEL, read_rows, tokenize_pairs
from benchmarks.load import Order, load_generator
from benchmarks.rows import Row, print_rows
from benchmarks.serving.deltas import minilm_deltas
from benchmarks.serving.inference import inference, mrpc_inputs, prediction_request
from hifi.backbones.devices import resolve_device
from hifi.backbones.models import resolve_model
from hifi.serving.bank import HeadBank
from store.database.connection import Database, database_now
from store.database.schema import upgrade
from store.datasets import Split, add_dataset
from store.orders import DeltaOrder
from store.predictions.actions import NewPrediction, get_prediction, submit
from store.predictions.spec import PredictingJob, PredictionSpec
from store.states import JobStatus
from store.storage import ArtifactStorage
from store.tables import Artifact, Job, Prediction
from store.tenants import create_tenant
from worker.inference.serving import BATCH_TOKENS

if TYPE_CHECKING:
    from hifi.deltas.delta import HeadDelta

ROWS = 100_000
WARM_ROWS = 256
SECONDS, WARMUP_SECONDS = 20.0, 3.0
PER_SECOND = 10.0  # of the interactive load, one pair of MRPC per request
_WINDOW = 1024  # rows that are sorted by length for the bank alone, as many as wait in the service
_COLUMNS = {"text": "sentence1", "text_pair": "sentence2"}


class Desk:
    """Puts a job, its delta and data sets into the tables, and posts batch predictions."""

    def __init__(self, folder: Path, delta: HeadDelta) -> None:
        self.url = f"sqlite:///{folder}/hifi.db"
        self.artifacts = folder / "artifacts"
        upgrade(self.url)
        self.database = Database(self.url)
        self._storage = ArtifactStorage(str(self.artifacts))
        self._folder = folder
        delta.save(folder / "delta")
        with self.database.write() as session:
            self.tenant = create_tenant(session, "bench").id
            blob = self._storage.put(self.tenant, folder / "delta")
            now = database_now(session)
            session.add(
                Job(
                    id="job_0",
                    tenant_id=self.tenant,
                    status=JobStatus.SUCCEEDED,
                    meta={},
                    spec={},
                    model=MODEL,
                    created_at=now,
                    token_at=now,
                )
            )
            session.flush()
            session.add(
                Artifact(
                    job_id="job_0",
                    encoding="float32",
                    tenant_id=self.tenant,
                    created_at=now,
                    **vars(blob),
                )
            )
        self.order = DeltaOrder(tenant=self.tenant, job="job_0", model=MODEL, sha256=blob.sha256)

    def post(self, rows: Sequence[dict[str, Any]]) -> str:
        """Store rows and queue a prediction of them; return its id."""
        parquet.write_table(pa.Table.from_pylist(list(rows)), self._folder / "rows")
        blob = self._storage.put(self.tenant, self._folder / "rows")
        job = PredictingJob(id="job_0", type="classification", columns=_COLUMNS)
        spec = PredictionSpec(split="train", format="parquet", truncate=True, jobs=[job])
        quota = 1 << 40
        with self.database.write() as session:
            dataset = add_dataset(
                session,
                self.tenant,
                name=None,
                splits={"train": Split(blob=blob, rows=len(rows))},
                columns=dict.fromkeys(_COLUMNS.values(), "string"),
                profile={},
                max_bytes=quota,
            ).id
            new = NewPrediction(
                name=None, dataset_id=dataset, spec=spec, total_rows=len(rows), result_bytes=0
            )
            return submit(session, self.tenant, new, max_queued=9, max_bytes=quota).id

    def get(self, identifier: str) -> Prediction:
        """Return a prediction."""
        with self.database.read() as session:
            return get_prediction(session, self.tenant, identifier)

    def wait(self, identifier: str) -> float:
        """Wait for a prediction; return the seconds that it ran."""
        while (found := self.get(identifier)).finished_at is None:
            time.sleep(0.2)
        if found.error is not None or found.started_at is None or found.finished_at is None:
            raise RuntimeError(f"the prediction is {found.status}: {found.error}")
        return (found.finished_at - found.started_at).total_seconds()


def bank_seconds(rows: Sequence[dict[str, Any]], delta: HeadDelta) -> float:
    """Answer rows by the bank alone, tokenised, sorted in windows; return the seconds."""
    device = resolve_device("auto")
    model = AutoModel.from_pretrained(resolve_model(MODEL).path).eval().to(device)
    bank = HeadBank(model)
    bank.add("task", delta)
    most = BATCH_TOKENS[device.type]
    started = time.perf_counter()
    for at in range(0, len(rows), _WINDOW):
        window = rows[at : at + _WINDOW]
        lengths = [len(each) for each in tokenize_pairs(window)["input_ids"]]
        order = sorted(range(len(window)), key=lengths.__getitem__, reverse=True)
        while order:
            count = max(1, most // min(lengths[order[0]], MAX_LENGTH))
            some, order = order[:count], order[count:]
            batch = tokenize_pairs(
                [window[index] for index in some], padding=True, return_tensors="pt"
            ).to(device)
            with torch.inference_mode():
                [logits.cpu() for logits in bank.forward(dict(batch), ["task"] * len(some))]
    seconds = time.perf_counter() - started
    bank.close()
    return seconds


def _load(port: int, order: DeltaOrder) -> Order:
    inputs = mrpc_inputs()
    return Order(
        port=port,
        requests=[prediction_request([order], [(0, given)]) for given in inputs],
        clients=64,
        warmup_seconds=WARMUP_SECONDS,
        seconds=SECONDS,
        per_second=PER_SECOND,
        seed=0,
    )


def main(count: int = ROWS) -> Iterator[Row]:
    """Measure ``count`` rows; 100,000 take three hours on two CPU cores."""
    rows = list(islice(cycle(read_rows("mrpc", "train")), count))
    (delta,) = minilm_deltas(1)
    with tempfile.TemporaryDirectory() as name:
        desk = Desk(Path(name), delta)
        with (
            closing(desk.database),
            load_generator() as generate,
            inference(desk.artifacts, DATABASE_URL=desk.url) as process,
        ):
            desk.wait(desk.post(rows[:WARM_ROWS]))
            first = bank_seconds(rows, delta)  # in turns, since other work may slow the machine
            seconds = desk.wait(desk.post(rows))
            alone = (first + bank_seconds(rows, delta)) / 2
            before = generate(_load(process.port, desk.order))
            posted = desk.post(rows)
            meanwhile = generate(_load(process.port, desk.order))
            is_whole = desk.get(posted).finished_at is None
    yield Row(f"{count:,} rows by a batch prediction", count / seconds, unit="/s")
    yield Row(f"{count:,} rows by the bank alone", count / alone, unit="/s")
    yield Row("throughput: batch prediction / bank alone", alone / seconds, "≥ 0.9")
    when = "meanwhile" if is_whole else "partly meanwhile"
    yield Row("interactive p95 before", before.p95, unit="ms")
    yield Row(f"interactive p95 {when}", meanwhile.p95, unit="ms")
    yield Row(f"interactive p95: {when} / before", meanwhile.p95 / before.p95, "≤ 1.5")


if __name__ == "__main__":
    print_rows(main(*map(int, sys.argv[1:])))
