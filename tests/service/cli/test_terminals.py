"""Commands against a server, on a terminal that cannot show a character."""

from __future__ import annotations

import json

import pytest

from hifi.cli import main
from tests.service.stub_server import document
from tests.terminals import NARROW_ENCODINGS, use_terminal

NAME = "数据 📊"
ESCAPED = r"\u6570\u636e \U0001f4ca"


@pytest.fixture
def uploaded(stub, dataset, tmp_path):
    """Return a file whose upload the server accepts."""
    stub.on("POST", "/datasets", document({**dataset, "name": NAME}, status=201))
    train = tmp_path / "数据.csv"
    train.write_text("text,label\na,0\n")
    return train


@pytest.mark.parametrize("encoding", NARROW_ENCODINGS)
class TestNarrowTerminal:
    @pytest.mark.parametrize("options", [(), ("--json",)])
    def test_an_upload_is_reported(self, encoding, options, uploaded, monkeypatch):
        read = use_terminal(monkeypatch, encoding)
        assert main(["datasets", "push", str(uploaded), "--name", NAME, *options]) == 0
        shown = read()
        if options:
            assert json.loads(shown)["name"] == NAME
        else:
            assert ESCAPED in shown

    def test_a_table_of_jobs_is_printed(self, encoding, stub, job, monkeypatch):
        jobs = {"object": "list", "data": [{**job, "name": NAME}], "has_more": False}
        stub.on("GET", "/jobs", document({**jobs, "first_id": "job_1", "last_id": "job_1"}))
        read = use_terminal(monkeypatch, encoding)
        assert main(["jobs", "list"]) == 0
        assert ESCAPED in read()

    @pytest.mark.parametrize("options", [(), ("--json",)])
    def test_predictions_are_printed(self, encoding, options, stub, monkeypatch):
        answer = {"index": 0, "job": "job_1", "label": NAME, "score": 0.9, "scores": {NAME: 0.9}}
        stub.on("POST", "/jobs/job_1/predict", document({"object": "list", "data": [answer]}))
        read = use_terminal(monkeypatch, encoding)
        assert main(["jobs", "predict", "job_1", "文", *options]) == 0
        shown = read()
        if options:
            assert json.loads(shown)["data"] == [answer]
        else:
            assert ESCAPED in shown

    def test_a_heat_map_is_drawn(self, encoding, stub, heads, monkeypatch):
        stub.on("GET", "/jobs/job_1/heads", document(heads))
        read = use_terminal(monkeypatch, encoding)
        assert main(["jobs", "heads", "job_1"]) == 0
        assert "4 of 6 heads" in read()
