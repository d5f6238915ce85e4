"""``hifi demo``: its checks pass, or it names the one that failed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile

import pytest
import torch

from hifi.cli import demo, main
from hifi.cli.docstrings import find_names

LOCAL = ("tune", "inspect", "merge", "export-lora")
SERVED = (
    *("datasets push", "jobs submit", "jobs heads", "jobs download", "merge"),
    *("datasets push", "jobs submit", "datasets push", "jobs submit", "jobs predict"),
)

# Plays `hifi`: keeps what it was called with, and answers from a folder.
DATASET, JOB = f"ds_{'d' * 24}", f"job_{'j' * 24}"
FAKE = """
import json, os, pathlib, shutil, signal, sys, time
folder = pathlib.Path(__file__).parent
arguments = sys.argv[1:]
named = {name: value for name, value in os.environ.items() if name.startswith("HIFI_")}
with (folder / "calls.jsonl").open("a") as file:
    print(json.dumps([arguments, named]), file=file)
name = "-".join(word for word in arguments[:2] if not word.startswith("-"))
if (folder / f"{name}.ends-the-demo").exists():
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(60)
if (folder / f"{name}.fails").exists():
    print("it will not", file=sys.stderr)
    sys.exit(1)
if name == "serve":
    def stop(*_):
        (folder / "stopped").touch()
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    print("HiFi is ready at http://127.0.0.1:9 (the dashboard)", flush=True)
    while True:
        time.sleep(60)
if name == "jobs-download":
    shutil.copy(folder / "libraries.safetensors", arguments[arguments.index("--out") + 1])
if name == "merge":
    shutil.copytree(folder / "merged", arguments[arguments.index("--out") + 1])
    sys.exit(0)
print((folder / f"{name}.out").read_text())
"""


@pytest.fixture(autouse=True)
def environment():
    """Restore the environment variables that the demo sets for its commands."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module", autouse=True)
def small(backbone):
    """Let the demo use a tiny backbone and few rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "_MODEL", str(backbone))
        patch.setattr(demo, "_ROWS_PER_LIBRARY", 10)
        yield


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Run the local demo; return its folder."""
    folder = tmp_path_factory.mktemp("demo") / "here"
    assert main(["demo", "--local", "--dir", str(folder)]) == 0
    return folder


