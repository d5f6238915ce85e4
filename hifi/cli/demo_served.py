"""The demo with a service: posted, followed, fetched and asked for answers by commands alone."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from hifi.cli import output
from hifi.cli.demo_story import (
    DELTA,
    KINDS,
    MODEL,
    SECOND_TASK,
    TASK,
    DemoError,
    prove,
    prove_answers,
    say,
    show_command,
)

_HIFI = (sys.executable, "-m", "hifi.cli")
_READY = re.compile(r"^HiFi is ready at (\S+)", re.MULTILINE)
_START_SECONDS = 300.0  # the first start compiles every module of torch and transformers
_STOP_SECONDS = 90.0
# Of the user's settings the demo's own service follows these alone.
_ASKED = 4  # sentences, each by both tasks
_KEPT_SETTINGS = ("HIFI_DEBUG", "HIFI_LOG_FORMAT", "HIFI_MODELS")


def demonstrate(folder: Path, *, model: str, url: str | None) -> dict[str, Any]:
    """Serve, push, submit, follow, download, merge, prove what was promised; then mix two tasks.

    Args:
        folder: with the data set; everything else is put there too.
        model: the backbone's name; with a service of the demo's own also its folder.
        url: of a running service; None for one of the demo's own, which ends with it.

    Returns:
        The metrics of the tuned model.

    Raises:
        DemoError: a command failed, or a promise is broken.
    """
    if url is not None:
        return _tell(_Commands({**os.environ, "HIFI_URL": url}), folder, model=model, source=model)
    home = folder / "service"
    name = _place_backbone(model, home)
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("HIFI_") or k in _KEPT_SETTINGS},
        "HIFI_DEVICE": "cpu",  # which the proof computes on
        "HIFI_HOME": str(home),
    }
    if name != model:
        environment["HIFI_MODELS"] = str(home / "models")
    with _served(environment, log=folder / "serve.log") as own_url:
        commands = _Commands({**environment, "HIFI_URL": own_url})
        return _tell(commands, folder, model=name, source=model)


def _place_backbone(model: str, home: Path) -> str:
    """Put a backbone that is a folder where the service looks for some; give its name there."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    models = home / "models"
    models.mkdir(parents=True)
    (models / folder.absolute().name).symlink_to(folder.absolute(), target_is_directory=True)
    return folder.absolute().name


@contextlib.contextmanager
def _served(environment: Mapping[str, str], *, log: Path) -> Iterator[str]:
    """Run ``hifi serve`` for the time of a block, and give its URL.

    Raises:
        DemoError: it does not start.
    """
    arguments = ("serve", "--home", environment["HIFI_HOME"], "--port", "0")
    show_command(*arguments)
    with log.open("w", encoding="utf-8") as messages:
        process = subprocess.Popen(  # noqa: S603 - this program itself
            [*_HIFI, *arguments],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=messages,
            stderr=messages,
            process_group=0,  # Ctrl-C is ours: we stop it in order
        )
    before = signal.signal(signal.SIGTERM, _end_in_order)
    try:
        url = _wait_until_ready(process, log=log)
        say(f"HiFi is ready at {url}")
        yield url
        say("\nThe service hands back what it has, and ends.")
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        signal.signal(signal.SIGTERM, before)


def _end_in_order(number: int, _frame: FrameType | None) -> NoReturn:
    """End by way of every ``finally``: a service of which nobody knows must not stay behind."""
    raise SystemExit(128 + number)


def _wait_until_ready(process: subprocess.Popen[bytes], *, log: Path) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        ready = _READY.search(log.read_text(encoding="utf-8", errors="replace"))
        if ready is not None:
            return ready[1]
        time.sleep(0.1)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    end = "ended" if process.poll() is not None else f"was not ready in {_START_SECONDS:.0f} s"
    raise DemoError(f"`hifi serve` {end}: {' / '.join(lines[-5:]) or 'it said nothing'}")


