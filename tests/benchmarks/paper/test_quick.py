"""benchmarks.paper.quick: agrees with runs of the same cells, and fails if one differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.paper.cells import Cell, Request
from benchmarks.paper.quick import choose, disagreements, main, report
from benchmarks.paper.results import Results, read_lines
from benchmarks.paper.running import Workplace, work
from hifi.backbones.models import resolve_model
from hifi.errors import DataError
from tests.benchmarks.paper.tiny import line, save_glue

HEADS = [[layer, head] for layer in range(3) for head in range(3)]
RUN = {
    **line(0.5, method="hifi-default", rates="auto", rate=None, shots="64", most_rows=None),
    "head_start": "auto",
    "metric": "matthews",
    "rows": {"train": 64, "validation": 64, "test": 12},
    "batch_size": 32,
    "trained_epochs": 3,
    "learning_rate": 3e-4,
    "fingerprint": "abc",
    "trained_weights": 1000,
    "stored_bytes": {"float32": 4000, "int8": 1000},
    "heads": HEADS,
    "total_seconds": 20.0,
}


class TestDisagreements:
    def test_equal_runs_agree(self):
        assert list(disagreements(RUN, RUN)) == []

    @pytest.mark.parametrize(
        "changes",
        [
            {"value": 0.529},
            {"value": 0.471},
            {"stored_bytes": {"float32": 4039, "int8": 991}},
            {"heads": [*HEADS[:-1], [2, 3]]},  # 8 of 10
            {"total_seconds": 9, "megabytes": {"peak": 1}, "machine": "another"},
        ],
    )
    def test_differences_within_the_bounds_agree(self, changes: dict):
        assert list(disagreements(RUN, {**RUN, **changes})) == []

    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"value": 0.531}, "matthews differs by more than 3.0 points"),
            ({"value": 0.469}, "matthews differs by more than 3.0 points"),
            ({"value": float("nan")}, "matthews differs by more than 3.0 points"),
            (
                {"value": None, "error": "a training loss is inf"},
                "diverged: a training loss is inf",
            ),
            ({"learning_rate": 5e-4}, "learning_rate was 0.0003 and is 0.0005"),
            (
                {"rows": {"train": 63}},
                "rows was {'train': 64, 'validation': 64, 'test': 12} and is",
            ),
            ({"fingerprint": "abd"}, "fingerprint was abc and is abd"),
            ({"trained_weights": 1001}, "trained_weights was 1000 and is 1001"),
            ({"batch_size": 16}, "batch_size was 32 and is 16"),
            ({"trained_epochs": 4}, "trained_epochs was 3 and is 4"),
            ({"stored_bytes": {"float32": 4041, "int8": 1000}}, "float32: 4000 bytes were stored"),
            ({"stored_bytes": {"float32": 4000}}, "int8: 1000 bytes were stored, now 0"),
            ({"heads": [*HEADS[:-2], [2, 3], [1, 3]]}, "only 7 of 9 heads are the same"),
            ({"heads": None}, "only 0 of 9 heads are the same"),
        ],
    )
    def test_any_other_difference_is_told(self, changes: dict, problem: str):
        (found,) = disagreements(RUN, {**RUN, **changes})
        assert found.startswith(problem)

    def test_a_probe_has_a_bound_of_its_own_and_no_heads(self):
        probe = {**RUN, "method": "probe", "heads": None}
        assert list(disagreements(probe, {**probe, "value": 0.5049})) == []
        assert list(disagreements(probe, {**probe, "value": 0.506})) == [
            "matthews differs by more than 0.5 points"
        ]


class TestChoose:
    @pytest.mark.parametrize(
        "changes",
        [
            {"kind": "trial"},
            {"backbone": "another"},
            {"shots": "256"},
            {"seed": 1},
            {"method": "hifi"},
            {"value": None},
            {"rates": "usual", "rate": 5e-4},
            {"method": "lora-qv", "head_start": "random", "rates": "usual", "rate": 5e-4},
            {"method": "lora-qv", "head_start": "probe", "rates": "search"},
        ],
    )
    def test_takes_the_small_runs_of_the_backbone_alone(self, changes: dict):
        other = {**RUN, **changes}
        assert list(choose([other, RUN], backbone="tiny-bert").values()) == [RUN]
        with pytest.raises(DataError, match="no committed runs to compare with: probe, hifi-defa"):
            choose([other], backbone="tiny-bert")

    def test_takes_a_rival_at_its_best_rate(self):
        rival = {**RUN, "method": "lora-qv", "head_start": "random", "rates": "search"}
        assert list(choose([rival], backbone="tiny-bert").values()) == [rival]

    def test_takes_the_shortest_that_took_five_minutes_together(self):
        lines = [
            {**RUN, "task": task, "total_seconds": seconds}
            for task, seconds in (("cola", 150), ("rte", 50), ("mrpc", 151), ("stsb", 100))
        ]
        found = choose(lines, backbone="tiny-bert").values()
        assert [each["task"] for each in found] == ["rte", "stsb", "cola"]

    def test_runs_that_all_take_too_long_are_none(self):
        with pytest.raises(DataError, match="no committed runs"):
            choose([{**RUN, "total_seconds": 301}], backbone="tiny-bert")


def test_a_run_that_is_missing_disagrees():
    rows = list(report({Cell.of(RUN): RUN}, {}))
    assert rows[-1] == ("| cola | hifi-default | 50.00 | – | 3.0 | no: not finished |", False)


@pytest.mark.process
@pytest.mark.matrix
class TestCommand:
    @pytest.fixture(scope="class")
    def large(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Return a tiny GLUE with rows enough for 64 and as many for validation."""
        return save_glue(tmp_path_factory.mktemp("large"), rows=128)

    @pytest.fixture(scope="class")
    def committed(
        self, large: Path, bert: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> list[dict[str, Any]]:
        """Return lines of runs, with the trials of a searched rate."""
        settings = {
            "backbone": "tiny-bert",
            "tasks": ["cola"],
            "seeds": [0],
            "shots": ["64"],
            "head_starts": ["own"],
            "most_rows": None,
            "epochs": 1,
            "least_steps": 1,
            "max_length": 16,
        }
        wanted = [
            *Request(methods=["probe", "hifi-default"], rates="auto", **settings).cells(),
            *Request(methods=["lora-qv"], rates="search", **settings).cells(),
        ]
        workplace = Workplace(data=large / "data" / "glue", source=resolve_model(bert))
        path = tmp_path_factory.mktemp("committed") / "runs.jsonl"
        with Results(path) as results:
            work(wanted, results, workplace)
        return list(read_lines(path))

    def arguments(self, large: Path, bert: Path, path: Path, lines: list[dict]) -> list[str]:
        path.write_text("".join(f"{json.dumps(each)}\n" for each in lines), encoding="utf-8")
        options = ("--data", large, "--backbone", bert, "--processes", 1)
        return [str(path), *map(str, options)]

    def test_equal_runs_agree(self, committed, large, bert, tmp_path, capsys):
        arguments = self.arguments(large, bert, tmp_path / "r.jsonl", committed)
        assert main(arguments) == 0
        rows = [text.strip("| ").split(" | ") for text in capsys.readouterr().out.splitlines()[2:]]
        assert sorted((row[0], row[1], row[-1]) for row in rows) == [
            ("cola", "hifi-default", "yes"),
            ("cola", "lora-qv", "yes"),
            ("cola", "probe", "yes"),
        ]
        assert all(row[2] == row[3] for row in rows)

    def test_a_committed_value_that_is_not_reached_fails(
        self, committed, large, bert, tmp_path, capsys
    ):
        lines = [
            {**each, "value": each["value"] + 0.1} if each["method"] == "probe" else each
            for each in committed
        ]
        assert main(self.arguments(large, bert, tmp_path / "r.jsonl", lines)) == 1
        assert "no: matthews differs by more than 0.5 points" in capsys.readouterr().out

    def test_a_run_that_takes_too_long_fails(self, committed, large, bert, tmp_path, capsys):
        arguments = self.arguments(large, bert, tmp_path / "r.jsonl", committed)
        assert main([*arguments, "--seconds", "1"]) == 1
        assert "no: not finished" in capsys.readouterr().out

    def test_nothing_committed_is_told(self, large, bert, tmp_path, capsys):
        assert main(self.arguments(large, bert, tmp_path / "r.jsonl", [])) == 2
        assert "no committed runs to compare with" in capsys.readouterr().err
