"""``hifi demo``: one real job, run with the commands that a user would type."""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, chdir, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from hifi.cli import main, options, output
from hifi.cli.docstrings import LIBRARIES, build_data_set
from hifi.errors import HifiError

_HIFI = (sys.executable, "-m", "hifi.cli")
_START_SECONDS = 300.0  # the first start compiles every module of torch and transformers
_END_SECONDS = 90.0
_KEPT_SETTINGS = ("HIFI_DEBUG", "HIFI_LOG_FORMAT", "HIFI_MODELS")
_DELTA = "libraries.safetensors"
# In float32 on the CPU, so that the merged model can repeat the accuracy to the last digit.
_TASK = "--text text --label library --metric accuracy --precision float32 --learning-rate 1e-3"
_SECOND_TASK = "--text text --label kind --metric accuracy --epochs 2 --learning-rate 2e-3"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``hifi demo``."""
    parser.description = (
        "Run one real job, from data to merged model, without network: start a service, and use "
        "it with the commands that are shown."
    )
    add = parser.add_argument
    add("--dir", type=Path, metavar="DIR", help="a new folder for everything; it is kept")
    add("--keep", action="store_true", help="keep the temporary folder that is used without --dir")
    backbone = "the backbone (default: %(default)s, which `make install` installs)"
    add("--model", default="all-MiniLM-L6-v2", metavar="NAME", help=backbone)
    rows = "sentences of each library, at least 10 (default: %(default)s)"
    add("--rows", type=int, default=240, metavar="N", help=rows)
    add = parser.add_mutually_exclusive_group().add_argument
    add("--url", help="use a running service (its key: HIFI_API_KEY), start none")
    add("--local", action="store_true", help="without a service: the library's own commands")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Build a data set, run a job on it, and check what was promised."""
    with redirect_stdout(sys.stderr if args.json else sys.stdout):
        document = _demonstrate(args)
    if args.json:
        output.print_json(document)
    return output.EXIT_OK


def _demonstrate(args: argparse.Namespace) -> dict[str, Any]:
    started = time.perf_counter()
    if missing := [] if args.local or args.url else _missing_packages():
        _say(
            f"The service is not installed (there is no {', '.join(missing)}), so this is the "
            "library alone: pip install 'hifi[service]' brings the rest.\n"
        )
    is_local, is_kept = args.local or bool(missing), args.keep or args.dir is not None
    model = str(Path(args.model).absolute()) if Path(args.model).is_dir() else args.model
    if args.dir is not None:
        output.check_new_directory(args.dir)
        args.dir.mkdir(exist_ok=True)
    folder = args.dir or Path(tempfile.mkdtemp(prefix="hifi-demo-"))
    with ExitStack() as stack:
        if not is_kept:
            stack.callback(shutil.rmtree, folder)
        stack.enter_context(chdir(folder))
        rows = build_data_set(Path(), rows_per_library=args.rows, seed=0)
        _say(
            f"Which library does a docstring come from: {', '.join(LIBRARIES)}?\n"
            f"{rows['train']} sentences for training and {rows['validation']} for validation, from "
            f"what is installed here.\n\n$ cd {shlex.quote(str(folder.absolute()))}"
        )
        tell = _tell_locally if is_local else _tell_with_service
        metrics = tell(model, args)
    seconds = time.perf_counter() - started
    _say((f"Everything is in {folder}\n" if is_kept else "") + f"Done in {seconds:.0f} seconds.")
    return {
        "object": "demo",
        "path": str(folder) if is_kept else None,
        "model": args.model,
        "is_local": is_local,
        "rows": rows,
        "metrics": metrics,
        "seconds": seconds,
    }


def _missing_packages() -> list[str]:
    """List what the service needs and is not installed."""
    of_service = re.compile(r"([\w.-]+).*extra == ['\"]service['\"]")
    asked = map(of_service.match, importlib.metadata.requires("hifi") or ())
    installed = {d.name.lower().replace("_", "-") for d in importlib.metadata.distributions()}
    return [found[1] for found in asked if found and found[1] not in installed]


