"""``hifi predictions``: the requests sent, and the output."""

from __future__ import annotations

import argparse
import json
from typing import Any

import pytest

from service.cli import batch_predictions
from tests.service.stub_server import document, problem

PREDICTION: dict[str, Any] = {
    "id": "pred_1",
    "object": "prediction",
    "status": "queued",
    "tenant": "ten_1",
    "name": None,
    "dataset": "ds_1",
    "split": "train",
    "jobs": ["job_1"],
    "format": "parquet",
    "truncate": True,
    "created_at": "2026-11-29T12:00:00Z",
    "started_at": None,
    "finished_at": None,
    "progress": {"rows": 2, "total_rows": 8, "fraction": 0.25, "eta_seconds": 3.0},
    "artifact": None,
    "error": None,
}
DONE = {
    **PREDICTION,
    "status": "succeeded",
    "finished_at": "2026-11-29T12:00:09Z",
    "progress": {"rows": 8, "total_rows": 8, "fraction": 1.0, "eta_seconds": None},
    "artifact": {"bytes": 3, "sha256": "0" * 64, "url": "/predictions/pred_1/result"},
}


def main(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    batch_predictions.add_arguments(parser)
    return batch_predictions.run(parser.parse_args(arguments))


class TestSubmit:
    def test_posts_what_is_asked(self, stub, capsys):
        stub.on("POST", "/predictions", document(PREDICTION, status=202))
        options = ("--format", "jsonl", "--split", "test", "--no-truncate", "--name", "n")
        assert main("submit", "rows", "job_1", "job_2", *options) == 0
        (asked,) = stub.asked
        assert json.loads(asked.body) == {
            "dataset": "rows",
            "jobs": ["job_1", "job_2"],
            "split": "test",
            "format": "jsonl",
            "truncate": False,
            "name": "n",
        }
        assert "idempotency-key" in asked.headers
        assert "2 of 8 rows, about 3 s left" in capsys.readouterr().out

    def test_prints_a_refusal_in_one_line(self, stub, capsys):
        refusal = problem(422, "column_missing", "no column 'x'")
        stub.on("POST", "/predictions", refusal)
        assert main("submit", "ds_1", "job_1") == 1
        assert "no column 'x'" in capsys.readouterr().err


class TestWatch:
    def test_ends_with_the_prediction(self, stub, capsys):
        stub.on("GET", "/predictions/pred_1", document(DONE))
        assert main("watch", "pred_1") == 0
        assert "8 of 8 rows" in capsys.readouterr().out

    def test_a_failure_is_an_exit_code(self, stub, capsys):
        error = {"code": "worker_lost", "message": "lost", "param": None}
        stub.on(
            "GET",
            "/predictions/pred_1",
            document({**DONE, "status": "failed", "artifact": None, "error": error}),
        )
        assert main("watch", "pred_1") == 1
        assert "worker_lost" in capsys.readouterr().err


class TestOthers:
    @pytest.mark.parametrize(
        ("action", "method", "path"),
        [("show", "GET", "/predictions/pred_1"), ("cancel", "POST", "/predictions/pred_1/cancel")],
    )
    def test_print_the_document(self, stub, capsys, action, method, path):
        stub.on(method, path, document(PREDICTION))
        assert main(action, "pred_1", "--json") == 0
        assert json.loads(capsys.readouterr().out) == PREDICTION