class _Commands:
    """Runs ``hifi`` commands as a user's shell would.

    Args:
        environment: says which service they ask.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)

    def run(self, *arguments: str) -> None:
        """Show a command and run it; its output is the demo's.

        Raises:
            DemoError: it failed.
        """
        show_command(*arguments)
        self._call(arguments, stdout=sys.stdout.fileno())

    def run_and_read(self, *arguments: str) -> str:
        """Show a command and run it; show what it prints, and give that.

        Raises:
            DemoError: it failed.
        """
        show_command(*arguments)
        printed = self._call(arguments, stdout=subprocess.PIPE).decode()
        say(printed.rstrip())
        return printed

    def look_up(self, *arguments: str) -> dict[str, Any]:
        """Give the document that a command prints with ``--json``, without a word about it.

        Raises:
            DemoError: it failed.
        """
        document: dict[str, Any] = json.loads(
            self._call((*arguments, "--json"), stdout=subprocess.PIPE)
        )
        return document

    def _call(self, arguments: tuple[str, ...], *, stdout: int) -> bytes:
        done = subprocess.run(  # noqa: S603 - this program itself
            [*_HIFI, *arguments], env=self._environment, stdout=stdout, check=False
        )
        if done.returncode == output.EXIT_INTERRUPTED:
            raise KeyboardInterrupt
        if done.returncode != output.EXIT_OK:
            name = " ".join(arguments[: 1 if arguments[1].startswith("-") else 2])
            raise DemoError(f"`hifi {name}` failed (exit code {done.returncode}), as told above")
        return done.stdout or b""


def _tell(commands: _Commands, folder: Path, *, model: str, source: str) -> dict[str, Any]:
    """Run the commands of one job, from its data to the proof, and mix it with a second one.

    Args:
        commands: of a service.
        folder: with the data sets.
        model: the backbone's name in the service.
        source: its name or folder here.
    """
    job = _run_job(commands, folder, *TASK, model=model, name="libraries")
    metrics: dict[str, Any] = job["result"]["metrics"]
    commands.run("jobs", "heads", job["id"])
    delta = str(folder / DELTA)
    downloaded = commands.run_and_read("jobs", "download", job["id"], "--out", delta)
    _check_download(folder / DELTA, downloaded, job)
    backbone = () if source == MODEL else ("--model", source)
    commands.run("merge", "--delta", delta, *backbone, "--out", str(folder / "merged"))
    prove(folder, model=source, metrics=metrics)
    say(
        "\nA second task on the same backbone: does such a sentence describe a class or a function?"
    )
    other = _run_job(commands, folder / KINDS, *SECOND_TASK, model=model, name=KINDS)
    _ask_both(commands, folder, jobs=(job["id"], other["id"]))
    return metrics


def _run_job(commands: _Commands, data: Path, *task: str, model: str, name: str) -> dict[str, Any]:
    """Push a data set, post a job, and follow it to its end; give the job."""
    train, validation = (str(data / f"{split}.jsonl") for split in ("train", "validation"))
    pushed = commands.run_and_read(
        "datasets", "push", train, "--validation", validation, "--name", name
    )
    submitted = commands.run_and_read(
        *("jobs", "submit", "--model", model, "--dataset", _identifier("ds", pushed), *task),
        *("--name", name, "--watch"),
    )
    return commands.look_up("jobs", "show", _identifier("job", submitted))


def _ask_both(commands: _Commands, folder: Path, *, jobs: tuple[str, str]) -> None:
    """Ask for answers of both jobs in one batch, and compare the first job's with its merged model.

    Raises:
        DemoError: they differ, or there is none.
    """
    lines = (folder / "validation.jsonl").read_text(encoding="utf-8").splitlines()[:_ASKED]
    texts = [json.loads(line)["text"] for line in lines]
    mixed = folder / "mixed.jsonl"
    asked = [{"job": job, "input": {"text": text}} for text in texts for job in jobs]
    mixed.write_text("".join(f"{json.dumps(row)}\n" for row in asked), encoding="utf-8")
    say("\nBoth tasks in one batch, over one backbone in memory:")
    commands.run("jobs", "predict", "--file", str(mixed))
    document = commands.look_up("jobs", "predict", "--file", str(mixed))
    answers = [row.get("label") for row in document["data"] if row["job"] == jobs[0]]
    prove_answers(folder, texts=texts, answers=answers)


def _identifier(kind: str, printed: str) -> str:
    """Find the identifier in what a command has printed."""
    found = re.search(rf"\b{kind}_[a-z0-9]{{24}}\b", printed)
    if found is None:
        raise DemoError(f"the command printed no {kind}_… identifier")
    return found[0]


def _check_download(path: Path, downloaded: str, job: Mapping[str, Any]) -> None:
    """Compare the file with what the command and the job say of it.

    Raises:
        DemoError: it is another.
    """
    found = output.describe_file(path)["sha256"]
    if found not in downloaded or found != job["artifact"]["sha256"]:
        raise DemoError(
            f"{path} has the sha256 {found}, the job says {job['artifact']['sha256']}, the command "
            f"said: {downloaded}"
        )
    say(f"{path.name}: sha256 {found}, as the job says.")
