"""hifi.data.allotments: which heads compete, how many win, and counts that do not fit."""

from __future__ import annotations

import pytest

from hifi.data.allotments import Allotment, Budget, LayerWise, MidTop, make_allotment
from hifi.errors import InvalidArgumentError


class TestPools:
    @pytest.mark.parametrize(
        ("allotment", "pools", "heads"),
        [
            (LayerWise(3), [range(1), range(1, 2), range(2, 3)], 9),
            (MidTop(2), [range(2, 3)], 2),
            (Budget(7), [range(3)], 7),
        ],
    )
    def test_of_three_layers(self, allotment: Allotment, pools: list[range], heads: int):
        assert allotment.pools(num_layers=3) == pools
        assert allotment.count_heads(num_layers=3) == heads

    def test_of_the_upper_half_are_those_from_the_rounded_up_middle(self):
        assert [MidTop(1).count_heads(num_layers=layers) for layers in (2, 3, 4, 5, 12)] == [
            *(1, 1, 2, 2, 6)
        ]


class TestFitted:
    def test_counts_are_plain_and_within_their_pool(self):
        assert LayerWise(4).fitted(num_layers=3, num_heads=4) == LayerWise(4)
        assert Budget(12).fitted(num_layers=3, num_heads=4) == Budget(12)

    @pytest.mark.parametrize(
        ("allotment", "reason"),
        [
            (LayerWise(5), "k=5.*1 to the 4 heads of a layer"),
            (MidTop(0), "k=0.*1 to the 4 heads of a layer"),
            (Budget(13), "budget=13.*1 to the 12 heads of the model"),
            (Budget(0), "budget=0.*1 to the 12 heads of the model"),
        ],
    )
    def test_refuses_more_than_there_are(self, allotment: Allotment, reason: str):
        with pytest.raises(InvalidArgumentError, match=reason):
            allotment.fitted(num_layers=3, num_heads=4)

    def test_refuses_the_upper_half_of_one_layer(self):
        with pytest.raises(InvalidArgumentError, match=r"strategy='mid-top'.*two layers"):
            MidTop(1).fitted(num_layers=1, num_heads=4)


class TestMake:
    def test_counts_what_its_strategy_counts(self):
        assert make_allotment("layer-wise", k=None, budget=None) == LayerWise(3)
        assert make_allotment("mid-top", k=2, budget=None) == MidTop(2)
        made = make_allotment("budget", k=None, budget=18)
        assert (made, made.k, made.budget) == (Budget(18), None, 18)
