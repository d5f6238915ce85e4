"""benchmarks.paper.tables.few_shot: the 16-shot runs and what ours must not be below."""

from __future__ import annotations

import pytest

from benchmarks.paper.tables.few_shot import collect, markdown, records
from hifi.errors import DataError
from tests.benchmarks.paper.tables.rows import cells_of
from tests.benchmarks.paper.tables.test_curves import run

LINES = [
    *(run(value, "hifi-default", shots="16", seed=n) for n, value in enumerate((0.2, 0.4))),
    *(run(value, "probe", shots="16", seed=n) for n, value in enumerate((0.1, 0.3))),
    run(0.5, "full", shots="16"),
]


class TestMarkdown:
    def test_has_the_methods_and_the_averages_compared(self):
        rows = cells_of(markdown(LINES))
        assert rows[1:4] == [
            ["16", "probe", "20.0 ± 14.1 (2)", "20.0"],
            ["16", "full", "**50.0** (1)", "**50.0**"],
            ["16", "hifi-default", "<u>30.0</u> ± 14.1 (2)", "<u>30.0</u>"],
        ]
        assert rows[5:] == [
            ["average of 1 tasks, 16: hifi-default − probe", "10 points", "≥ 0", "yes"],
            ["average of 1 tasks, 16: hifi-default − full", "-20 points", "≥ 0", "no"],
        ]


class TestCollect:
    @pytest.mark.parametrize(
        "other",
        [
            run(0.9, "full", shots="64", seed=7),
            run(0.9, "full", shots="16", rates="usual", rate=1e-4, seed=7),
            run(0.9, "full", shots="16", task="mnli", seed=7),
        ],
    )
    def test_other_runs_are_left_out(self, other: dict):
        assert list(records([*LINES, other])) == list(records(LINES))

    def test_some_must_be_there(self):
        with pytest.raises(DataError, match="no 16-shot runs"):
            collect([run(0.5, "full", shots="64")])