def _tell_locally(model: str, _: argparse.Namespace) -> dict[str, float]:
    _say("\nScore the heads, select the best and tune only these; a head delta holds the change:")
    data = "--train train.jsonl --validation validation.jsonl"
    tune = f"tune --model {shlex.quote(model)} {data} {_TASK} --device cpu --out {_DELTA} --json"
    _say(f"$ hifi {tune} > tune.json")
    Path("tune.json").write_text(_call(tune), encoding="utf-8")
    metrics: dict[str, float] = json.loads(Path("tune.json").read_bytes())["result"]["metrics"]
    _say(f"validation accuracy {metrics['accuracy']:.4f}")
    _show("What is in that file:", f"inspect {_DELTA}")
    _merge_and_prove(model, accuracy=metrics["accuracy"])
    adapter = f"export-lora --delta {_DELTA} --model {shlex.quote(model)} --out lora"
    _show("The same change as an adapter that PEFT loads:", adapter)
    return metrics


def _tell_with_service(model: str, args: argparse.Namespace) -> dict[str, float]:
    with _service(args.url, model) as name:
        job = _run_job(name, _TASK, data="", title="libraries")
        _show("The heads that it selected, in brackets:", f"jobs heads {job['id']}")
        download = f"jobs download {job['id']} --out {_DELTA}"
        printed = _show("Download the change, a head delta:", download)
        found, told = output.describe_file(Path(_DELTA))["sha256"], job["artifact"]["sha256"]
        if found != told or found not in printed:
            raise HifiError(f"the file's sha256 is {found}, the job's {told}; printed: {printed}")
        _say(f"{_DELTA}: sha256 {found}, as the job says.")
        metrics: dict[str, float] = job["result"]["metrics"]
        _merge_and_prove(model, accuracy=metrics["accuracy"])
        _say("\nA second task: does such a sentence describe a class or a function?")
        Path("kinds").mkdir()
        build_data_set(Path("kinds"), rows_per_library=args.rows, seed=0, label="kind")
        second = _run_job(name, _SECOND_TASK, data="kinds/", title="kinds")
        _ask_both(job["id"], second["id"])
    return metrics


@contextmanager
def _service(url: str | None, model: str) -> Iterator[str]:
    """Name a service to the commands, without a URL one of our own; yield its backbone's name."""
    if url is not None:
        os.environ["HIFI_URL"] = url
        yield model
        return
    home, source = Path("service").absolute(), Path(model)
    kept = {k: v for k, v in os.environ.items() if k[:5] != "HIFI_" or k in _KEPT_SETTINGS}
    environment = {**kept, "HIFI_DEVICE": "cpu", "HIFI_HOME": str(home)}
    if source.is_dir():
        (home / "models").mkdir(parents=True)
        (home / "models" / source.name).symlink_to(source)
        environment["HIFI_MODELS"] = str(home / "models")
    before = signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    serve = "serve --home service --port 0"
    _say(f"\nStart a service that keeps everything here:\n$ hifi {serve} 2> serve.log &")
    with (
        Path("serve.log").open("wb") as log,
        subprocess.Popen(  # noqa: S603 - this program itself
            [*_HIFI, *serve.split()],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            process_group=0,  # Ctrl-C is ours: we stop it in order
        ) as process,
    ):
        try:
            os.environ["HIFI_URL"] = _wait_for_url(process)
            _say(f"HiFi is ready at {os.environ['HIFI_URL']}")
            _say(f"$ export HIFI_URL={os.environ['HIFI_URL']}")
            yield source.name if source.is_dir() else model
            _say("\nThe service hands back what it has, and ends.")
        finally:
            process.terminate()
            signal.signal(signal.SIGTERM, before)
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_for_url(process: subprocess.Popen[bytes]) -> str:
    timer = threading.Timer(_START_SECONDS, process.terminate)
    timer.start()
    line = process.stdout.readline().decode() if process.stdout else ""
    timer.cancel()
    if ready := re.match(r"HiFi is ready at (\S+)", line):
        return ready[1]
    words = Path("serve.log").read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
    raise HifiError(f"`hifi serve` ended: {' / '.join(words) or 'it printed nothing'}")


