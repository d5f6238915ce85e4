"""``hifi demo``: one real job, run with the commands that a user would type."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, chdir, redirect_stdout
from pathlib import Path
from typing import Any

from hifi.cli import main, options, output
from hifi.cli.docstrings import LIBRARIES, build_data_set, find_names
from hifi.errors import HifiError

_HIFI = (sys.executable, "-m", "hifi.cli")
_MODEL = "all-MiniLM-L6-v2"
_ROWS_PER_LIBRARY = 240
_KEPT_SETTINGS = ("HIFI_DEBUG", "HIFI_LOG_FORMAT", "HIFI_MODELS")
_DELTA = "libraries.safetensors"
# In float32 on the CPU, so that the merged model can repeat the accuracy to the last digit.
_TASK = "--text text --label library --metric accuracy --precision float32"
# With heads that a budget takes, mostly of upper layers, a text runs once through the lower ones.
_BUDGET = "--score gradient --strategy budget --budget 18"
_OTHER_TASKS = {
    "names": f"--text text --spans names {_BUDGET}",
    "length": f"--text text --label length {_BUDGET}",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``hifi demo``."""
    add = parser.add_argument
    add("--dir", type=Path, metavar="DIR", help="a new folder for all files; it is kept")
    add("--local", action="store_true", help="run only the library's commands, without a service")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Build a data set, run a job on it, and check the results."""
    started = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(sys.stderr if args.json else sys.stdout))
        if args.dir is not None:
            output.check_new_directory(args.dir)
            args.dir.mkdir(mode=0o700, exist_ok=True)
        folder = args.dir or stack.enter_context(tempfile.TemporaryDirectory(prefix="hifi-demo-"))
        stack.enter_context(chdir(folder))
        rows = build_data_set(Path(), rows_per_library=_ROWS_PER_LIBRARY, seed=0)
        _say(
            f"Which library does a docstring come from: {', '.join(LIBRARIES)}?\n"
            f"{rows['train']} sentences for training and {rows['validation']} for validation, from "
            f"the installed libraries.\n\n$ cd {shlex.quote(str(Path.cwd()))}"
        )
        metrics = _run_locally() if args.local else _run_with_service()
        if args.dir is not None:
            _say(f"All files are in {folder}")
        seconds = time.perf_counter() - started
        _say(f"Done in {seconds:.0f} seconds.")
    if args.json:
        document = {"object": "demo", "path": args.dir and str(args.dir), "model": _MODEL}
        document |= {"is_local": args.local, "rows": rows, "metrics": metrics, "seconds": seconds}
        output.print_json(document)
    return output.EXIT_OK


def _run_locally() -> dict[str, float]:
    data = "--train train.jsonl --validation validation.jsonl"
    tune = f"tune --model {_MODEL} {data} {_TASK} --device cpu --out {_DELTA} --json"
    _say("\nScore the heads, select the best, tune only these and write a head delta:")
    _say(f"$ hifi {tune} > tune.json")
    with Path("tune.json").open("w", encoding="utf-8") as file, redirect_stdout(file):
        _run(tune)
    metrics: dict[str, float] = json.loads(Path("tune.json").read_bytes())["result"]["metrics"]
    _say(f"validation accuracy {metrics['accuracy']:.4f}")
    _show("The contents of that file:", f"inspect {_DELTA}")
    _merge_and_prove(metrics["accuracy"])
    adapter = f"export-lora --delta {_DELTA} --model {_MODEL} --out lora"
    _show("The same change as an adapter that PEFT loads:", adapter)
    return metrics


def _run_with_service() -> dict[str, float]:
    with ExitStack() as stack:
        _start_service(stack)
        job = _run_job("libraries", _TASK, data="")
        metrics: dict[str, float] = job["result"]["metrics"]
        _show("The selected heads, in brackets:", f"jobs heads {job['id']}")
        _show("Download the change, a head delta:", f"jobs download {job['id']} --out {_DELTA}")
        found, expected = output.describe_file(Path(_DELTA))["sha256"], job["artifact"]["sha256"]
        if found != expected:
            raise HifiError(f"the file's sha256 is {found}, the job's {expected}")
        _say(f"{_DELTA}: sha256 {found}, as in the job.")
        merged = _merge_and_prove(metrics["accuracy"])
        _say(
            "\nTwo more tasks: which words of a sentence are names of code, and how long is the "
            "docstring that it begins (the binary logarithm of its lines)?"
        )
        jobs = [job["id"]]
        for name, other in _OTHER_TASKS.items():
            Path(name).mkdir()
            build_data_set(Path(name), rows_per_library=_ROWS_PER_LIBRARY, seed=0, label=name)
            jobs.append(_run_job(name, other, data=f"{name}/")["id"])
        texts = sorted(merged, key=lambda text: -len(find_names(text)))[:4]
        rows = [{"jobs": jobs, "input": {"text": text}} for text in texts]
        Path("asked.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
        predict = "jobs predict --file asked.jsonl"
        _show("One request asks all three tasks about each text:", predict)
        answers = [answer.get("answers", [answer])[0] for answer in _ask(predict)["data"]]
        labels = [answer.get("label") for answer in answers]
        if labels != (expected := [merged[text] for text in texts]):
            raise HifiError(f"the service answered {labels}, the merged model {expected}")
        _say("\nThe merged model returns the same labels for the first task.")
        _say("\nThe service hands back its work and stops.")
    return metrics


def _start_service(stack: ExitStack) -> None:
    """Run a service in this folder until the stack is closed; set HIFI_URL to its address."""
    serve = "serve --home service --port 0"
    _say(f"\nStart a service that keeps everything here:\n$ hifi {serve} 2> serve.log &")
    kept = {k: v for k, v in os.environ.items() if k[:5] != "HIFI_" or k in _KEPT_SETTINGS}
    before = signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    stack.callback(signal.signal, signal.SIGTERM, before)
    with Path("serve.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - this program itself
            [*_HIFI, *serve.split()],
            env={**kept, "HIFI_DEVICE": "cpu"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            process_group=0,  # Ctrl-C reaches only us, and we stop the service cleanly
        )
    stack.enter_context(process)
    stack.callback(process.terminate)  # it limits the time that its parts take to end
    line = process.stdout.readline().decode() if process.stdout else ""
    ready = re.match(r"HiFi is ready at (\S+)", line)
    if ready is None:
        words = Path("serve.log").read_text("utf-8", "replace").splitlines()[-5:]
        why = " / ".join(words) or "it printed nothing"
        raise HifiError(f"`hifi serve` ended: {why}; `hifi demo --local` needs no service")
    os.environ["HIFI_URL"] = ready[1]
    _say(f"{ready[0]}\n$ export HIFI_URL={ready[1]}")


def _run_job(name: str, task: str, *, data: str) -> dict[str, Any]:
    """Push a data set, post a job and watch it; return the job."""
    files = f"{data}train.jsonl --validation {data}validation.jsonl"
    _show("Upload the data set:", f"datasets push {files} --name {name}")
    dataset = _ask("datasets list")["data"][0]["id"]  # the newest
    job = f"--model {_MODEL} --dataset {dataset} {task} --name {name}"
    what = "Post a job, which scores the heads, selects the best and tunes only these; watch it:"
    _show(what, f"jobs submit {job} --watch")
    return dict(_ask("jobs list")["data"][0])


def _merge_and_prove(accuracy: float) -> dict[str, str]:
    """Merge the delta; check the result and its undo; return its label of each validation text."""
    merge = f"merge --delta {_DELTA} --model {_MODEL} --out merged"
    _show("Merge it into its backbone, into a plain transformers model:", merge)
    lines = Path("validation.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    labels = predict_labels(Path("merged"), [row["text"] for row in rows])
    merged = sum(labels[row["text"]] == row["library"] for row in rows) / len(rows)
    if merged != accuracy:
        raise HifiError(f"the merged model's accuracy is {merged}, the tuned model's {accuracy}")
    what = "The merged model, loaded by plain transformers"
    _say(f"\n{what}: accuracy {merged:.4f}, the same as the tuned model.")
    if not undo_is_exact(Path(_DELTA), model=_MODEL):
        raise HifiError("undoing the merge did not restore the backbone")
    _say("Merged into the backbone in memory and undone: every weight is restored, bit for bit.")
    return labels


def predict_labels(merged: Path, texts: Sequence[str]) -> dict[str, str]:
    """Classify texts with a merged model, loaded by plain transformers; return label by text."""
    from transformers import pipeline

    from hifi.backbones.models import quiet_transformers

    with quiet_transformers():
        classify = pipeline("text-classification", model=str(merged), device="cpu")
        # The longest first, in the batches of hifi's own evaluation, so that every bit is equal.
        order = sorted(texts, key=lambda text: -len(classify.preprocess(text)["input_ids"][0]))
        answers = classify(order, batch_size=32)
    labels = {text: answer["label"] for text, answer in zip(order, answers, strict=True)}
    return {text: labels[text] for text in texts}


def undo_is_exact(file: Path, *, model: str) -> bool:
    """Merge a delta into its backbone in memory, undo that, and compare every bit."""
    from hifi.deltas.delta import HeadDelta
    from hifi.deltas.loading import load_backbone

    delta = HeadDelta.load(file)
    network = load_backbone(delta, model=model, revision=None).model
    weights = network.state_dict()
    before = {name: weight.clone() for name, weight in weights.items()}
    displaced = delta.merge(network)
    is_changed = not all(weights[name].equal(before[name]) for name in before)
    displaced.merge(network)
    return is_changed and all(weights[name].equal(before[name]) for name in before)


def _show(why: str, command: str) -> None:
    _say(f"\n{why}\n$ hifi {command}")
    _run(command)


def _ask(command: str) -> Any:  # noqa: ANN401 - any command's document
    with redirect_stdout(io.StringIO()) as printed:
        _run(f"{command} --json")
    return json.loads(printed.getvalue())


def _run(command: str) -> None:
    code = main(command.split())
    if code == output.EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if code != output.EXIT_OK:
        name = re.sub(r"^([a-z-]+( [a-z]+(?= ))?).*", r"\1", command)
        raise HifiError(f"`hifi {name}` failed (exit code {code})")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
