"""The commands against the real gateway: they accept its documents."""

from __future__ import annotations

import json
import logging
import threading

import pytest
import structlog

from hifi.cli import main
from service.app import build_app
from service.client import Client
from store.database.connection import Database
from store.jobs.actions import cancel
from tests.service.gateways import CSV, MODEL, finished_job, served
from tests.service.predictors import Predictor

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("database")]


@pytest.fixture
def url(settings, alice, monkeypatch):
    """Serve a gateway; configure the commands to use it as a tenant."""
    # Its logs would go to the commands' stdout, since both are one process here.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with served(build_app(settings)) as url:
        monkeypatch.setenv("HIFI_URL", url)
        monkeypatch.setenv("HIFI_API_KEY", alice.secret)
        yield url


@pytest.fixture
def ask(url, capsys):
    """Return a function that runs a command with --json and returns its document."""

    def run(*arguments, code=0):
        assert main([*arguments, "--json"]) == code
        return json.loads(capsys.readouterr().out)

    assert url
    return run


@pytest.fixture
def dataset(ask, tmp_path):
    """Push a data set."""
    (tmp_path / "train.csv").write_bytes(CSV)
    return ask("datasets", "push", str(tmp_path / "train.csv"), "--name", "rows")


class TestDatasets:
    def test_push_list_show_delete(self, ask, dataset, capsys):
        assert (dataset["name"], dataset["splits"]) == ("rows", {"train": {"rows": 8}})
        assert ask("datasets", "list")["data"] == [dataset]
        assert ask("datasets", "show", dataset["id"]) == dataset
        assert main(["datasets", "list"]) == 0
        assert "train 8" in capsys.readouterr().out
        ask("datasets", "delete", dataset["id"])
        assert ask("datasets", "list")["data"] == []

    def test_push_a_json_list(self, ask, tmp_path):
        rows = [{"text": f"text {row}", "label": row % 2} for row in range(8)]
        (tmp_path / "train.json").write_text(json.dumps(rows, indent=2))
        document = ask("datasets", "push", str(tmp_path / "train.json"))
        assert document["splits"] == {"train": {"rows": 8}}

    def test_a_bad_row_is_named(self, url, tmp_path, capsys):
        (tmp_path / "train.jsonl").write_text('{"text": "a", "label": 0}\n{"text": \n')
        assert main(["datasets", "push", str(tmp_path / "train.jsonl"), "--url", url]) == 1
        assert "row 2" in capsys.readouterr().err


class TestModels:
    def test_list(self, ask, capsys):
        (backbone,) = ask("models", "list")["data"]
        assert backbone["id"] == MODEL
        assert main(["models", "list"]) == 0
        assert "22,713,216" in capsys.readouterr().out


