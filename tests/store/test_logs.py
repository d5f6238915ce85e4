"""store.logs: one stream, one form, and nothing in it that must stay secret."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.root import ROOT

pytestmark = pytest.mark.process

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


@pytest.mark.parametrize("form", ["json", "text"])
def test_neither_keys_nor_local_variables_are_logged(form: str):
    text = "\n".join(lines(form))
    assert "hifi_..." in text
    assert KEY not in text
    assert KEY[-20:] not in text
    assert "a row of data" not in text
    assert "ValueError" in text