class TestLocal:
    def test_shows_the_commands_and_keeps_both_promises(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert main(["demo", "--local", "--dir", "demo"]) == 0
        out = capsys.readouterr().out
        assert f"$ cd {tmp_path / 'demo'}\n" in out
        assert "All files are in demo\n" in out
        assert tuple(re.findall(r"^\$ hifi (\S+)", out, re.MULTILINE)) == LOCAL
        assert ", the same as the tuned model" in out
        assert "bit for bit" in out

    @pytest.mark.usefixtures("minilm_path")
    def test_runs_with_its_own_backbone(self, tmp_path, monkeypatch):
        monkeypatch.setattr(demo, "_MODEL", "all-MiniLM-L6-v2")
        monkeypatch.setattr(demo, "_ROWS_PER_LIBRARY", 15)
        assert main(["demo", "--local", "--dir", str(tmp_path / "demo")]) == 0

    def test_json_is_one_document_and_the_rest_goes_to_stderr(self, backbone, tmp_path, capfd):
        folder = tmp_path / "demo"
        assert main(["demo", "--local", "--dir", str(folder), "--json"]) == 0
        captured = capfd.readouterr()
        document = json.loads(captured.out)
        assert document.pop("seconds") > 0
        tuned = json.loads((folder / "tune.json").read_text(encoding="utf-8"))
        assert document == {
            "object": "demo",
            "path": str(folder),
            "model": str(backbone),
            "is_local": True,
            "rows": {"train": 32, "validation": 8},
            "metrics": tuned["result"]["metrics"],
        }
        assert tuple(re.findall(r"^\$ hifi (\S+)", captured.err, re.MULTILINE)) == LOCAL
        assert "task head " in captured.err  # what `hifi inspect` printed

    def test_tunes_on_the_device_it_measures_on(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        assert main(["demo", "--local"]) == 0

    def test_keeps_all_files_in_the_given_folder(self, ran):
        assert {path.name for path in ran.iterdir()} == {
            "libraries.safetensors",
            "lora",
            "merged",
            "train.jsonl",
            "tune.json",
            "validation.jsonl",
        }

    def test_a_different_merged_model_fails(self, monkeypatch, capsys):
        monkeypatch.setattr(demo, "predict_labels", lambda _, texts: dict.fromkeys(texts, "no"))
        assert main(["demo", "--local"]) == 1
        assert "the merged model's accuracy is" in capsys.readouterr().err

    def test_a_failing_command_stops_it(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(demo, "_MODEL", str(tmp_path))
        assert main(["demo", "--local"]) == 1
        err = capsys.readouterr().err
        assert "`hifi tune` failed (exit code 1)" in err.splitlines()[-1]


class TestFolder:
    def test_a_temporary_one_is_removed(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        assert main(["demo", "--local", "--json"]) == 0
        assert list(tmp_path.iterdir()) == []
        assert json.loads(capsys.readouterr().out)["path"] is None

    def test_refuses_one_with_something_in_it(self, tmp_path, capsys):
        (tmp_path / "note.txt").write_text("mine")
        assert main(["demo", "--dir", str(tmp_path)]) == 1
        assert "is not empty" in capsys.readouterr().err


class Fake:
    """Stand-ins for the commands that the demo calls; they record their arguments."""

    def __init__(self, folder, ran):
        self.folder = folder
        tuned = json.loads((ran / "tune.json").read_text(encoding="utf-8"))
        (folder / "libraries.safetensors").write_bytes((ran / "libraries.safetensors").read_bytes())
        (folder / "merged").symlink_to(ran / "merged")
        artifact = {"sha256": tuned["artifact"]["sha256"]}
        job = {
            "id": JOB,
            "status": "succeeded",
            "result": tuned["result"],
            "artifact": artifact,
        }
        self.say("datasets-push", f"id  {DATASET}")
        self.say("jobs-submit", f"id  {JOB}")
        self.say("datasets-list", {"object": "list", "data": [{"id": DATASET}]})
        self.say("jobs-list", {"object": "list", "data": [job]})
        self.say("jobs-heads", "a heat map")
        self.say("jobs-download", f"sha256  {artifact['sha256']}")
        lines = (ran / "validation.jsonl").read_text(encoding="utf-8").splitlines()
        texts = [json.loads(line)["text"] for line in lines]
        asked = sorted(texts, key=lambda text: -len(find_names(text)))[:4]
        labels = demo.predict_labels(ran / "merged", texts)
        self.labels = [labels[text] for text in asked]
        self.answer(self.labels)

    def answer(self, labels):
        """Answer each text for the first task, and with something else for another one."""
        answers = [
            {"answers": [{"job": JOB, "label": label}, {"job": "job_other", "value": 1.0}]}
            for label in labels
        ]
        self.say("jobs-predict", {"object": "list", "data": answers})

    def say(self, name, document):
        (self.folder / f"{name}.out").write_text(json.dumps(document))

    def fail(self, name):
        (self.folder / f"{name}.fails").touch()

    def calls(self):
        """Return the calls: arguments and the settings in the environment."""
        lines = (self.folder / "calls.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    @property
    def was_stopped(self):
        return (self.folder / "stopped").exists()


@pytest.fixture
def fake(ran, tmp_path, monkeypatch):
    folder = tmp_path / "fake"
    folder.mkdir()
    (folder / "played.py").write_text(FAKE)
    played = (sys.executable, str(folder / "played.py"))

    def run(arguments):
        done = subprocess.run([*played, *arguments], capture_output=True, text=True, check=False)
        sys.stdout.write(done.stdout)
        sys.stderr.write(done.stderr)
        return done.returncode

    monkeypatch.setattr(demo, "_HIFI", played)
    monkeypatch.setattr(demo, "main", run)
    return Fake(folder, ran)


@pytest.fixture
def arguments(tmp_path):
    """Return the arguments of a served demo."""
    return ["demo", "--dir", str(tmp_path / "demo")]


@pytest.mark.process
class TestServed:
    def test_shows_the_commands_and_keeps_its_promises(self, fake, arguments, tmp_path, capfd):
        assert main(arguments) == 0
        out = capfd.readouterr().out
        shown = re.findall(r"^\$ hifi ([a-z]+(?: [a-z]+)?)", out, re.MULTILINE)
        assert tuple(shown) == ("serve", *SERVED)
        assert "HiFi is ready at http://127.0.0.1:9\n" in out
        assert "a heat map" in out
        assert DATASET in out
        assert ", as in the job." in out
        assert ", the same as the tuned model" in out
        assert "bit for bit" in out
        assert "The merged model returns the same labels for the first task" in out
        assert fake.was_stopped
        made = {"libraries.safetensors", "merged", "serve.log", "names", "asked.jsonl"}
        assert {path.name for path in (tmp_path / "demo").iterdir()} > made

    def test_its_service_ignores_the_users_settings(self, fake, arguments, monkeypatch):
        monkeypatch.setenv("HIFI_AUTH", "keys")
        monkeypatch.setenv("HIFI_DATABASE_URL", "postgresql://production/hifi")
        monkeypatch.setenv("HIFI_URL", "http://production:8000")
        assert main(arguments) == 0
        serve, *others = fake.calls()
        assert serve[0] == ["serve", "--home", "service", "--port", "0"]
        assert serve[1] == {"HIFI_DEVICE": "cpu"}
        assert {named["HIFI_URL"] for _, named in others} == {"http://127.0.0.1:9"}

    def test_json_is_one_document(self, fake, arguments, capfd):
        assert main([*arguments, "--json"]) == 0
        captured = capfd.readouterr()
        document = json.loads(captured.out)
        assert (document["object"], document["is_local"]) == ("demo", False)
        assert "a heat map" in captured.err
        assert fake.was_stopped

    @pytest.mark.parametrize("name", ["datasets-push", "jobs-submit", "jobs-list", "jobs-download"])
    def test_a_failing_command_stops_it_and_the_service(self, fake, arguments, name, capfd):
        fake.fail(name)
        assert main(arguments) == 1
        err = capfd.readouterr().err.splitlines()
        assert "it will not" in err
        assert f"`hifi {name.replace('-', ' ')}` failed (exit code 1)" in err[-1]
        assert fake.was_stopped

    def test_a_signal_stops_its_service_too(self, fake, arguments):
        before = signal.getsignal(signal.SIGTERM)
        (fake.folder / "jobs-submit.ends-the-demo").touch()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 128 + signal.SIGTERM
        assert fake.was_stopped
        assert signal.getsignal(signal.SIGTERM) is before

    def test_a_service_that_does_not_start_is_reported_with_its_last_output(
        self, fake, arguments, capfd
    ):
        fake.fail("serve")
        assert main(arguments) == 1
        assert "`hifi serve` ended: it will not" in capfd.readouterr().err

    def test_a_file_that_differs_from_the_jobs_fails(self, fake, arguments, capfd):
        jobs = json.loads((fake.folder / "jobs-list.out").read_text())
        jobs["data"][0]["artifact"]["sha256"] = "0" * 64
        fake.say("jobs-list", jobs)
        assert main(arguments) == 1
        assert "0" * 64 in capfd.readouterr().err
        assert fake.was_stopped

    def test_a_different_merged_model_fails(self, fake, arguments, capfd):
        jobs = json.loads((fake.folder / "jobs-list.out").read_text())
        jobs["data"][0]["result"]["metrics"]["accuracy"] += 0.1
        fake.say("jobs-list", jobs)
        assert main(arguments) == 1
        assert "the merged model's accuracy is" in capfd.readouterr().err

    @pytest.mark.parametrize("wrong", ["another label", None])
    def test_different_answers_of_the_service_fail(self, fake, arguments, wrong, capfd):
        fake.answer([*fake.labels[:-1], wrong])
        assert main(arguments) == 1
        assert "the service answered" in capfd.readouterr().err
        assert fake.was_stopped

    def test_every_sentence_is_sent_to_all_tasks(self, fake, arguments, tmp_path):
        assert main(arguments) == 0
        lines = (tmp_path / "demo" / "asked.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["jobs"] for line in lines] == [[JOB] * 3] * 4
        pushed = [call[0][2] for call in fake.calls() if call[0][:2] == ["datasets", "push"]]
        assert pushed == ["train.jsonl", "names/train.jsonl", "length/train.jsonl"]