def _run_job(model: str, task: str, *, data: str, title: str) -> dict[str, Any]:
    """Push a data set, post a job and watch it; return the job."""
    files = f"{data}train.jsonl --validation {data}validation.jsonl"
    pushed = _show("Upload the data set:", f"datasets push {files} --name {title}")
    job = f"--model {shlex.quote(model)} --dataset {_find('ds', pushed)} {task} --name {title}"
    what = "Post a job, which scores the heads, selects the best and tunes only these; watch it:"
    submitted = _show(what, f"jobs submit {job} --watch")
    document: dict[str, Any] = json.loads(_call(f"jobs show {_find('job', submitted)} --json"))
    return document


def _find(kind: str, printed: str) -> str:
    if found := re.search(rf"\b{kind}_[a-z0-9]{{24}}\b", printed):
        return found[0]
    raise HifiError(f"the command printed no {kind}_… identifier")


def _merge_and_prove(model: str, *, accuracy: float) -> None:
    """Merge the head delta, and check that this gives the tuned model and can be undone."""
    merge = f"merge --delta {_DELTA} --model {shlex.quote(model)} --out merged"
    _show("Merge it into its backbone, which gives a plain transformers model:", merge)
    from hifi.cli import proof

    merged = proof.measure_accuracy(Path("merged"), Path("validation.jsonl"))
    if merged != accuracy:
        raise HifiError(f"the merged model's accuracy is {merged}, the tuned model's {accuracy}")
    _say(f"\nThe merged model, loaded by plain transformers: accuracy {merged:.4f}, the very same.")
    if not proof.undo_is_exact(Path(_DELTA), model=model):
        raise HifiError("undoing the merge did not restore the backbone")
    _say("Merged into the backbone in memory and undone: every weight is what it was, bit for bit.")


def _ask_both(first: str, second: str) -> None:
    """Ask both jobs in one batch, and compare the first job's answers with its merged model's."""
    from hifi.cli import proof

    rows = Path("validation.jsonl").read_text(encoding="utf-8").splitlines()[:4]
    texts = [json.loads(row)["text"] for row in rows]
    asked = [{"job": job, "input": {"text": text}} for text in texts for job in (first, second)]
    Path("mixed.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in asked), "utf-8")
    predict = "jobs predict --file mixed.jsonl"
    _show("Both tasks in one batch, over one backbone in memory:", predict)
    answers = json.loads(_call(f"{predict} --json"))["data"]
    labels = [answer.get("label") for answer in answers if answer["job"] == first]
    expected = proof.predict_labels(Path("merged"), texts)
    if labels != expected:
        raise HifiError(f"the mixed batch answered {labels}, the merged model {expected}")
    _say("\nThe merged model gives the first task's answers, label by label.")


def _show(why: str, command: str) -> str:
    """Show and run a command; show what it prints, and return that."""
    _say(f"\n{why}\n$ hifi {command}")
    printed = _call(command)
    _say(printed.rstrip())
    return printed


def _call(command: str) -> str:
    """Run a command; return what it prints on stdout."""
    with redirect_stdout(_Terminal()) as printed:
        code = main(shlex.split(command))
    if code == output.EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if code != output.EXIT_OK:
        name = re.match(r"[a-z-]+( [a-z]+(?= ))?", command)
        raise HifiError(f"`hifi {name[0] if name else command}` failed (exit code {code})")
    return printed.getvalue()


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        """Let the heat map have the colours that the terminal can show."""
        return sys.__stdout__ is not None and sys.__stdout__.isatty()


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
