"""benchmarks.paper.tables.ablation: Tab. 3 against numbers computed by hand."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.paper.tables.ablation import jaccard, markdown, records
from hifi.errors import DataError
from tests.benchmarks.paper.tables.rows import cells_of
from tests.benchmarks.paper.tiny import line


def run(
    value: float | None, method: str, heads: list[tuple[int, int]], **changes
) -> dict[str, Any]:
    settings = {"head_start": "probe", "rate": 5e-4, **changes}
    return {**line(value, method=method, **settings), "heads": [list(head) for head in heads]}


BEST, OTHER, WORST = [(0, 0), (1, 1)], [(0, 0), (1, 2)], [(0, 3), (1, 3)]
LINES = [
    run(0.50, "hifi", BEST, seed=0),
    run(0.54, "hifi", BEST, seed=1),
    run(0.48, "hifi-information", OTHER, seed=0),
    run(0.50, "hifi-information", BEST, seed=1),
    *(
        run(value, method, WORST, seed=seed)
        for method, values in {
            "hifi-random": (0.40, 0.50),
            "hifi-random-2": (0.44, 0.50),
            "hifi-random-3": (0.48, 0.50),
        }.items()
        for seed, value in enumerate(values)
    ),
    # Another allotment is compared with its own.
    run(0.60, "hifi-pagerank-budget", OTHER, seed=0),
    run(0.70, "hifi-budget", OTHER, seed=0),
    run(0.80, "hifi-random-budget", BEST, seed=0),
]


def by_ranking(lines) -> dict[tuple[str, str], dict[str, Any]]:
    return {(each["allotment"], each["ranking"]): each for each in records(lines)}


class TestRecords:
    def test_differences_are_paired_with_the_mean_of_the_draws(self):
        # Seed 0: 50 − 44, seed 1: 54 − 50; mean 5, s = √2, t(1; 0.975) = 12.7062.
        found = by_ranking(LINES)["layer-wise", "pagerank"]
        assert found["above_random"] == pytest.approx(5)
        assert (found["low"], found["high"]) == pytest.approx((5 - 12.7062, 5 + 12.7062), abs=1e-3)
        assert found["pairs"] == 2

    def test_random_heads_are_all_draws_together_and_not_compared_with_themselves(self):
        # 40, 44, 48, 50, 50, 50: mean 47, s = √(86 / 5).
        found = by_ranking(LINES)["layer-wise", "random"]
        assert found["cola"] == pytest.approx(47)
        assert found["cola_sd"] == pytest.approx((86 / 5) ** 0.5)
        assert (found["above_random"], found["pairs"]) == (None, 0)

    def test_the_overlap_is_with_pageranks_heads_of_the_same_seed(self):
        found = by_ranking(LINES)
        assert found["layer-wise", "information"]["overlap"] == pytest.approx((1 / 3 + 1) / 2)
        assert found["layer-wise", "random"]["overlap"] == 0
        assert found["layer-wise", "pagerank"]["overlap"] is None

    def test_each_allotment_has_its_own_control(self):
        found = by_ranking(LINES)
        assert found["budget", "gradient"]["above_random"] == pytest.approx(-10)
        assert found["budget", "gradient"]["overlap"] == 1
        assert found["budget", "random"]["overlap"] == pytest.approx(1 / 3)

    def test_an_interval_needs_two_pairs_and_a_difference_one(self):
        found = by_ranking(LINES)["budget", "gradient"]
        assert (found["low"], found["high"], found["pairs"]) == (None, None, 1)
        alone = by_ranking([run(0.5, "hifi", BEST)])["layer-wise", "pagerank"]
        assert (alone["above_random"], alone["pairs"]) == (None, 0)

    def test_all_tasks_count_as_pairs_and_in_the_average(self):
        more = [
            *LINES,
            run(0.30, "hifi", BEST, seed=0, task="rte"),
            run(0.10, "hifi-random", WORST, seed=0, task="rte"),
        ]
        found = by_ranking(more)
        assert found["layer-wise", "pagerank"]["pairs"] == 3
        assert found["layer-wise", "pagerank"]["above_random"] == pytest.approx((6 + 4 + 20) / 3)
        assert found["layer-wise", "pagerank"]["average"] == pytest.approx((52 + 30) / 2)
        assert found["layer-wise", "information"]["average"] is None

    def test_a_diverged_run_is_in_no_pair(self):
        lines = [
            run(None, "hifi", BEST) | {"heads": None},
            run(0.5, "hifi-random", WORST),
            run(0.4, "hifi", BEST, seed=1),
            run(0.3, "hifi-random", WORST, seed=1),
        ]
        found = by_ranking(lines)
        assert found["layer-wise", "pagerank"]["pairs"] == 1
        assert found["layer-wise", "random"]["overlap"] == 0

    @pytest.mark.parametrize(
        ("changes", "found"),
        [
            ({"shots": "64", "most_rows": None}, "64 from probe, usual and full from probe, usual"),
            ({"head_start": "random"}, "full from probe, usual and full from random, usual"),
            (
                {"rates": "search", "rate": None},
                "full from probe, search and full from probe, usual",
            ),
        ],
    )
    def test_settings_are_not_mixed(self, changes: dict, found: str):
        with pytest.raises(DataError, match=f"not of {found}: filter them"):
            list(records([*LINES, run(0.5, "hifi", BEST, **changes)]))

    def test_other_methods_are_left_out_and_some_must_be_there(self):
        full = line(0.9, method="full")
        assert by_ranking([*LINES, full]) == by_ranking(LINES)
        with pytest.raises(DataError, match="its methods are hifi, hifi-information"):
            list(records([full]))


class TestMarkdown:
    def test_has_every_ranking_in_the_order_of_the_paper(self):
        assert [" | ".join(row) for row in cells_of(markdown(LINES))] == [
            (
                "allotment | heads by | cola (matthews) | average | − random | "
                "95 % interval (t) | pairs | overlap with PageRank's"
            ),
            (
                "layer-wise | PageRank (HiFi) | **52.0** ± 2.8 (2) | **52.0** | +5.0 | "
                "-7.7 to 17.7 | 2 | –"
            ),
            (
                "layer-wise | information (w/o corr) | <u>49.0</u> ± 1.4 (2) | <u>49.0</u> | "
                "+2.0 | -23.4 to 27.4 | 2 | 0.67"
            ),
            "layer-wise | random | 47.0 ± 4.1 (6) | 47.0 | – | – | – | 0.00",
            "budget | PageRank (HiFi) | 60.0 (1) | 60.0 | -20.0 | – | 1 | –",
            "budget | gradient | <u>70.0</u> (1) | <u>70.0</u> | -10.0 | – | 1 | 1.00",
            "budget | random | **80.0** (1) | **80.0** | – | – | – | 0.33",
        ]


def test_jaccard_is_common_over_all():
    assert jaccard(frozenset({(0, 1), (0, 2)}), frozenset({(0, 2), (1, 1)})) == 1 / 3
