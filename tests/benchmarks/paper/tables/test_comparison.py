"""benchmarks.paper.tables: the command, and its comparison against numbers computed by hand."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest

from benchmarks.paper.methods import METHODS
from benchmarks.paper.tables.command import main
from benchmarks.paper.tables.comparison import markdown, markdown_differences
from benchmarks.paper.tables.table import Difference, Table
from hifi.errors import DataError, InvalidArgumentError
from tests.benchmarks.paper.tiny import line

# Full and HiFi on two tasks, LoRA on one.
LINES = [
    *(line(value, method="full", seed=seed) for seed, value in enumerate((0.50, 0.52, 0.57))),
    *(line(value, method="hifi", seed=seed) for seed, value in enumerate((0.51, 0.54, 0.60))),
    line(0.90, method="lora-qv", seed=0),
    line(0.40, method="full", task="rte"),
    line(0.30, method="hifi", task="rte"),
]


def rows_of(lines, **options) -> dict[tuple[str, str], list[str]]:
    """Return the cells of each row, by shots and method."""
    rows = [text.strip("| ").split(" | ") for text in markdown(Table(lines), **options)]
    return {(row[0], row[1]): row[2:] for row in rows if len(row) > 2}


def differences_of(lines, first: str, second: str) -> list[list[str]]:
    texts = list(markdown_differences(Table(lines), first, second))
    return [text.strip("| ").split(" | ") for text in texts[2:]]


class TestMarkdown:
    def test_means_deviations_counts_and_averages(self):
        # cola: full (50+52+57)/3 = 53, s = √((9+1+16)/2) = √13; hifi 55, s = √((16+1+25)/2) = √21.
        assert rows_of(LINES) == {
            ("shots", "method"): ["cola (matthews)", "rte (accuracy)", "average"],
            ("full", "full"): ["53.0 ± 3.6 (3)", "**40.0** (1)", "**46.5**"],
            ("full", "lora-qv"): ["**90.0** (1)", "–", "–"],
            ("full", "hifi"): ["<u>55.0</u> ± 4.6 (3)", "<u>30.0</u> (1)", "<u>42.5</u>"],
        }

    def test_equal_means_share_a_place(self):
        tied = [line(0.5, method=name) for name in ("full", "hifi")] + [line(0.4, method="ia3")]
        rows = rows_of(tied)
        assert [rows["full", name][0] for name in ("full", "hifi", "ia3")] == [
            "**50.0** (1)",
            "**50.0** (1)",
            "<u>40.0</u> (1)",
        ]

    def test_places_are_per_number_of_shots_and_rows_by_size(self):
        curve = [line(0.1 * n, shots=shots) for n, shots in enumerate(("full", "1024", "64"))]
        rows = rows_of(curve)
        assert list(rows)[1:] == [(shots, "head-only") for shots in ("64", "1024", "full")]
        assert all(
            cells[0].startswith("**") for (shots, _), cells in rows.items() if shots != "shots"
        )

    def test_diverged_runs_are_told_and_not_averaged(self):
        lines = [line(0.5, seed=0), line(None, seed=1)]
        assert rows_of(lines)["full", "head-only"][0] == "**50.0** (1, 1 diverged)"
        assert rows_of([line(None)])["full", "head-only"] == ["–, 1 diverged", "–"]

    def test_trials_are_left_out(self):
        assert rows_of([*LINES, line(0.99, kind="trial", method="full")]) == rows_of(LINES)

    def test_rows_are_named_by_what_differs(self):
        lines = [
            line(0.5, method="full"),
            line(0.6, method="full", head_start="probe"),
            line(0.7, method="hifi", rates="given", rate=0.001),
            line(0.8, method="hifi", rates="auto", rate=None),
        ]
        names = [name for _, name in Table(lines).rows]
        assert names == ["full/probe", "full/random", "hifi/0.001", "hifi/auto"]

    def test_rates_at_an_end_of_the_search_are_noted(self):
        rates = METHODS["full"].trial_rates
        lines = [
            line(0.5, method="full", rates="search", rate=None, task=task) | {"learning_rate": rate}
            for task, rate in (("cola", rates[-1]), ("rte", rates[1]))
        ]
        notes = [text for text in markdown(Table(lines)) if "end of the search" in text]
        assert notes == [f"\nfull: best rate at an end of the search (cola full: {rates[-1]:g})."]

    def test_runs_that_a_table_would_not_tell_apart_are_refused(self):
        lines = [line(0.5), line(0.6, epochs=9, most_rows=None)]
        with pytest.raises(DataError, match="with seed 0 differ in most_rows, epochs"):
            Table(lines)


class TestDifferences:
    def test_mean_and_interval_of_students_t(self):
        # 1, 2, 3: s = 1, t(2; 0.975) = 4.3027, half = 4.3027 / √3 = 2.4841.
        found = Difference.of([1.0, 2.0, 3.0])
        assert (found.mean, found.pairs) == (2.0, 3)
        assert found.half == pytest.approx(2.4841, abs=1e-4)

    def test_one_pair_has_no_interval(self):
        assert Difference.of([1.0]) == Difference(1.0, None, 1)

    def test_pairs_are_of_one_task_and_seed(self):
        # cola: 1, 2, 3; rte: −10; all four: mean −1, s = √(110/3) = 6.0553,
        # t(3; 0.975) = 3.1824, half = 3.1824 · 6.0553 / 2 = 9.6353.
        assert differences_of(LINES, "hifi", "full") == [
            ["full", "cola", "+2.0", "-0.5 to 4.5", "3"],
            ["full", "rte", "-10.0", "–", "1"],
            ["full", "all", "-1.0", "-10.6 to 8.6", "4"],
        ]

    def test_a_seed_that_one_of_them_lacks_is_left_out(self):
        assert differences_of(LINES, "lora-qv", "full") == [
            ["full", "cola", "+40.0", "–", "1"],
            ["full", "all", "+40.0", "–", "1"],
        ]

    def test_a_method_that_is_not_there_is_refused(self):
        with pytest.raises(InvalidArgumentError, match="pair='ia3' is not allowed: one of full, h"):
            differences_of(LINES, "hifi", "ia3")

    def test_methods_without_a_common_seed_are_refused(self):
        lines = [line(0.5, method="full"), line(0.5, method="hifi", seed=1)]
        with pytest.raises(InvalidArgumentError, match="a task and a seed in common"):
            differences_of(lines, "hifi", "full")


class TestCommand:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "r.jsonl"
        path.write_text("".join(f"{json.dumps(each)}\n" for each in LINES), encoding="utf-8")
        return path

    def test_prints_markdown(self, path: Path, capsys: pytest.CaptureFixture[str]):
        assert main([str(path), "--pair", "hifi", "full"]) == 0
        table = Table(LINES)
        expected = [*markdown(table), "", *markdown_differences(table, "hifi", "full")]
        assert capsys.readouterr().out.splitlines() == expected

    def test_prints_csv(self, path: Path, capsys: pytest.CaptureFixture[str]):
        assert main([str(path), "--format", "csv", "--methods", "full", "hifi"]) == 0
        rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert [(row["method"], row["task"], row["n"]) for row in rows] == [
            ("full", "cola", "3"),
            ("full", "rte", "1"),
            ("full", "average", ""),
            ("hifi", "cola", "3"),
            ("hifi", "rte", "1"),
            ("hifi", "average", ""),
        ]
        assert float(rows[0]["mean"]) == pytest.approx(53)
        assert float(rows[0]["sd"]) == pytest.approx(13**0.5)
        assert rows[1]["sd"] == ""

    def test_prints_differences_as_csv(self, path: Path, capsys: pytest.CaptureFixture[str]):
        assert main([str(path), "--format", "csv", "--pair", "hifi", "full"]) == 0
        rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert [row["task"] for row in rows] == ["cola", "rte", "all"]
        assert float(rows[0]["low"]) == pytest.approx(2 - 2.4841, abs=1e-4)
        assert rows[1]["low"] == rows[1]["high"] == ""

    def test_prints_another_table(self, path: Path, capsys: pytest.CaptureFixture[str]):
        assert main([str(path), "--table", "ablation"]) == 0
        assert "PageRank (HiFi)" in capsys.readouterr().out
        assert main([str(path), "--table", "ablation", "--format", "csv"]) == 0
        rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert [(row["ranking"], row["cola"], row["above_random"]) for row in rows] == [
            ("pagerank", "55.0", "")
        ]

    def test_filters(self, path: Path, capsys: pytest.CaptureFixture[str]):
        assert main([str(path), "--tasks", "rte", "--most-rows", "40"]) == 0
        assert "cola" not in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--tasks", "mnli"], "no runs in .*r.jsonl are wanted"),
            (["--most-rows", "all"], "no runs in .*r.jsonl are wanted"),
            (["--pair", "hifi", "bitfit"], "pair='bitfit' is not allowed"),
            (["--pair", "hifi", "full", "--table", "curves"], "only with the table comparison"),
            (["--table", "curves"], "no runs of learning curves are wanted"),
            (["--table", "stored"], "no runs that were measured in several encodings"),
        ],
    )
    def test_tells_what_is_wrong(
        self, path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
    ):
        assert main([str(path), *arguments]) == 2
        assert re.search(message, capsys.readouterr().err)
