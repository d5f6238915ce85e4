"""benchmarks.paper.tables.overview: averages and costs computed by hand."""

from __future__ import annotations

from typing import Any

from benchmarks.paper.tables.overview import markdown, records
from tests.benchmarks.paper.tables.rows import cells_of
from tests.benchmarks.paper.tables.test_curves import LINES, run


def small(value: float, method: str, *, weights: int, stored: int, **changes) -> dict[str, Any]:
    costs = {"trained_weights": weights, "stored_bytes": {"float32": stored}}
    return {**run(value, method, shots="64", **changes), **costs}


ONLY_ONE = [
    small(0.5, "hifi-default", weights=1000, stored=4100),
    small(0.3, "hifi-default", task="rte", weights=2000, stored=8100),
    small(0.45, "lora-qv", weights=60, stored=300),
]


class TestMarkdown:
    def test_has_the_averages_of_methods_that_have_every_task(self):
        rows = cells_of(markdown(ONLY_ONE))
        assert rows == [
            ["method", "trained weights", "stored", "64 rows"],
            ["LoRA, rank 8, query and value", "60", "0 kB", "–"],
            ["HiFi, three heads of each layer", "1,500", "6 kB", "**40.0**"],
        ]

    def test_marks_the_best_of_each_size(self):
        rows = cells_of(markdown(LINES))
        assert [row[-2:] for row in rows] == [
            ["64 rows", "all rows"],
            ["<u>41.2</u>", "–"],
            ["**45.0**", "**45.4**"],
            ["35.0", "–"],
            ["40.5", "<u>45.0</u>"],
        ]

    def test_names_the_head_start_of_a_rival_that_has_several(self):
        more = [*ONLY_ONE, run(0.1, "lora-qv", shots="64", head_start="probe")]
        names = [row[0] for row in cells_of(markdown(more))]
        assert names[1:3] == [
            "LoRA, rank 8, query and value, from a probe start",
            "LoRA, rank 8, query and value, from a random start",
        ]


def test_records_have_the_averages():
    assert list(records(ONLY_ONE)) == [
        {
            "rows": "64",
            "method": "hifi-default",
            "average": 40.0,
            "tasks": 2,
            "trained_weights": 1500,
            "stored_bytes": 6100,
        }
    ]
