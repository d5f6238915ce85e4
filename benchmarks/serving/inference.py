"""Run an inference process for a measurement, and write its requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx2

from benchmarks.data import read_rows
from benchmarks.load import write_request
from benchmarks.machine import resident_megabytes
from benchmarks.service.deployment import START_SECONDS, deployed, is_listening
from service.embedded.listening import free_loopback_port
from store.orders import DeltaOrder, PredictionOrder

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
        values = dict(line.rsplit(" ", maxsplit=1) for line in text.splitlines())
        return float(values[name])


@contextmanager
def inference(artifacts: Path, **settings: str) -> Iterator[Inference]:
    """Run ``hifi infer`` as an operator would, on a folder of artifacts, during a block.

    The settings are further ``HIFI_…`` variables, without the prefix.
    """
    port = free_loopback_port()
    with deployed(
        INFER_URL=f"http://127.0.0.1:{port}", ARTIFACTS_URL=str(artifacts), **settings
    ) as deployment:
        process = deployment.start("infer")
        answers = partial(is_listening, port)
        deployment.wait_for(answers, seconds=START_SECONDS, message="inference process")
        yield Inference(port, process.pid)


def prediction_request(
    orders: Sequence[DeltaOrder], items: Sequence[tuple[int, Mapping[str, str]]]
) -> bytes:
    """Return a request for predictions; each item has the index of its order and its input."""
    order = PredictionOrder.of_checked(
        orders, items, truncate=True, timeout_seconds=_TIMEOUT_SECONDS
    )
    return write_request("/predict", order.to_json())


def mrpc_inputs() -> list[dict[str, str]]:
    """Return the pairs of MRPC's validation split as inputs."""
    return [
        {"text": row["sentence1"], "text_pair": row["sentence2"]}
        for row in read_rows("mrpc", "validation")
    ]
