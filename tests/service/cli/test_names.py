"""Names in place of ids: taken where one thing is meant."""

from __future__ import annotations

import pytest

from hifi.cli import main
from tests.service.stub_server import document, reply


def page(*ids, has_more=False):
    data = [{"id": identifier} for identifier in ids]
    return document({"object": "list", "data": data, "has_more": has_more})


class TestJobs:
    @pytest.mark.parametrize(
        ("words", "sent"),
        [
            (["show"], "GET /jobs/job_1"),
            (["cancel"], "POST /jobs/job_1/cancel"),
            (["pause"], "POST /jobs/job_1/pause"),
            (["resume"], "POST /jobs/job_1/resume"),
        ],
    )
    def test_a_name_stands_for_the_only_job_that_has_it(self, words, sent, stub, job):
        method, _, path = sent.partition(" ")
        stub.on("GET", "/jobs", page("job_1"))
        stub.on(method, path, document(job))
        assert main(["jobs", *words, "größe 1"]) == 0
        assert stub.paths() == ["GET /jobs?name=gr%C3%B6%C3%9Fe+1&limit=5", sent]

    def test_results_take_one(self, stub, heads, tmp_path):
        stub.on("GET", "/jobs", page("job_1"))
        stub.on("GET", "/jobs/job_1/heads", document(heads))
        stub.on("GET", "/jobs/job_1/heads/delta", reply(b"delta"))
        assert main(["jobs", "heads", "films"]) == 0
        assert main(["jobs", "download", "films", "--out", str(tmp_path / "delta")]) == 0
        assert (tmp_path / "delta").read_bytes() == b"delta"

    def test_an_id_is_not_looked_up(self, stub, job):
        stub.on("GET", "/jobs/job_1", document(job))
        assert main(["jobs", "show", "job_1"]) == 0
        assert stub.paths() == ["GET /jobs/job_1"]

    def test_a_name_of_several_lists_their_ids_and_changes_nothing(self, stub, capsys):
        stub.on("GET", "/jobs", page("job_1", "job_2", has_more=True))
        assert main(["jobs", "delete", "films"]) == 1
        told = "several jobs are named 'films': use an id (job_1, job_2, …)"
        assert capsys.readouterr().err == f"hifi: error: {told}\n"
        assert len(stub.asked) == 1

    def test_a_name_of_none_is_one_line(self, stub, capsys):
        stub.on("GET", "/jobs", page())
        assert main(["jobs", "watch", "films"]) == 1
        assert "no job has the id or the name 'films'" in capsys.readouterr().err

    def test_predictions_take_one(self, stub):
        answer = {"index": 0, "job": "job_1", "value": 1.5}
        stub.on("GET", "/jobs", page("job_1"))
        stub.on("POST", "/jobs/job_1/predict", document({"object": "list", "data": [answer]}))
        assert main(["jobs", "predict", "films", "a text"]) == 0

    def test_select_those_of_a_list(self, stub):
        stub.on("GET", "/jobs", page())
        assert main(["jobs", "list", "--name", "films"]) == 0
        assert stub.paths() == ["GET /jobs?name=films&limit=20"]


class TestDatasets:
    def test_a_name_stands_for_the_only_one_that_has_it(self, stub, dataset):
        stub.on("GET", "/datasets", page("ds_1"))
        stub.on("GET", "/datasets/ds_1", document(dataset))
        stub.on("DELETE", "/datasets/ds_1", reply(b"", status=204))
        assert main(["datasets", "show", "films"]) == 0
        assert main(["datasets", "delete", "films"]) == 0
        assert stub.paths()[1::2] == ["GET /datasets/ds_1", "DELETE /datasets/ds_1"]

    def test_a_name_of_several_deletes_nothing(self, stub, capsys):
        stub.on("GET", "/datasets", page("ds_1", "ds_2"))
        assert main(["datasets", "delete", "films"]) == 1
        assert "several data sets are named 'films'" in capsys.readouterr().err
        assert len(stub.asked) == 1
