"""benchmarks.paper.tables.curves: cells, averages and targets computed by hand."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.paper.tables.curves import collect, markdown, records, verdicts
from hifi.errors import DataError
from tests.benchmarks.paper.tables.rows import cells_of
from tests.benchmarks.paper.tiny import line


def run(value: float, method: str, **changes) -> dict[str, Any]:
    rates = {"hifi-default": "auto", "probe": "none"}.get(method, "search")
    start = {"hifi-default": "auto", "probe": "probe"}.get(method, "random")
    settings = {"rates": rates, "rate": None, "most_rows": None, "head_start": start, **changes}
    return line(value, method=method, **settings)


LINES = [
    *(run(value, "hifi-default", shots="64", seed=n) for n, value in enumerate((0.50, 0.52))),
    *(run(value, "probe", shots="64", seed=n) for n, value in enumerate((0.50, 0.53))),
    run(0.40, "lora-qv", shots="64"),
    run(0.60, "full", shots="64"),
    run(0.30, "hifi-default", shots="64", task="rte"),
    run(0.31, "probe", shots="64", task="rte"),
    run(0.30, "lora-qv", shots="64", task="rte"),
    run(0.30, "full", shots="64", task="rte"),
    run(0.80, "hifi-default"),
    run(0.70, "probe"),
    run(0.10, "hifi-default", task="rte"),
    run(0.80, "full"),
    run(0.108, "full", task="rte"),
]


def targets(lines) -> dict[str, tuple[float, bool | None]]:
    return {row.what: (row.value, row.is_met) for row in verdicts(collect(lines))}


class TestVerdicts:
    def test_cells_are_counted_against_the_probe(self):
        # 64 rows: cola 51 − 51.5 is within half a point, rte 30 − 31 is not; all rows: 80 − 70.
        found = targets(LINES)
        assert found["at least probe − 0.5 point, of 3 cells with both, of 20"] == (2, False)
        assert found["above probe, of 3 cells with both, of 20"] == (1, False)

    def test_all_cells_must_be_at_the_probe_and_16_above(self):
        tasks, sizes = ("cola", "sst2", "mrpc", "stsb", "rte"), ("64", "256", "1024", "full")
        cells = [(task, shots) for task in tasks for shots in sizes]
        lines = [run(0.5, "probe", task=task, shots=shots) for task, shots in cells]
        lines += [
            run(0.496 if n < 4 else 0.51, "hifi-default", task=task, shots=shots)
            for n, (task, shots) in enumerate(cells)
        ]
        found = targets(lines)
        assert found["at least probe − 0.5 point, of 20 cells with both, of 20"] == (20, True)
        assert found["above probe, of 20 cells with both, of 20"] == (16, True)
        lines[-1]["value"] = 0.4
        assert [met for _, met in targets(lines).values()] == [False, False]

    def test_averages_are_compared_with_lora_and_full(self):
        found = targets(LINES)
        value, is_met = found["average of 2 tasks, 64: hifi-default − lora-qv"]
        assert (value, is_met) == (pytest.approx(40.5 - 35), True)
        value, is_met = found["average of 2 tasks, 64: hifi-default − full"]
        assert (value, is_met) == (pytest.approx(40.5 - 45), False)

    def test_full_may_be_half_a_point_better_on_all_rows(self):
        name = "average of 2 tasks, full: hifi-default − full"
        assert targets(LINES)[name] == (pytest.approx(-0.4), True)
        worse = [*LINES[:-1], run(0.112, "full", task="rte")]
        assert targets(worse)[name] == (pytest.approx(-0.6), False)

    def test_a_rival_is_compared_from_each_head_start(self):
        more = [
            run(0.90, "lora-qv", shots="64", head_start="probe"),
            run(0.90, "lora-qv", shots="64", head_start="probe", task="rte"),
        ]
        names = [name for name in targets([*LINES, *more]) if "lora" in name]
        assert names == [
            "average of 2 tasks, 64: hifi-default − lora-qv/probe",
            "average of 2 tasks, 64: hifi-default − lora-qv/random",
        ]


class TestCollect:
    @pytest.mark.parametrize(
        "other",
        [
            run(0.9, "hifi-default", rates="usual", rate=5e-4, seed=7),
            run(0.9, "full", rates="usual", rate=1e-4, seed=7),
            run(0.9, "full", most_rows=3668, seed=7),
            run(0.9, "full", shots="128", seed=7),
            run(0.9, "bitfit", seed=7),
            run(0.9, "full", task="mnli", seed=7),
            run(0.9, "full", kind="trial", seed=7),
        ],
    )
    def test_other_runs_are_left_out(self, other: dict):
        assert list(records([*LINES, other])) == list(records(LINES))

    def test_ours_must_be_there(self):
        with pytest.raises(DataError, match="hifi-default with rates auto, all rows"):
            collect([run(0.5, "full")])


class TestMarkdown:
    def test_has_a_row_for_each_task_and_size(self):
        rows = [" | ".join(row) for row in cells_of(markdown(LINES))]
        assert rows[:6] == [
            (
                "task | rows | probe | full | lora-qv | hifi-default | hifi-default − probe | "
                "95 % interval (t)"
            ),
            (
                "cola (matthews) | 64 | <u>51.5</u> ± 2.1 (2) | **60.0** (1) | 40.0 (1) | "
                "51.0 ± 1.4 (2) | -0.5 | -6.9 to 5.9"
            ),
            (
                "cola (matthews) | full | <u>70.0</u> (1) | **80.0** (1) | – | **80.0** (1) | "
                "+10.0 | –"
            ),
            (
                "rte (accuracy) | 64 | **31.0** (1) | <u>30.0</u> (1) | <u>30.0</u> (1) | "
                "<u>30.0</u> (1) | -1.0 | –"
            ),
            "rte (accuracy) | full | – | **10.8** (1) | – | <u>10.0</u> (1) | – | –",
            "average | 64 | 41.2 | 45.0 | 35.0 | 40.5 | – | –",
        ]
        assert "what | measured | target | met" in rows

    def test_records_have_the_paired_difference_to_the_probe(self):
        (found,) = [
            each
            for each in records(LINES)
            if (each["task"], each["rows"], each["method"]) == ("cola", "64", "hifi-default")
        ]
        # 0 and −1: mean −0.5, s = √½, t(1; 0.975) = 12.7062, half = 6.3531.
        assert found["above_probe"] == pytest.approx(-0.5)
        assert (found["low"], found["high"]) == pytest.approx((-6.8531, 5.8531), abs=1e-3)
