"""worker.engine.computing: every outcome of a job is a message that quotes no data."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
import torch

from hifi.errors import (
    CheckpointError,
    DataError,
    InvalidArgumentError,
    JobCancelled,
    JobPaused,
    StorageError,
    TrainingDivergedError,
)
from hifi.tuning.states import StatePlaces
from store.jobs.spec import JobSpec
from tests.tiny_tasks import text_rows, write_jsonl
from tests.worker.scripted_engine import nowhere_job
from worker.engine import computing as module
from worker.engine.computing import compute
from worker.engine.messages import (
    Done,
    EngineEvent,
    Failed,
    Message,
    Stopped,
    decode,
    encode,
)

JOB = nowhere_job("r")
ROW = "what a row says"


def outcome(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> Message:
    """Return the message for a job that ends with an error."""

    def fail(**_: Any) -> None:
        raise error

    monkeypatch.setattr(module, "finetune", fail)
    return compute(
        JOB,
        backbones=None,  # type: ignore[arg-type] # nobody gets as far
        send=lambda _: None,
        stop_request=lambda: None,
    )


def caused_by(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


FULL = OSError(errno.ENOSPC, "No space left on device")


class TestFailures:
    @pytest.mark.parametrize(
        ("error", "code", "param", "is_lasting"),
        [
            (DataError(ROW, split="train"), "dataset_invalid", "dataset", True),
            (TrainingDivergedError("nan"), "training_diverged", None, True),
            (CheckpointError("cut"), "checkpoint_invalid", None, False),
            (StorageError("broken"), "worker_storage", None, False),
            (FULL, "disk_full", None, False),
            (caused_by(StorageError("x"), FULL), "disk_full", None, False),
            (
                caused_by(StorageError("x"), OSError(errno.EDQUOT, "quota")),
                *("disk_full", None, False),
            ),
            (torch.OutOfMemoryError("cuda"), "out_of_memory", "training.batch_size", True),
            (MemoryError(), "out_of_memory", "training.batch_size", True),
            (
                RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"),
                *("out_of_memory", "training.batch_size", True),
            ),
            (
                RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
                *("out_of_memory", "training.batch_size", True),
            ),
            (RuntimeError("shapes cannot be multiplied"), "internal_error", None, False),
            (ZeroDivisionError(ROW), "internal_error", None, False),
            (OSError(errno.EIO, "I/O error"), "internal_error", None, False),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
    )
    def test_have_a_code_and_say_whether_they_are_permanent(
        self, monkeypatch, error: Exception, code: str, param: str | None, is_lasting: bool
    ):
        answer = outcome(monkeypatch, error)
        assert isinstance(answer, Failed)
        assert (answer.run, answer.code, answer.param) == ("r", code, param)
        assert answer.is_lasting is is_lasting

    def test_that_are_unexpected_quote_nothing(self, monkeypatch, capsys):
        structlog.configure(processors=[structlog.processors.JSONRenderer()])
        logging.captureWarnings(capture=False)
        answer = outcome(monkeypatch, ZeroDivisionError(ROW))
        structlog.reset_defaults()
        assert isinstance(answer, Failed)
        line = capsys.readouterr().out
        assert "ZeroDivisionError" in answer.text
        assert json.loads(line)["error"] == "ZeroDivisionError"
        assert "in fail" in line  # where it happened
        assert ROW not in line + answer.text

    def test_name_the_field_of_the_spec(self, monkeypatch):
        error = InvalidArgumentError("k", value=99, limit="at most 12")
        answer = outcome(monkeypatch, error)
        assert isinstance(answer, Failed)
        assert (answer.code, answer.param) == ("invalid_argument", "k")


class TestResult:
    def test_has_the_test_split_and_the_report(self, bert: Path, tmp_path: Path):
        rows = write_jsonl(tmp_path / "rows.jsonl", text_rows(12, seed=1))
        training = {"epochs": 1, "batch_size": 8, "max_length": 16, "class_weights": "balanced"}
        spec = {"model": "m", "dataset": "ds_1", "k": 1, "training": training}
        job = replace(
            nowhere_job("r"),
            spec=JobSpec.model_validate(spec),
            data=dict.fromkeys(("train", "validation", "test"), str(rows)),
            model=str(bert),
            checkpoints=str(tmp_path / "checkpoints"),
            output=str(tmp_path),
        )
        sent: list[Message] = []
        backbones = module.make_resident_backbones("cpu")
        last = compute(job, backbones=backbones, send=sent.append, stop_request=lambda: None)
        assert isinstance(last, Done)
        assert last.result["test"] == last.result["metrics"]
        report = last.result["report"]
        assert (report["split"], [each["label"] for each in report["per_class"]]) == (
            "test",
            ["0", "1"],
        )
        assert decode(encode(last)) == last
        [tested] = [
            each for each in sent if isinstance(each, EngineEvent) and each.kind == "tested"
        ]
        assert tested.metrics == last.result["test"]


@pytest.mark.parametrize("most", [None, 0, 1000])
def test_hidden_states_get_the_memory_that_the_operator_allows(
    monkeypatch: pytest.MonkeyPatch, most: int | None
):
    seen: list[StatePlaces] = []

    def stop(*, state_places: StatePlaces, **_: Any) -> None:
        seen.append(state_places)
        raise JobPaused("as asked")

    monkeypatch.setattr(module, "finetune", stop)
    compute(
        replace(JOB, state_memory_bytes=most),
        backbones=None,  # type: ignore[arg-type] # nobody gets as far
        send=lambda _: None,
        stop_request=lambda: None,
    )
    assert seen == [StatePlaces(memory_bytes=most, folder=JOB.checkpoints)]


class TestStops:
    @pytest.mark.parametrize(
        ("make", "stop_request"), [(JobPaused, "pause"), (JobCancelled, "cancel")]
    )
    def test_are_no_failures(
        self, monkeypatch, make: Callable[[str], Exception], stop_request: str
    ):
        assert outcome(monkeypatch, make("as asked")) == Stopped(run="r", stop_request=stop_request)  # type: ignore[arg-type]
