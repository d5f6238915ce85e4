"""benchmarks.paper.tables.overview: averages and costs computed by hand."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.paper.tables.curves import CURVE_TASKS
from benchmarks.paper.tables.overview import markdown, records
from hifi.errors import DataError
from tests.benchmarks.paper.tables.rows import cells_of
from tests.benchmarks.paper.tables.test_curves import run


def of_all_tasks(method: str, value: float, *, weights: int = 100, **changes) -> list[dict]:
    """Return a run of each task; they train 100, 200, … times ``weights`` / 100."""
    settings: dict[str, Any] = {"shots": "64", **changes}
    return [
        {
            **run(value + 0.01 * place, method, task=task, **settings),
            "trained_weights": weights * (place + 1),
            "stored_bytes": {"float32": 1000 * weights},
        }
        for place, task in enumerate(CURVE_TASKS)
    ]


def ours(value: float, **changes) -> list[dict]:
    return of_all_tasks("hifi-default", value, **changes)


class TestMarkdown:
    def test_has_averages_and_costs(self):
        lines = [*ours(0.4, weights=1000), *of_all_tasks("lora-qv", 0.5)]
        assert cells_of(markdown(lines)) == [
            ["method", "trained weights", "stored", "64 rows"],
            ["LoRA, rank 8, query and value", "300", "100 kB", "**52.0**"],
            ["HiFi, three heads of each layer", "3,000", "1,000 kB", "<u>42.0</u>"],
        ]

    def test_leaves_out_methods_and_sizes_without_every_task(self):
        some = [*of_all_tasks("full", 0.5)[1:], *of_all_tasks("probe", 0.3, shots="256")]
        rows = cells_of(markdown([*ours(0.4), *some]))
        assert [[row[0], *row[3:]] for row in rows] == [
            ["method", "64 rows", "256 rows"],
            ["HiFi, three heads of each layer", "**42.0**", "–"],
            ["linear probe", "–", "**32.0**"],
        ]

    def test_names_the_head_start_of_a_rival_that_has_several(self):
        rivals = [
            *of_all_tasks("lora-qv", 0.3, head_start="probe"),
            *of_all_tasks("lora-qv", 0.3, head_start="random"),
        ]
        names = [row[0] for row in cells_of(markdown([*ours(0.4), *rivals]))]
        assert names[1:3] == [
            "LoRA, rank 8, query and value, from a probe start",
            "LoRA, rank 8, query and value, from a random start",
        ]

    def test_one_task_missing_everywhere_is_an_error(self):
        with pytest.raises(DataError, match="no method has runs of all tasks: cola, sst2"):
            list(markdown(ours(0.4)[1:]))


def test_records_have_the_averages():
    (record,) = records(ours(0.4))
    assert record.pop("average") == pytest.approx(42)
    assert record == {
        "rows": "64",
        "method": "hifi-default",
        "trained_weights": 300,
        "stored_bytes": 100_000,
    }
