"""worker.engine.messages: messages survive the pipe unchanged; anything else is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from store.jobs.spec import JobSpec
from tests.worker.scripted_engine import nowhere_job
from worker.engine.messages import (
    Control,
    DescribeBackbones,
    Described,
    Done,
    EngineEvent,
    Failed,
    Ready,
    RunJob,
    Stopped,
    decode,
    encode,
)

MESSAGES = [
    DescribeBackbones(backbones={"minilm": "/models/minilm"}),
    replace(
        nowhere_job("job_1.1.1"),
        spec=JobSpec.model_validate(
            {"model": "m", "dataset": {"hub": "a/b"}, "d": 0.5, "task": {"text": ["a", "b"]}}
        ),
    ),
    Control(run="job_1.1.1", stop_request="pause"),
    Ready(),
    Described(id="minilm", description={"num_layers": 6}),
    Described(id="broken", error="no weights"),
    EngineEvent(
        run="job_1.1.1", kind="step", step=3, total_steps=9, loss=0.25, text="step 3 of 9\nü"
    ),
    EngineEvent(run="job_1.1.1", kind="evaluated", metrics={"f1": 0.5}),
    Done(run="job_1.1.1", result={"best_step": 3}, artifacts={"float32": "/x"}),
    Stopped(run="job_1.1.1", stop_request="cancel"),
    Failed(
        run="job_1.1.1",
        code="dataset_invalid",
        text="train: row 3",
        param="dataset",
        is_lasting=False,
    ),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_come_back_the_same_on_one_line(message: object):
    line = encode(message)
    assert line.count(b"\n") == 1
    assert encode(decode(line)) == line
    assert type(decode(line)) is type(message)


def test_the_spec_of_a_job_is_typed_at_both_ends():
    order = MESSAGES[1]
    assert isinstance(order, RunJob)
    back = decode(encode(order))
    assert isinstance(back, RunJob)
    assert (back.spec, back) == (order.spec, order)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"kind": "step"}',
        b'{"is": "Nothing"}',
        b'{"is": "EngineEvent"}',
        b'{"is": "Stopped", "stop_request": "pause", "more": 1}',
    ],
)
def test_an_unknown_message_is_refused(line: bytes):
    with pytest.raises(ValueError, match="not a message"):
        decode(line)
