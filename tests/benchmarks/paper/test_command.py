"""python -m benchmarks.paper: resumes after a kill, shares cells, and says what is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.paper.cells import Cell, Request
from benchmarks.paper.command import main, parse, request_of
from benchmarks.paper.methods import METHODS
from benchmarks.paper.methods.ablations import TABLE_3
from benchmarks.paper.results import Results, read_lines
from benchmarks.paper.running import Workplace, work
from hifi.backbones.models import resolve_model
from hifi.data.settings import Hyperparameters
from hifi.errors import TrainingDivergedError
from tests.architectures import HIDDEN
from tests.root import ROOT


def request(**changes) -> list[Cell]:
    settings = {
        "backbone": "tiny-bert",
        "tasks": ["cola"],
        "methods": ["head-only"],
        "seeds": [0],
        "shots": ["full"],
        "head_starts": ["own"],
        "rates": "usual",
        "most_rows": 40,
        "epochs": 1,
        "least_steps": 1,
        "max_length": 16,
    }
    return Request(**{**settings, **changes}).cells()


def lines_of(path: Path, wanted: list[Cell], workplace: Workplace) -> list[dict]:
    with Results(path) as results:
        work(wanted, results, workplace)
    return list(read_lines(path))


class TestWork:
    def test_a_line_has_everything(self, tmp_path: Path, workplace: Workplace):
        wanted = request(methods=["hifi"], seeds=[3])
        (line,) = lines_of(tmp_path / "r.jsonl", wanted, workplace)
        assert Cell.of(line) == wanted[0]
        assert line["value"] == line["validation"]["matthews"]
        assert (line["metric"], line["measured_on"]) == ("matthews", "validation")
        assert line["rows"] == {"train": 40, "validation": 12, "test": None}
        assert (line["learning_rate"], line["trained_epochs"]) == (METHODS["hifi"].usual_rate, 1)
        assert line["megabytes"]["peak"] >= line["megabytes"]["before"] > 0
        assert set(line["seconds"]) == {"selection", "training"}
        assert len(line["heads"]) == 9
        assert set(line["stored_bytes"]) == {"float32", "bfloat16", "int8"}
        assert set(line["encoded"]) == {"bfloat16", "int8"}
        assert line["encoded"]["int8"]["validation"].keys() == line["validation"].keys()
        assert line["encoded"]["int8"]["test"] is None
        assert {"torch", "peft", "scikit-learn"} < set(line["versions"])
        assert line["machine"]
        assert line["trained_weights"] > 0
        assert ("no_gain" in line["warnings"]) == (line["best_evaluation"] == 0)

    def test_few_rows_are_one_batch_and_reported_on_test(
        self, tmp_path: Path, workplace: Workplace
    ):
        wanted = request(shots=["16"], least_steps=7)
        (line,) = lines_of(tmp_path / "r.jsonl", wanted, workplace)
        assert line["rows"] == {"train": 32, "validation": 32, "test": 12}
        assert (line["batch_size"], line["trained_epochs"]) == (32, 7)
        assert (line["measured_on"], line["value"]) == ("test", line["test"]["matthews"])

    def test_finished_cells_are_not_run_again(self, tmp_path: Path, workplace: Workplace):
        path = tmp_path / "r.jsonl"
        first = lines_of(path, request(), workplace)
        both = lines_of(path, request(seeds=[0, 1]), workplace)
        assert both[:1] == first
        assert [line["seed"] for line in both] == [0, 1]

    def test_a_search_keeps_its_trials_and_runs_the_best_rate(
        self, tmp_path: Path, workplace: Workplace
    ):
        wanted = request(rates="search", seeds=[0, 1])
        lines = lines_of(tmp_path / "r.jsonl", wanted, workplace)
        trials = [line for line in lines if line["kind"] == "trial"]
        assert [line["rate"] for line in trials] == list(METHODS["head-only"].trial_rates)
        assert {(line["rows"]["train"], line["rows"]["validation"]) for line in trials} == {(33, 7)}
        assert {line["measured_on"] for line in trials} == {"validation"}
        runs = [line for line in lines if line["kind"] == "run"]
        best = max(trials, key=lambda line: (line["value"], -line["validation"]["loss"]))
        assert [line["learning_rate"] for line in runs] == [best["rate"]] * 2
        assert {line["rows"]["train"] for line in runs} == {40}

    def test_auto_uses_the_librarys_defaults(self, tmp_path: Path, workplace: Workplace):
        wanted = request(methods=["hifi"], rates="auto")
        (line,) = lines_of(tmp_path / "r.jsonl", wanted, workplace)
        assert line["rate"] is None
        library = Hyperparameters().choose(rows=40, hidden_size=HIDDEN)
        assert (line["learning_rate"], line["trained_epochs"]) == (
            library["learning_rate"],
            library["epochs"],
        )
        assert line["batch_size"] == Hyperparameters.batch_size

    def test_auto_has_the_batches_of_the_paper_for_16_rows_of_each_class(
        self, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
    ):
        given = []
        real = METHODS["hifi-default"]
        monkeypatch.setattr(
            "benchmarks.paper.running.METHODS",
            {"hifi-default": replace(real, run=lambda run: given.append(run) or real.run(run))},
        )
        for shots in ("16", "40"):
            (cell,) = request(methods=["hifi-default"], rates="auto", shots=[shots])
            workplace.run(cell, learning_rate=None)
        settings = [set(run.hyperparameters) for run in given]
        assert settings == [{"seed", "max_length", "batch_size"}, {"seed", "max_length"}]
        assert given[0].hyperparameters["batch_size"] == 32

    def test_a_diverged_run_is_a_line_without_a_value(
        self, tmp_path: Path, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr("benchmarks.paper.methods.rival._check", _refuse)
        (line,) = lines_of(tmp_path / "r.jsonl", request(methods=["full"]), workplace)
        assert (line["value"], line["error"]) == (None, "a training loss is inf")


def _refuse(_loss: float, *, where: str) -> None:
    raise TrainingDivergedError(f"{where} is inf")


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.paper", *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=120)


def arguments_for(glue: Path, bert: Path, path: Path) -> list[object]:
    return [
        *("--data", glue, "--backbone", bert, "--tasks", "cola", "--methods", "head-only"),
        *("--most-rows", 40, "--epochs", 1, "--least-steps", 1, "--max-length", 16),
        *("--out", path),
    ]


@pytest.mark.process
@pytest.mark.matrix
class TestProcesses:
    def test_a_killed_command_goes_on_where_it_was(self, glue: Path, bert: Path, tmp_path: Path):
        path = tmp_path / "r.jsonl"
        arguments = [*arguments_for(glue, bert, path), "--seeds", *range(40)]
        with started(*arguments) as command:
            wait_for(lambda: len(list(read_lines(path))) >= 2 or command.poll() is not None)
            command.kill()
        time.sleep(1)  # the kernel ends its process, too
        before = list(read_lines(path))
        path.write_bytes(path.read_bytes().rstrip(b"\n")[:-9])  # as if killed while writing
        kept = before[:-1]
        time.sleep(2)
        assert list(read_lines(path)) == kept  # nothing runs on
        few = [*arguments_for(glue, bert, path), "--seeds", *range(len(before) + 1)]
        with started(*few) as command:
            assert command.wait(timeout=240) == 0
        after = list(read_lines(path))
        assert after[: len(kept)] == kept
        assert [line["seed"] for line in after] == list(range(len(before) + 1))

    def test_two_processes_share_the_cells(self, glue: Path, bert: Path, tmp_path: Path):
        path = tmp_path / "r.jsonl"
        arguments = [*arguments_for(glue, bert, path), "--rates", "search", "--seeds", 0, 1, 2]
        with started(*arguments, "--processes", 2) as command:
            assert command.wait(timeout=240) == 0
        lines = list(read_lines(path))
        cells = [Cell.of(line) for line in lines]
        assert len(cells) == len(set(cells)) == 5 + 3
        assert [line["kind"] for line in lines[:5]] == ["trial"] * 5

    def test_an_error_in_a_process_is_told(self, glue: Path, bert: Path, tmp_path: Path):
        arguments = [*arguments_for(glue, bert, tmp_path / "r.jsonl"), "--shots", 41]
        with started(*arguments) as command:
            _, errors = command.communicate(timeout=240)
        assert command.returncode == 1
        assert "shots='41' is not allowed: at most 40 of cola" in errors
        assert "Traceback" not in errors


def wait_for(condition, *, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


class TestArguments:
    @pytest.fixture
    def sound(self, glue: Path, bert: Path, tmp_path: Path) -> list[str]:
        return [str(each) for each in arguments_for(glue, bert, tmp_path / "r.jsonl")]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (["--methods", "lora"], "methods='lora' is not allowed: one of probe, full"),
            (["--tasks", "sst2"], r"sst2.train\.jsonl does not exist"),
            (["--shots", "7"], "shots='7' is not allowed"),
            (["--out", "/nowhere/r.jsonl"], "/nowhere is not a folder: --out cannot be written"),
            (["--out", "/"], "/ is a folder: --out is a file"),
            (["--backbone", "/nowhere"], "'/nowhere' is neither a folder nor a valid name"),
            (["--methods", "setfit"], "'setfit' is not allowed: not with cola and shots=full"),
            (
                ["--methods", "head-only", "adapter"],
                r"RivalEnvironmentError: adapters needs .* run python -m \S+ adapters --folder DIR",
            ),
        ],
    )
    def test_are_checked_before_anything_runs(
        self,
        sound: list[str],
        capsys,
        monkeypatch: pytest.MonkeyPatch,
        changes: list[str],
        message: str,
    ):
        monkeypatch.delenv("HIFI_RIVALS", raising=False)
        assert main([*sound, *changes]) == 2
        assert re.search(message, capsys.readouterr().err)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (["--seeds", "-1"], "'-1' is not a whole number of at least 0"),
            (["--processes", "0"], "'0' is not a whole number of at least 1"),
            (["--most-rows", "few"], "'few' is not a whole number of at least 0"),
        ],
    )
    def test_numbers_are_checked(self, sound: list[str], capsys, changes: list[str], message: str):
        with pytest.raises(SystemExit):
            parse([*sound, *changes])
        assert message in capsys.readouterr().err

    def test_a_groups_name_stands_for_its_methods(self, sound: list[str]):
        options = parse([*sound, "--methods", "probe", "table-3", "stored"])
        cells = request_of(options, source=resolve_model(options.backbone)).cells()
        methods = [each.method for each in cells]
        assert methods[:2] == ["probe", "hifi"]
        assert len(methods) == len(set(methods))
        assert {*TABLE_3, "lora-qv-r32", "hifi-heads-36", "bitfit", "ia3"} < set(methods)

    def test_all_rows_are_no_cap(self, sound: list[str]):
        assert parse([*sound, "--most-rows", "all"]).most_rows is None

    def test_the_data_comes_from_the_environment(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("HIFI_TEST_DATA", "/data")
        options = parse(["--methods", "full", "--tasks", "cola", "--out", "r.jsonl"])
        assert options.data == Path("/data")
