"""Run an inference process for a measurement, with many head deltas in an artifact store."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import torch

from benchmarks.data import MAX_LENGTH, MODEL, minilm, read_rows
from benchmarks.load import write_request
from benchmarks.machine import resident_megabytes
from benchmarks.service.deployment import (
    START_SECONDS,
    deployed,
    is_listening,
)
from benchmarks.serving.serve import noise_deltas
from service.embedded.listening import free_loopback_port
from store.storage import ArtifactStorage

if TYPE_CHECKING:
    from hifi.deltas.delta import HeadDelta

SELECTIONS = 64  # of heads; more deltas reuse the heads with other weights
NOISE = 0.01
_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Inference:
    """A running inference process.

    Attributes:
        port: on the loopback interface.
        pid: of the process.
    """

    port: int
    pid: int

    @property
    def megabytes(self) -> float:
        """Its resident memory in MB."""
        return resident_megabytes(self.pid)

    def metric(self, name: str) -> float:
        """Return the value of a metric, named with its labels in Prometheus' format."""
        text = httpx2.get(f"http://127.0.0.1:{self.port}/metrics", trust_env=False).text
        for line in text.splitlines():
            written, _, value = line.rpartition(" ")
            if written == name:
                return float(value)
        raise KeyError(name)


@contextmanager
def inference(artifacts: Path, **settings: str) -> Iterator[Inference]:
    """Run ``hifi infer`` as an operator would, in a temporary home, during a block.

    Args:
        artifacts: the folder of the artifact store.
        settings: further ``HIFI_…`` variables, without the prefix.
    """
    port = free_loopback_port()
    with deployed(
        INFER_URL=f"http://127.0.0.1:{port}", ARTIFACTS_URL=str(artifacts), **settings
    ) as deployment:
        process = deployment.start("infer")
        answers = partial(is_listening, port)
        deployment.wait_for(answers, seconds=START_SECONDS, message="inference process")
        yield Inference(port, process.pid)


def write_order(tenant: str, sha256: str, *, job: str, model: str = MODEL) -> str:
    """Return the order for a head delta as JSON."""
    document = {"tenant": tenant, "job": job, "model": model, "revision": None, "sha256": sha256}
    return json.dumps(document)


def prediction_request(orders: Sequence[str], items: Sequence[tuple[int, str]]) -> bytes:
    """Return a request for predictions.

    Args:
        orders: of head deltas, as JSON.
        items: the index of the order and the input as JSON, for each item.
    """
    asked = ",".join(f'{{"order":{order},"input":{given}}}' for order, given in items)
    body = (
        f'{{"orders":[{",".join(orders)}],"items":[{asked}],"truncate":true,'
        f'"timeout_seconds":{_TIMEOUT_SECONDS}}}'
    )
    return write_request("/predict", body.encode())


def store_noise_deltas(artifacts: Path, *, count: int, tenants: int) -> list[str]:
    """Store head deltas of MiniLM in an artifact store, for each tenant in turn.

    Returns:
        Their orders, as JSON.
    """
    storage = ArtifactStorage(str(artifacts))
    orders = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "delta"
        for number, delta in enumerate(_noise_deltas(count)):
            delta.save(file)
            tenant = f"ten_{number % tenants}"
            blob = storage.put(tenant, file)
            orders.append(write_order(tenant, blob.sha256, job=f"job_{number}"))
    return orders


def _noise_deltas(count: int) -> Iterator[HeadDelta]:
    """Create deltas like those of ``benchmarks.serving.serve``, but faster."""
    selections = list(noise_deltas(minilm().eval(), count=min(count, SELECTIONS)))
    generator = torch.Generator().manual_seed(1)
    for number in range(count):
        delta = selections[number % len(selections)]
        task = {**(delta.metadata.task or {}), "max_length": MAX_LENGTH}
        rows = {
            name: rows + NOISE * torch.randn(rows.shape, generator=generator)
            for name, rows in delta.rows.items()
        }
        yield replace(delta, rows=rows, metadata=replace(delta.metadata, task=task))


def mrpc_inputs() -> Sequence[str]:
    """Return the pairs of MRPC's validation split as inputs in JSON."""
    return [
        json.dumps({"text": row["sentence1"], "text_pair": row["sentence2"]})
        for row in read_rows("mrpc", "validation")
    ]