class TestJobs:
    @pytest.fixture
    def submit(self, dataset):
        return ("jobs", "submit", "--model", MODEL, "--dataset", dataset["id"])

    def test_a_dry_run_stores_nothing(self, ask, submit, capsys):
        estimate = ask(*submit, "--dry-run")
        assert estimate["trainable_parameters"] > 0
        assert main([*submit, "--dry-run"]) == 0
        assert f"{estimate['trainable_parameters']:,} parameters" in capsys.readouterr().out
        assert ask("jobs", "list")["data"] == []

    def test_submit_show_list_cancel_watch_delete(self, ask, submit, capsys):
        job = ask(*submit, "--epochs", "1", "--name", "films", "--metadata", "team=search")
        assert job["status"] == "queued"
        assert job["spec"]["training"]["epochs"] == 1
        assert job["metadata"] == {"team": "search"}
        assert ask("jobs", "show", job["id"]) == job
        assert ask("jobs", "list", "--status", "queued")["data"] == [job]
        assert main(["jobs", "list"]) == 0
        assert "films" in capsys.readouterr().out
        assert main(["jobs", "heads", job["id"]]) == 1
        assert main(["jobs", "pause", job["id"]]) == 1
        capsys.readouterr()
        assert ask("jobs", "cancel", job["id"])["status"] == "cancelled"
        assert main(["jobs", "watch", job["id"]]) == 1
        err = capsys.readouterr().err
        assert "cancelled: cancelled by its owner" in err
        assert err.splitlines()[-1] == f"hifi: error: job {job['id']} cancelled"
        assert ask("jobs", "delete", job["id"])["deleted"] is True
        assert main(["jobs", "show", job["id"]]) == 1

    def test_watch_shows_events_as_they_happen(self, ask, submit, url, alice, settings):
        job = ask(*submit)
        with Client(url, api_key=alice.secret) as client:
            events = client.jobs.watch(job["id"])
            assert next(events)["data"]["status"] == "queued"

            def end():
                database = Database(settings.database_url)
                with database.write() as session:
                    cancel(session, alice.tenant_id, job["id"])
                database.close()

            thread = threading.Timer(0.3, end)
            thread.start()
            assert [event["data"]["status"] for event in events] == ["cancelled"]
            thread.join()
            assert len(client.jobs.events(job["id"])["data"]) == 2

    def test_a_refusal_names_the_option(self, submit, capsys):
        capsys.readouterr()
        for options, told in (
            (["--k", "99"], "(change --k)"),
            (["--label", "kind"], "(change --label)"),
            (["--learning-rate", "7"], "(change --learning-rate)"),
            (["--task", "image-classification"], "hifi: error: "),
        ):
            assert main([*submit, *options]) == 1
            err = capsys.readouterr().err
            assert told in err
            assert err.count("\n") == 1

    def test_three_text_columns_are_a_question(self, ask, tmp_path, capsys):
        (tmp_path / "three.csv").write_text("a,b,c,label\nx,y,z,0\nx,y,z,1\n")
        dataset = ask("datasets", "push", str(tmp_path / "three.csv"))["id"]
        assert main(["jobs", "submit", "--model", MODEL, "--dataset", dataset]) == 1
        told = "3 columns hold texts; the columns are 'a', 'b', 'c', 'label': set task.text"
        assert capsys.readouterr().err == f"hifi: error: {told} (change --text)\n"

    def test_a_foreign_job_is_not_there(self, ask, submit, bob, monkeypatch, capsys):
        job = ask(*submit)
        monkeypatch.setenv("HIFI_API_KEY", bob.secret)
        for action in ("show", "watch", "cancel", "heads"):
            assert main(["jobs", action, job["id"]]) == 1
            assert f"there is no job '{job['id']}'" in capsys.readouterr().err

    def test_a_wrong_key_says_what_to_do(self, url, monkeypatch, capsys):
        monkeypatch.setenv("HIFI_API_KEY", "hifi_wrong")
        assert main(["jobs", "list", "--url", url]) == 1
        assert "set HIFI_API_KEY" in capsys.readouterr().err


class TestPredictions:
    @pytest.fixture
    def settings(self, settings):
        """Return settings with a fake inference process."""
        with served(Predictor().app) as url:
            yield settings.model_copy(update={"infer_url": url})

    @pytest.fixture
    def job_id(self, database, settings, alice):
        return finished_job(database, settings, alice)

    def test_predict(self, ask, job_id, capsys):
        document = ask("jobs", "predict", job_id, "a text", "number")
        assert [item["job"] for item in document["data"]] == [job_id] * 2
        assert (document["data"][0]["label"], document["data"][1]["value"]) == ("short", 1.5)
        assert main(["jobs", "predict", job_id, "a text"]) == 0
        assert "0.7500  a text" in capsys.readouterr().out

    def test_predict_for_many_jobs(self, ask, job_id, tmp_path, capsys):
        rows = [{"job": name, "input": {"text": "a"}} for name in (job_id, "job_0")] * 200
        (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        document = ask("jobs", "predict", "--file", str(tmp_path / "rows.jsonl"), code=1)
        assert ["label" in item for item in document["data"]] == [True, False] * 200
        assert document["data"][301]["error"]["param"] == "inputs.301.job"
        assert main(["jobs", "predict", "job_0", "a"]) == 1
        assert "there is no job 'job_0'" in capsys.readouterr().err

    def test_predict_what_the_job_cannot_read(self, ask, job_id, capsys):
        document = ask("jobs", "predict", job_id, "", "a text", code=1)
        assert document["data"][0]["error"]["param"] == "inputs.0.text"
        assert main(["jobs", "predict", job_id, ""]) == 1
        assert "row 1: text: " in capsys.readouterr().err
