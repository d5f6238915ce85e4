"""store.logs: one stream, one form, and nothing in it that must stay secret."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest
import structlog

from store import logs
from store.logs import configure_logging, printable
from tests.root import ROOT

KEY = "hifi_" + "aB3-_" * 8 + "xyz"
SCRIPT = """
import logging, sys, warnings
import structlog
from store.logs import configure_logging
configure_logging(sys.argv[1], process="gateway")
key = sys.argv[2]
ours, theirs = structlog.get_logger("store.x"), logging.getLogger("some.library")
with structlog.contextvars.bound_contextvars(request_id="req_1", tenant="ten_1", job="job_1"):
    ours.info("job claimed", fence=3)
    theirs.warning("took %s seconds", 7)
theirs.debug("not told")
ours.warning("refused", key=key)
warnings.warn("old")
row = ["a row of data"]
try:
    raise ValueError(f"no such key: {key}")
except ValueError:
    theirs.exception("failed")
"""


def lines(form: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, form, KEY],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


@pytest.mark.process
class TestJson:
    @pytest.fixture(scope="class")
    @classmethod
    def told(cls) -> list[dict[str, object]]:
        return [json.loads(line) for line in lines("json")]

    def test_ours_and_theirs_have_the_same_fields(self, told):
        for line, level, logger, event in (
            (told[0], "info", "store.x", "job claimed"),
            (told[1], "warning", "some.library", "took 7 seconds"),
        ):
            assert (line["level"], line["logger"], line["event"]) == (level, logger, event)
            assert (line["request_id"], line["tenant"], line["job"]) == ("req_1", "ten_1", "job_1")
            assert line["process"] == "gateway"
            assert str(line["timestamp"]).endswith("Z")
        assert told[0]["fence"] == 3

    def test_a_context_ends_with_its_block(self, told):
        assert not {"request_id", "tenant", "job"} & set(told[2])

    def test_warnings_and_tracebacks_are_lines_too(self, told):
        assert "old" in str(told[3]["event"])
        assert "Traceback" in str(told[4]["exception"])
        assert len(told) == 5


@pytest.mark.process
@pytest.mark.parametrize("form", ["json", "text"])
def test_neither_keys_nor_local_variables_are_logged(form: str):
    text = "\n".join(lines(form))
    assert "hifi_..." in text
    assert KEY not in text
    assert KEY[-20:] not in text
    assert "a row of data" not in text
    assert "ValueError" in text


HOSTILE = {
    "line feed": "a\n2026-01-01 [info] forged",
    "carriage return": "a\rforged",
    "escape": "\x1b[2Jforged",
    "bell": "a\x07",
    "delete": "a\x7f",
    "next line": "a\x85forged",
    "line separator": "a\u2028forged",
    "paragraph separator": "a\u2029forged",
    "right to left": "a\u202egnp.exe",
    "isolate": "a\u2066b\u2069",
    "no width": "a\u200bb",
    "surrogate": "a\ud800",
    "null": "a\x00b",
}


def raise_both(text):
    raise ValueError(text) from KeyError(text)


class Written:
    """What a test has written to the standard error stream."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    def getvalue(self) -> str:
        self._text += self._capsys.readouterr().err
        return self._text


@pytest.fixture
def stream(capsys):
    """Yield what a test writes to the logs, which it configures for this process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield Written(capsys)
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


@pytest.mark.parametrize("form", ["json", "text"])
class TestPrintable:
    @pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
    def test_a_value_stays_on_its_line_and_shows(self, stream, form, text):
        configure_logging(form, process="gateway")
        structlog.get_logger("ours").info("request", path=text, spaced=f"{text} =")
        logging.getLogger("theirs").warning("cannot read %s", text)
        structlog.get_logger(text).info(text)
        written = stream.getvalue()
        lines = written.split("\n")
        assert len(lines) == 4
        assert lines.pop() == ""
        assert all(line.isprintable() for line in lines)
        if form == "json":
            documents = [json.loads(line) for line in lines]
            assert documents[0]["path"] == text
            assert documents[1]["event"] == f"cannot read {text}"

    @pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
    def test_an_exceptions_text_forges_no_line(self, stream, form, text):
        configure_logging(form, process="gateway")
        for log in (structlog.get_logger("ours"), logging.getLogger("theirs")):
            try:
                raise_both(text)
            except ValueError:
                log.exception("failed")
        written = stream.getvalue()
        assert all(line.isprintable() for line in written.split("\n"))
        blocks = (
            [json.loads(line)["exception"] for line in written.splitlines()]
            if form == "json"
            else [written]
        )
        assert len(blocks) == (2 if form == "json" else 1)
        for block in blocks:
            lines = block.split("\n")
            assert "Traceback (most recent call last):" in lines
            assert f"ValueError: {printable(text)}" in lines
            assert any(line.startswith('  File "') for line in lines)
            assert "    raise ValueError(text) from KeyError(text)" in lines
            assert not any(line.startswith(("2026-01-01", "forged")) for line in lines)

    def test_a_long_value_is_shortened(self, stream, form):
        configure_logging(form, process="gateway")
        structlog.get_logger("ours").info("request", path="/" + "\u2028" * 100_000)
        assert "(100001 characters)" in stream.getvalue()
        assert len(stream.getvalue()) < 13_000


@pytest.mark.parametrize("form", ["json", "text"])
class TestRepeats:
    @pytest.fixture
    def clock(self, monkeypatch):
        now = [1000.0]
        monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: now[0]))
        return now

    def test_a_flood_becomes_some_lines_and_a_number(self, stream, form, clock):
        configure_logging(form, process="gateway")
        ours, theirs = structlog.get_logger("ours"), logging.getLogger("theirs")
        for number in range(500):
            ours.error("refused", number=number)
            theirs.error("out of descriptors: %s", number)
        assert len(stream.getvalue().splitlines()) == 40
        clock[0] += 59
        ours.info("alive")
        assert "more like this" not in stream.getvalue()
        clock[0] += 2
        ours.info("alive")
        lines = stream.getvalue().splitlines()
        assert len(lines) == 40 + 2 + 2
        assert sum("480 more like this in the last 60 s" in line for line in lines) == 2
        ours.error("refused", number=500)
        assert "500" in stream.getvalue().splitlines()[-1]

    def test_other_lines_are_all_written(self, stream, form, clock):
        configure_logging(form, process="gateway")
        ours = structlog.get_logger("ours")
        for number in range(100):
            ours.info("request", number=number)
            ours.warning(f"warning {number}")
        assert len(stream.getvalue().splitlines()) == 200
        clock[0] += 61
        ours.info("alive")
        assert "more like this" not in stream.getvalue()
