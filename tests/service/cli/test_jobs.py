"""``hifi jobs``: the requests sent, the output, and the exit codes."""

from __future__ import annotations

import hashlib
import json
import re

import pytest

from hifi.cli import main
from service.cli import jobs
from store.states import JobStatus
from tests.service.stub_server import document, event_stream, problem, reply

SUBMIT = ["jobs", "submit", "--model", "all-MiniLM-L6-v2", "--dataset", "ds_1"]


def posted(stub):
    (asked,) = (asked for asked in stub.asked if asked.method == "POST")
    return asked.json


def page(*items, more=False):
    ends = {"first_id": items[0]["id"], "last_id": items[-1]["id"]} if items else {}
    return {"object": "list", "data": list(items), "has_more": more, **ends}


def stream_of(*events):
    """Format events as the server streams them; each is (type, data)."""
    return event_stream(
        *(
            f"id: evt_1_{number}\ndata: "
            + json.dumps(
                {
                    "id": f"evt_1_{number}",
                    "type": kind,
                    "message": f"told {number}",
                    "level": "info",
                    "created_at": "2026-01-01T00:00:00Z",
                    "data": data,
                }
            )
            + "\n\n"
            for number, (kind, data) in enumerate(events, start=1)
        )
    )


class TestSubmit:
    @pytest.mark.parametrize("value", ["nan", "inf"])
    def test_a_number_that_is_none_is_one_line(self, stub, value, capsys):
        assert main([*SUBMIT, "--learning-rate", value]) == 1
        err = capsys.readouterr().err
        assert f"training.learning_rate={value} is not allowed" in err
        assert "bug" not in err
        assert stub.asked == []

    def test_a_job_may_have_a_time_limit(self, stub, job):
        stub.on("POST", "/jobs", document(job, status=202))
        assert main([*SUBMIT, "--max-seconds", "90"]) == 0
        assert posted(stub)["training"] == {"max_seconds": 90.0}

    def test_posts_only_the_given_fields(self, stub, job, capsys):
        stub.on("POST", "/jobs", document(job, status=202))
        assert main(SUBMIT) == 0
        assert posted(stub) == {"model": "all-MiniLM-L6-v2", "dataset": "ds_1"}
        captured = capsys.readouterr()
        assert "job_1" in captured.out
        assert "hifi jobs watch job_1" in captured.err

    @pytest.mark.parametrize(
        ("text", "rate"), [("auto", "auto"), ("3e-4", 3e-4), ("2", 2.0), ("fast", "fast")]
    )
    def test_posts_a_learning_rate_for_the_server_to_judge(self, stub, job, text, rate):
        stub.on("POST", "/jobs", document(job, status=202))
        assert main([*SUBMIT, "--learning-rate", text]) == 0
        assert posted(stub)["training"] == {"learning_rate": rate}

    def test_posts_a_preset_by_its_name(self, stub, job):
        stub.on("POST", "/jobs", document(job, status=202))
        assert main([*SUBMIT, "--preset", "paper"]) == 0
        assert posted(stub) == {"model": "all-MiniLM-L6-v2", "dataset": "ds_1", "preset": "paper"}

    def test_posts_every_option_in_its_place(self, stub, job):
        stub.on("POST", "/jobs", document(job, status=202))
        options = "--k 2 --xi 0.8 --d 0.7 --n-samples 9 --strategy mid-top --teleport uniform"
        task = "--task classification --text a b --label c --metric f1"
        training = "--epochs 1 --learning-rate 1e-3 --batch-size 8 --max-length 64 --seed 5"
        more = "--warmup-ratio 0.1 --weight-decay 0 --precision float32"
        last = (
            "--early-stopping-patience 2 --head-start keep --name mrpc --metadata team=search a=b=c"
            ' --class-weights {"c":3}'
        )
        assert main([*SUBMIT, *f"{options} {task} {training} {more} {last}".split()]) == 0
        assert posted(stub) == {
            "model": "all-MiniLM-L6-v2",
            "dataset": "ds_1",
            "k": 2,
            "xi": 0.8,
            "d": 0.7,
            "n_samples": 9,
            "strategy": "mid-top",
            "teleport": "uniform",
            "task": {"type": "classification", "text": ["a", "b"], "label": "c", "metric": "f1"},
            "training": {
                "epochs": 1,
                "learning_rate": 1e-3,
                "batch_size": 8,
                "max_length": 64,
                "warmup_ratio": 0.1,
                "weight_decay": 0.0,
                "seed": 5,
                "precision": "float32",
                "early_stopping_patience": 2,
                "head_start": "keep",
                "class_weights": {"c": 3},
            },
            "name": "mrpc",
            "metadata": {"team": "search", "a": "b=c"},
        }

    def test_takes_a_data_set_of_the_hub(self, stub, job):
        stub.on("POST", "/jobs", document(job, status=202))
        hub = ["--hub", "nyu-mll/glue", "--hub-config", "mrpc"]
        assert main(["jobs", "submit", "--model", "m", *hub]) == 0
        assert posted(stub)["dataset"] == {"hub": "nyu-mll/glue", "config": "mrpc"}

    def test_a_file_gives_the_spec_and_options_change_it(self, stub, job, tmp_path):
        stub.on("POST", "/jobs", document(job, status=202))
        spec = {"model": "m", "dataset": "ds_9", "k": 5, "training": {"epochs": 9, "seed": 1}}
        (tmp_path / "spec.json").write_text(json.dumps(spec))
        file = str(tmp_path / "spec.json")
        assert main(["jobs", "submit", "--spec", file, "--epochs", "1", "--k", "2"]) == 0
        assert posted(stub) == {**spec, "k": 2, "training": {"epochs": 1, "seed": 1}}

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["--dataset", "ds_1"], "no model: set --model"),
            (["--model", "m"], "no dataset: set --dataset or --hub"),
            (["--model", "m", "--hub-config", "mrpc"], "need --hub"),
            (["--spec", "{missing}"], "cannot read"),
            (["--spec", "{broken}"], "is not JSON"),
            (["--spec", "{list}"], "is not a JSON object"),
            (["--spec", "{odd}", "--epochs", "1"], "training in the --spec file"),
        ],
    )
    def test_an_invalid_spec_is_one_line(self, stub, arguments, told, tmp_path, capsys):
        texts = {"broken": "{", "list": "[]", "odd": '{"training": 3}'}
        names = {name: str(tmp_path / name) for name in ("missing", *texts)}
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
        command = ["jobs", "submit", *(argument.format(**names) for argument in arguments)]
        assert main(command) == 1
        err = capsys.readouterr().err
        assert err.startswith("hifi: error: ")
        assert told in err
        assert err.count("\n") == 1
        assert stub.asked == []

    def test_an_unknown_task_type_is_one_line(self, capsys):
        words = ["--model", "m", "--dataset", "ds_1", "--task", "translation"]
        assert main(["jobs", "submit", *words]) == 2
        err = capsys.readouterr().err
        assert err.startswith("hifi: error: --task: invalid choice: 'translation' (choose from ")
        assert err.count("\n") == 1

    def test_metadata_without_a_value_is_a_usage_error(self, capsys):
        assert main([*SUBMIT, "--metadata", "team"]) == 2
        assert "is not KEY=VALUE" in capsys.readouterr().err

    def test_a_refused_field_names_its_option(self, stub, capsys):
        refusal = problem(422, "invalid_request", "training.epochs: …", param="training.epochs")
        stub.on("POST", "/jobs", refusal)
        assert main([*SUBMIT, "--epochs", "0"]) == 1
        assert capsys.readouterr().err == "hifi: error: training.epochs: … (change --epochs)\n"
        stub.on("POST", "/jobs", problem(422, "task_not_supported", "no", param="task.type"))
        main(SUBMIT)
        main(SUBMIT)
        assert "(change --task)" in capsys.readouterr().err

    def test_a_missing_key_says_where_it_comes_from(self, stub, capsys):
        stub.on("POST", "/jobs", problem(401, "unauthorized", "a key is needed"))
        assert main(SUBMIT) == 1
        assert "set HIFI_API_KEY" in capsys.readouterr().err

    def test_a_fault_of_the_server_names_the_request(self, stub, capsys):
        stub.on("POST", "/jobs", problem(500, "internal_error", "it failed", x_request_id="r7"))
        assert main(SUBMIT) == 1
        assert capsys.readouterr().err == "hifi: error: it failed (request r7)\n"

    def test_a_dry_run_shows_the_estimate_and_stores_nothing(self, stub, job, capsys):
        estimate = {
            "object": "job.estimate",
            "trainable_parameters": 666820,
            "fraction": 0.0294,
            "artifact": {"bytes": {"float32": 2699088, "int8": 700000}},
            "steps": 72,
            "seconds": 65.0,
            "spec": job["spec"],
            "warnings": [
                {"code": "many_classes", "message": "many", "param": "task.label"},
                {"code": "task_head_replaced", "message": "replaced", "param": "model"},
            ],
        }
        unknown = {**estimate, **dict.fromkeys(("artifact", "trainable_parameters", "seconds"))}
        stub.on("POST", "/jobs", document(estimate), document(estimate), document(unknown))
        assert main([*SUBMIT, "--dry-run"]) == 0
        assert stub.asked[0].path == "/jobs?dry_run=true"
        assert capsys.readouterr().out.splitlines() == [
            "task      classification of text by label, metric accuracy",
            "trains    666,820 parameters with the task head, 2.94% of the model",
            "artifact  float32 2.70 MB  int8 700.00 kB",
            "steps     72",
            "time      about 1:05",
            "warnings  many (many_classes); replaced (task_head_replaced)",
        ]
        assert main([*SUBMIT, "--dry-run", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == estimate
        assert main([*SUBMIT, "--dry-run"]) == 0
        assert capsys.readouterr().out.count("unknown until") == 3

    def test_a_posted_job_shows_its_warnings(self, stub, job, capsys):
        warning = {"code": "rare_classes", "message": "one row of 'a'", "param": "task.label"}
        stub.on("POST", "/jobs", document({**job, "warnings": [warning]}, status=202))
        stub.on("GET", "/jobs/job_1", document({**job, "warnings": [warning]}))
        for arguments in (SUBMIT, ["jobs", "show", "job_1"]):
            assert main(arguments) == 0
            assert "warnings  one row of 'a' (rare_classes)" in capsys.readouterr().out

    def test_may_follow_the_job_to_its_end(self, stub, job, capsys):
        stub.on("POST", "/jobs", document({**job, "status": "queued"}, status=202))
        stub.on("GET", "/jobs/job_1", document(job))
        stub.on("GET", "/jobs/job_1/events", stream_of(("status", {"status": "succeeded"})))
        assert main([*SUBMIT, "--watch", "--json"]) == 0
        captured = capsys.readouterr()
        assert json.loads(captured.out) == job
        assert "posted job_1" in captured.err


class TestWatch:
    def follow(self, stub, job, *events):
        stub.on("GET", "/jobs/job_1", document(job))
        stub.on("GET", "/jobs/job_1/events", stream_of(*events))
        return main(["jobs", "watch", "job_1"])

    def test_shows_events_as_lines_and_the_result(self, stub, job, capsys):
        code = self.follow(
            stub,
            job,
            ("status", {"status": "training"}),
            ("metrics", {"step": 24, "loss": 1.2, "accuracy": 0.7344}),
            ("message", {}),
            ("status", {"status": "succeeded"}),
        )
        captured = capsys.readouterr()
        assert code == 0
        assert captured.err.splitlines() == [
            "training: told 1",
            "step 24  accuracy 0.7344  loss 1.2000",
            "told 3",
            "succeeded: told 4",
        ]
        assert "accuracy 0.7812  matthews no number  loss 0.8681  (step 72)" in captured.out
        rows = [line.split(maxsplit=1) for line in captured.out.splitlines()]
        assert ["probe", "accuracy 0.7760  loss 0.6512"] in rows
        assert "untuned" not in captured.out

    def test_a_failed_job_is_an_error_with_its_cause(self, stub, job, capsys):
        error = {"code": "out_of_memory", "message": "a smaller batch_size", "param": None}
        failed = {**job, "status": "failed", "result": None, "artifact": None, "error": error}
        assert self.follow(stub, failed, ("status", {"status": "failed"})) == 1
        err = capsys.readouterr().err.splitlines()[-1]
        told = "job job_1 failed: a smaller batch_size (out_of_memory)"
        assert err == f"hifi: error: {told}"

    def test_a_cancelled_job_is_no_success(self, stub, job):
        cancelled = {**job, "status": "cancelled"}
        assert self.follow(stub, cancelled, ("status", {"status": "cancelled"})) == 1

    @pytest.mark.usefixtures("stub")
    def test_ctrl_c_says_that_the_job_continues(self, monkeypatch, capsys):
        def interrupt(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr("service.client.resources.Watcher", interrupt)
        assert main(["jobs", "watch", "job_1"]) == 130
        assert "the job continues" in capsys.readouterr().err

    def test_json_is_the_job_alone(self, stub, job, capsys):
        stub.on("GET", "/jobs/job_1", document(job))
        stub.on("GET", "/jobs/job_1/events", stream_of(("status", {"status": "succeeded"})))
        assert main(["jobs", "watch", "job_1", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == job


class TestList:
    def test_is_a_table_and_names_the_next_page(self, stub, job, capsys, local_zone):
        local_zone("JST-9")
        running = {
            **job,
            "id": "job_2",
            "status": "training",
            "name": None,
            "finished_at": None,
            "progress": {**job["progress"], "phase": "training", "step": 3, "eta_seconds": 65.0},
        }
        stub.on("GET", "/jobs", document(page(running, job, more=True)))
        assert main(["jobs", "list", "--status", "training", "--limit", "2"]) == 0
        assert stub.asked[0].path == "/jobs?status=training&limit=2"
        captured = capsys.readouterr()
        header, first, second = captured.out.splitlines()
        assert header.split() == ["id", "status", "name", "model", "progress", "created"]
        assert "training 3/72 ETA 1:05" in first
        assert second.split() == [
            "job_1",
            "succeeded",
            "films",
            "all-MiniLM-L6-v2",
            "2026-01-02",
            "12:04:05",
            "JST",
        ]
        assert "--after job_1" in captured.err

    def test_an_empty_list_is_reported(self, stub, capsys):
        stub.on("GET", "/jobs", document(page()))
        assert main(["jobs", "list"]) == 0
        assert capsys.readouterr() == ("", "no jobs\n")

    def test_json_is_the_servers_document(self, stub, job, capsys):
        stub.on("GET", "/jobs", document(page(job)))
        assert main(["jobs", "list", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == page(job)

    def test_a_name_cannot_steer_the_terminal(self, stub, job, capsys):
        stub.on("GET", "/jobs", document(page({**job, "name": "\x1b[2Jgone"})))
        assert main(["jobs", "list"]) == 0
        assert "\x1b" not in capsys.readouterr().out


class TestMoves:
    @pytest.mark.parametrize("action", ["cancel", "pause", "resume"])
    def test_are_posted(self, stub, job, action, capsys):
        stub.on("POST", f"/jobs/job_1/{action}", document(job, status=202))
        assert main(["jobs", action, "job_1", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == job

    def test_a_wrong_state_is_one_line(self, stub, capsys):
        refusal = problem(409, "illegal_transition", "job job_1 is succeeded and cannot be paused")
        stub.on("POST", "/jobs/job_1/pause", refusal)
        assert main(["jobs", "pause", "job_1"]) == 1
        assert capsys.readouterr().err.startswith("hifi: error: job job_1 is succeeded")

    def test_delete(self, stub, capsys):
        stub.on("DELETE", "/jobs/job_1", reply(b"", status=204))
        assert main(["jobs", "delete", "job_1"]) == 0
        assert capsys.readouterr().out == "deleted  job_1\n"
        assert main(["jobs", "delete", "job_1", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["deleted"] is True


class TestShow:
    def test_shows_the_facts_of_a_job(self, stub, job, capsys):
        stub.on("GET", "/jobs/job_1", document(job))
        assert main(["jobs", "show", "job_1"]) == 0
        out = capsys.readouterr().out
        assert "classification of text by label, metric accuracy" in out
        assert "2 and the task head, 666,820 parameters" in out
        assert "a" * 64 in out
        assert "attempt" not in out
        assert "error" not in out

    def test_the_test_split_and_the_classes_are_shown(self, stub, job, capsys):
        scores = {"label": "cat", "precision": 0.5, "recall": 1.0, "f1": 2 / 3, "support": 1}
        job["result"] |= {
            "test": {"loss": 0.5, "accuracy": 0.75},
            "report": {
                "split": "test",
                "classes": 2,
                "per_class": [scores, {**scores, "label": "dog\x1b", "support": 3}],
                "confusion": [[1, 0], [1, 2]],
            },
        }
        stub.on("GET", "/jobs/job_1", document(job), document(job))
        assert main(["jobs", "show", "job_1"]) == 0
        out = capsys.readouterr().out
        assert "\ntest      accuracy 0.7500  loss 0.5000\n" in out
        assert out.endswith(
            "\n\ntest split, 4 rows, 2 classes; the columns after rows: predicted as\n"
            "true class  precision  recall  f1      rows  cat  dog?\n"
            "cat         0.5000     1.0000  0.6667  1     1    0\n"
            "dog?        0.5000     1.0000  0.6667  3     1    2\n"
        )
        assert main(["jobs", "show", "job_1", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == job

    def test_an_earlier_server_sends_no_yardsticks(self, stub, job, capsys):
        del job["result"]["yardsticks"]
        stub.on("GET", "/jobs/job_1", document(job))
        assert main(["jobs", "show", "job_1"]) == 0
        assert "accuracy 0.7812" in capsys.readouterr().out

    def test_json(self, stub, job, capsys):
        stub.on("GET", "/jobs/job_1", document(job))
        assert main(["jobs", "show", "job_1", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == job


class TestHeads:
    def test_draws_the_map_as_tune_does(self, stub, heads, capsys):
        stub.on("GET", "/jobs/job_1/heads", document(heads))
        assert main(["jobs", "heads", "job_1"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "layer 1 [20.0]  0.0 [60.0]"
        assert lines[1] == "layer 0 [50.0][30.0] 20.0 "
        assert lines[2].split() == ["head", "0", "1", "2"]
        assert any("4 of 6 heads" in line for line in lines)

    def test_draws_another_score_above_the_papers_and_names_the_budget(self, stub, heads, capsys):
        layers = [{**layer, "values": [3.0, 1.0, 0.0]} for layer in heads["layers"]]
        changes = {"score": "gradient", "k": None, "budget": 4, "layers": layers}
        stub.on("GET", "/jobs/job_1/heads", document({**heads, **changes}))
        assert main(["jobs", "heads", "job_1"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[:2] == [
            "score gradient, its shares of the model",
            "layer 1 [37.5] 12.5 [ 0.0]",
        ]
        assert "layer 1 [20.0]  0.0 [60.0]" in lines
        assert any("gradient, budget 4, xi 0.9" in line for line in lines)

    def test_of_an_earlier_server_are_the_papers(self, stub, heads, capsys):
        del heads["score"], heads["budget"]
        stub.on("GET", "/jobs/job_1/heads", document(heads))
        assert main(["jobs", "heads", "job_1"]) == 0
        assert "pagerank, k 2, xi 0.9" in capsys.readouterr().out

    def test_json(self, stub, heads, capsys):
        stub.on("GET", "/jobs/job_1/heads", document(heads))
        assert main(["jobs", "heads", "job_1", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == heads

    def test_too_early_is_one_line(self, stub, capsys):
        stub.on("GET", "/jobs/job_1/heads", problem(409, "not_ready", "the job is validating"))
        assert main(["jobs", "heads", "job_1"]) == 1
        assert capsys.readouterr().err == "hifi: error: the job is validating\n"


class TestDownload:
    BODY = b"delta" * 100
    SHA256 = hashlib.sha256(BODY).hexdigest()

    @pytest.fixture
    def out(self, tmp_path):
        return tmp_path / "file"

    @pytest.mark.parametrize(
        ("arguments", "path"),
        [
            ("", "/jobs/job_1/heads/delta?encoding=float32"),
            ("--encoding int8", "/jobs/job_1/heads/delta?encoding=int8"),
            ("--lora", "/jobs/job_1/heads/lora"),
            ("--merged", "/jobs/job_1/merged"),
        ],
    )
    def test_writes_what_was_asked_for(self, stub, arguments, path, out, capsys):
        stub.on("GET", path.partition("?")[0], reply(self.BODY, etag=f'"{self.SHA256}"'))
        assert (
            main(["jobs", "download", "job_1", *arguments.split(), "--out", str(out), "--json"])
            == 0
        )
        assert stub.asked[0].path == path
        assert out.read_bytes() == self.BODY
        assert json.loads(capsys.readouterr().out) == {
            "object": "download",
            "job": "job_1",
            "path": str(out),
            "encoding": re.split("[/=]", path)[-1],
            "bytes": len(self.BODY),
            "sha256": self.SHA256,
        }

    def test_a_damaged_file_is_an_error(self, stub, tmp_path, capsys):
        stub.on("GET", "/jobs/job_1/heads/delta", reply(b"other", etag=f'"{self.SHA256}"'))
        assert main(["jobs", "download", "job_1", "--out", str(tmp_path / "x")]) == 1
        assert self.SHA256 in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_one_thing_at_a_time(self, tmp_path):
        command = ["jobs", "download", "job_1", "--lora", "--merged", "--out", str(tmp_path / "x")]
        assert main(command) == 2


class TestHelp:
    @pytest.mark.parametrize(
        "action",
        [
            *("submit", "list", "show", "watch", "cancel", "pause", "resume"),
            *("heads", "download", "delete", "predict"),
        ],
    )
    def test_every_action_has_one(self, action, capsys):
        assert main(["jobs", action, "--help"]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"usage: hifi jobs {action}")
        assert "--url" in out

    def test_choices_are_those_of_the_server(self):
        assert set(jobs.STATUSES) == set(JobStatus)
