"""A stub server that the commands find by HIFI_URL, and documents for its answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.service.stub_server import StubServer, stub_server
from tests.service.work import heads_of


@pytest.fixture
def stub(monkeypatch) -> Iterator[StubServer]:
    with stub_server() as stub:
        monkeypatch.setenv("HIFI_URL", stub.url)
        monkeypatch.setenv("HIFI_API_KEY", "hifi_secret")
        yield stub


@pytest.fixture
def dataset() -> dict:
    return {
        "id": "ds_1",
        "object": "dataset",
        "name": "films",
        "splits": {"train": {"rows": 8}, "validation": {"rows": 2}},
        "columns": {"text": "string", "label": "int64"},
        "bytes": 1234,
        "sha256": "0" * 64,
        "created_at": "2026-01-02T03:04:05.678901Z",
    }


@pytest.fixture
def job() -> dict:
    """Return the document of a succeeded job."""
    file = {"bytes": 2699088, "sha256": "a" * 64}
    return {
        "id": "job_1",
        "object": "job",
        "status": "succeeded",
        "tenant": "ten_1",
        "name": "films",
        "metadata": {},
        "spec": {
            "model": "all-MiniLM-L6-v2",
            "dataset": "ds_1",
            "task": {
                "type": "classification",
                "text": ["text"],
                "label": "label",
                "image": None,
                "metric": "accuracy",
            },
        },
        "created_at": "2026-01-02T03:04:05.678901Z",
        "started_at": "2026-01-02T03:04:06.678901Z",
        "finished_at": "2026-01-02T03:04:16.678901Z",
        "progress": {
            "phase": "writing",
            "step": 72,
            "total_steps": 72,
            "fraction": 1.0,
            "eta_seconds": None,
        },
        "attempt": 1,
        "selection": {
            "heads": [[0, 1], [1, 0]],
            "trainable_parameters": 666820,
            "fraction": 0.0294,
        },
        "result": {
            "metrics": {"loss": 0.8681, "accuracy": 0.7812, "matthews": None},
            "yardsticks": {
                "majority": {"loss": 1.3863, "accuracy": 0.25},
                "probe": {"loss": 0.6512, "accuracy": 0.776},
                "untuned": None,
            },
            "best_step": 72,
            "train_seconds": 5.0,
            "selection_seconds": 1.0,
            "samples_per_second": 487.2,
        },
        "warnings": [],
        "artifact": {**file, "encodings": {"float32": file}},
        "error": None,
    }


@pytest.fixture
def heads() -> dict:
    """Return the heads document of a tiny model: two layers of three heads."""
    layers = [
        {"layer": 0, "importance": [0.5, 0.3, 0.2], "selected": [0, 1]},
        {"layer": 1, "importance": [0.2, None, 0.6], "selected": [0, 2]},
    ]
    return {
        **heads_of("job_1"),
        "score": "pagerank",
        "budget": None,
        "model": "tiny",
        "fingerprint": "sha256:0",
        "num_heads": 3,
        "head_dim": 4,
        "trainable_parameters": 1234,
        "layers": layers,
    }
