"""hifi.selection.head_selection: heads by name, by score and from a file, which may be anyone's."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from hifi.backbones.heads import HeadId, describe
from hifi.errors import InvalidArgumentError
from hifi.selection.head_selection import HeadSelection
from hifi.selection.scoring import select_heads
from hifi.tuning.tuner import HeadTuner
from tests.architectures import LAYERS, QUERY_HEADS, tiny_batch, tiny_model

BAD_HEADS = [
    *(HeadId(3, 0), HeadId(-1, 0), HeadId(0, -1)),
    *(HeadId(0.0, 1.5), HeadId(0, 1.0), HeadId(0.0, 1), HeadId(True, 1), HeadId(0, "1")),
]


def bert_selection(**arguments):
    """Select in a tiny BERT by four samples."""
    return select_heads(tiny_model("bert"), [tiny_batch("bert")], **{"k": 1, **arguments})


def scored_entry():
    """Return the JSON form of a selection with scores."""
    return json.loads(json.dumps(bert_selection().to_dict()))


class TestFromHeads:
    def test_keeps_each_head_once_in_order(self):
        heads = [HeadId(2, 1), HeadId(0, 3), HeadId(2, 1), HeadId(2, 0)]
        selection = HeadSelection.from_heads(heads, num_layers=3)
        assert selection.heads == (HeadId(0, 3), HeadId(2, 0), HeadId(2, 1))
        assert [selection.selected_in(layer) for layer in range(3)] == [(3,), (), (0, 1)]
        assert selection.layers == ()
        assert selection.k is None

    @pytest.mark.parametrize("head", BAD_HEADS, ids=str)
    def test_refuses_a_head_that_cannot_be(self, head):
        with pytest.raises(InvalidArgumentError, match=r"layers 0\.\.2"):
            HeadSelection.from_heads([head], num_layers=3)

    def test_takes_integers_of_numpy(self):
        heads = [HeadId(np.int64(1), np.int32(2)), HeadId(1, 2)]
        selection = HeadSelection.from_heads(heads, num_layers=3)
        assert selection.heads == (HeadId(1, 2),)
        assert json.dumps(selection.to_dict()["layers"][1]["selected"]) == "[2]"

    def test_serves_a_tuner(self):
        model = tiny_model("bert")
        selection = HeadSelection.from_heads([HeadId(1, 2)], num_layers=LAYERS)
        describe(model).check_heads(selection.heads)
        assert len(list(HeadTuner(model, selection).parameters())) > 0


class TestFromScores:
    def test_takes_the_highest_of_each_layer(self):
        scores = torch.tensor([[0.1, 0.4, 0.2, 0.3], [4.0, -1, 2, 9]])
        selection = HeadSelection.from_scores(scores, k=2)
        assert [selection.selected_in(layer) for layer in range(2)] == [(1, 3), (0, 3)]
        assert (selection.k, selection.strategy) == (2, "layer-wise")

    def test_leaves_the_lower_half_out_with_mid_top(self):
        selection = HeadSelection.from_scores(torch.eye(5), k=1, strategy="mid-top")
        assert selection.heads == (HeadId(3, 3), HeadId(4, 4))

    def test_takes_the_highest_of_the_model_with_a_budget(self):
        scores = torch.tensor([[0.1, 0.4], [4.0, -1], [2, 9]])
        selection = HeadSelection.from_scores(scores, strategy="budget", budget=3)
        assert selection.heads == (HeadId(1, 0), HeadId(2, 0), HeadId(2, 1))
        assert (selection.k, selection.budget, selection.strategy) == (None, 3, "budget")

    def test_gives_ties_of_a_budget_to_the_lower_layer_and_then_head(self):
        scores = torch.ones(3, 2, dtype=torch.float64)
        scores[2, 1] += 1e-12  # not told from the others
        selection = HeadSelection.from_scores(scores, strategy="budget", budget=3)
        assert selection.heads == (HeadId(0, 0), HeadId(0, 1), HeadId(1, 0))
        scores[2, 1] += 1e-9
        selection = HeadSelection.from_scores(scores, strategy="budget", budget=2)
        assert selection.heads == (HeadId(0, 0), HeadId(2, 1))

    def test_selects_three_heads_per_layer_by_default(self):
        assert len(HeadSelection.from_scores(torch.eye(4)).heads) == 12

    @pytest.mark.parametrize("budget", [0, 7, -1, True, 2.0])
    def test_refuses_a_budget_outside_its_range(self, budget):
        with pytest.raises(InvalidArgumentError, match=r"budget=.*1 to the 6 heads of the model"):
            HeadSelection.from_scores(torch.ones(2, 3), strategy="budget", budget=budget)

    def test_refuses_counts_that_do_not_go_together(self):
        for arguments, reason in (
            ({"k": 2, "budget": 3, "strategy": "budget"}, r"budget=3.*k=2 is given too"),
            ({"strategy": "budget"}, r"budget=None.*strategy='budget' needs the number"),
            ({"k": 2, "strategy": "budget"}, r"budget=None.*strategy='budget' needs the number"),
            ({"budget": 3}, r"budget=3.*only with strategy='budget', not with 'layer-wise'"),
            ({"budget": 3, "strategy": "mid-top"}, r"budget=3.*not with 'mid-top'"),
        ):
            with pytest.raises(InvalidArgumentError, match=reason):
                HeadSelection.from_scores(torch.ones(2, 3), **arguments)

    def test_gives_ties_to_the_lower_index(self):
        selection = HeadSelection.from_scores(torch.tensor([[1, 2, 2, 2, 1]]), k=2)
        assert selection.selected_in(0) == (1, 2)
        assert HeadSelection.from_scores(torch.zeros(1, 4), k=1).selected_in(0) == (0,)

    def test_takes_scores_that_agree_to_twelve_decimals_for_equal(self):
        scores = torch.tensor([[0.25, 0.25 + 4e-13, 0.25, 0.25]], dtype=torch.float64)
        assert HeadSelection.from_scores(scores, k=1).selected_in(0) == (0,)
        scores[0, 1] += 1e-11
        assert HeadSelection.from_scores(scores, k=1).selected_in(0) == (1,)

    @pytest.mark.parametrize("scale", [1e-300, 1e-14, 1e300])
    def test_does_not_depend_on_scale(self, scale):
        scores = torch.tensor([[1.0, 2, 3, 4]], dtype=torch.float64) * scale
        assert HeadSelection.from_scores(scores, k=2).selected_in(0) == (2, 3)

    def test_makes_the_ablations(self):
        selection = select_heads(tiny_model("modernbert"), [tiny_batch("modernbert")], k=2)
        importance = torch.stack([layer.importance for layer in selection.layers])
        assert HeadSelection.from_scores(importance, k=2).heads == selection.heads
        inverse = HeadSelection.from_scores(-importance, k=2)
        assert set(inverse.heads).isdisjoint(selection.heads)
        correlation = torch.stack([layer.correlation for layer in selection.layers])
        assert len(HeadSelection.from_scores(correlation.sum(2), k=1).heads) == LAYERS

    @pytest.mark.parametrize(
        "scores",
        [torch.ones(3), torch.ones(0, 3), torch.ones(3, 0), torch.tensor([[1, torch.nan]])],
    )
    def test_refuses_scores_of_another_shape_or_not_finite(self, scores):
        with pytest.raises(InvalidArgumentError, match=r"scores=.*\[L, H\]"):
            HeadSelection.from_scores(scores, k=1)

    def test_takes_integers_of_numpy(self):
        selection = HeadSelection.from_scores(torch.eye(3), k=np.int64(1))
        assert type(selection.k) is int

    def test_refuses_the_upper_half_of_a_single_layer(self):
        with pytest.raises(InvalidArgumentError, match=r"strategy='mid-top'.*two layers"):
            HeadSelection.from_scores(torch.ones(1, 3), k=1, strategy="mid-top")

    @pytest.mark.parametrize("k", [0, 4, True, 1.0, np.True_])
    def test_refuses_k_outside_its_range(self, k):
        with pytest.raises(InvalidArgumentError, match=r"k=.*1 to the 3 heads"):
            HeadSelection.from_scores(torch.ones(2, 3), k=k)

    def test_refuses_an_unknown_strategy(self):
        with pytest.raises(InvalidArgumentError, match="strategy='all'"):
            HeadSelection.from_scores(torch.ones(2, 3), k=1, strategy="all")


class TestDict:
    @pytest.mark.parametrize("strategy", ["layer-wise", "mid-top"])
    def test_comes_back_from_json_bit_for_bit(self, strategy):
        selection = bert_selection(k=2, xi=0.7, strategy=strategy)
        entry = selection.to_dict()
        back = HeadSelection.from_dict(json.loads(json.dumps(entry, allow_nan=False)))
        assert back.to_dict() == entry
        assert back.heads == selection.heads
        assert (back.damping, back.n_samples) == (0.85, 4)
        for scores, expected in zip(back.layers, selection.layers, strict=True):
            assert torch.equal(scores.correlation, expected.correlation)
            assert scores.iterations == expected.iterations
            assert scores.selected == expected.selected

    @pytest.mark.parametrize(
        "settings",
        [
            {"score": "random", "k": 2},
            {"k": None, "strategy": "budget", "budget": 5},
            {"score": "output-norm", "k": None, "strategy": "budget", "budget": 5},
        ],
    )
    def test_of_another_score_or_a_budget_comes_back_with_its_values(self, settings):
        selection = bert_selection(**settings)
        entry = selection.to_dict()
        assert set(entry) - set(bert_selection().to_dict()) == {"score", "budget"} & {
            name for name in entry if entry[name] not in (None, "pagerank")
        }
        back = HeadSelection.from_dict(json.loads(json.dumps(entry, allow_nan=False)))
        assert back.to_dict() == entry
        assert (back.heads, back.budget, back.k) == (
            *(selection.heads, selection.budget, selection.k),
        )
        assert back.score == settings.get("score", "pagerank")
        for scores, expected in zip(back.layers, selection.layers, strict=True):
            assert torch.equal(scores.values, expected.values)
        whole = torch.stack([layer.values for layer in back.layers])
        allotment = {"k": back.k, "strategy": back.strategy, "budget": back.budget}
        assert HeadSelection.from_scores(whole, **allotment).heads == selection.heads

    def test_of_before_there_were_other_scores_is_pageranks(self):
        entry = bert_selection().to_dict()
        assert not entry.keys() & {"score", "budget"}
        back = HeadSelection.from_dict(entry)
        assert (back.score, back.budget) == ("pagerank", None)
        for layer in back.layers:
            assert torch.equal(layer.values, layer.importance)

    def test_of_a_selection_by_hand_has_no_scores(self):
        selection = HeadSelection.from_heads([HeadId(1, 2)], num_layers=2)
        entry = selection.to_dict()
        assert entry["layers"] == [{"layer": 0, "selected": []}, {"layer": 1, "selected": [2]}]
        back = HeadSelection.from_dict(entry)
        assert (back.heads, back.num_layers, back.layers) == ((HeadId(1, 2),), 2, ())

    def test_has_the_names_of_the_contract(self):
        entry = bert_selection().to_dict()
        names = "k xi d strategy teleport n_samples num_layers layers"
        assert list(entry) == names.split()
        layer = "layer selected information_richness correlation importance iterations"
        assert list(entry["layers"][0]) == layer.split()

    @pytest.mark.parametrize(
        "change",
        [
            lambda entry: entry.pop("xi"),
            lambda entry: entry.pop("layers"),
            lambda entry: entry.update(layers=3),
            lambda entry: entry["layers"][1].pop("selected"),
            lambda entry: entry["layers"][1].pop("importance"),
            lambda entry: entry["layers"][1].update(selected=[-1]),
            lambda entry: entry["layers"][1].update(selected=[1.5]),
            lambda entry: entry["layers"][1].update(selected="12"),
            lambda entry: entry["layers"][1].update(importance=[0.5, "x"]),
            lambda entry: entry["layers"][1].update(importance=[[1.0], [1.0, 2.0]]),
            lambda entry: entry["layers"][1].update(importance=[1.0]),
            lambda entry: entry["layers"][1].update(iterations=float("inf")),
            lambda entry: entry["layers"].append(None),
            lambda entry: entry["layers"][1].pop("layer"),
            lambda entry: entry.pop("num_layers"),
        ],
    )
    def test_refuses_what_is_malformed(self, change):
        entry = bert_selection().to_dict()
        change(entry)
        with pytest.raises(InvalidArgumentError, match=r"^selection[.=]"):
            HeadSelection.from_dict(entry)

    @pytest.mark.parametrize(
        ("name", "value", "limit"),
        [
            ("k", 0, "1 to the 4 heads"),
            ("k", 5, "1 to the 4 heads"),
            ("k", 1.0, "an integer"),
            ("xi", 1.0, r"\(0, 1\)"),
            ("xi", "0.9", r"\(0, 1\)"),
            ("d", 1.0, r"\[0, 1\)"),
            ("strategy", "top", "layer-wise, mid-top"),
            ("score", "best", "one of pagerank, information"),
            ("budget", 3, "k=1 is given too"),
            ("teleport", "inverse", "information, uniform"),
            ("n_samples", 0, "an integer from 1"),
            ("n_samples", True, "an integer from 1"),
            ("num_layers", 4, "3, the number of layers"),
            ("num_layers", 3.0, "3, the number of layers"),
        ],
    )
    def test_refuses_a_setting_outside_its_range_by_name(self, name, value, limit):
        entry = scored_entry()
        entry[name] = value
        param = {"d": "damping"}.get(name, name)
        with pytest.raises(InvalidArgumentError, match=rf"selection\.{param}=.*{limit}") as caught:
            HeadSelection.from_dict(entry)
        assert caught.value.param == f"selection.{param}"
        assert caught.value.value is value

    def test_refuses_a_budget_without_its_count_or_of_too_many(self):
        entry = bert_selection(k=None, strategy="budget", budget=5).to_dict()
        for budget, reason in ((None, "needs the number"), (13, "1 to the 12 heads of the model")):
            with pytest.raises(InvalidArgumentError, match=rf"selection\.budget=.*{reason}"):
                HeadSelection.from_dict({**entry, "budget": budget})

    @pytest.mark.parametrize("values", [[0.1], [0.1, math.nan, 0, 0], [[0.1] * 4], "0123"])
    def test_refuses_values_that_are_not_one_number_a_head(self, values):
        entry = bert_selection(score="random").to_dict()
        entry["layers"][1]["values"] = values
        with pytest.raises(InvalidArgumentError, match=r"^selection[.=]"):
            HeadSelection.from_dict(entry)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_refuses_a_richness_that_is_not_finite(self, value):
        entry = scored_entry()
        entry["layers"][1]["information_richness"][2] = value
        with pytest.raises(
            InvalidArgumentError, match=r"layers\[1\]\.information_richness=.*finite"
        ):
            HeadSelection.from_dict(entry)

    @pytest.mark.parametrize("name", ["k", "xi", "d", "strategy", "teleport", "n_samples"])
    def test_refuses_scores_without_how_they_were_found(self, name):
        entry = scored_entry()
        entry[name] = None
        with pytest.raises(InvalidArgumentError, match="=None is not allowed"):
            HeadSelection.from_dict(entry)

    @pytest.mark.parametrize(
        ("name", "value"),
        [("k", 0), ("xi", 2), ("d", -1), ("strategy", "x"), ("teleport", 1), ("n_samples", 1.5)],
    )
    def test_refuses_a_bad_setting_without_scores_too(self, name, value):
        entry = HeadSelection.from_heads([HeadId(1, 2)], num_layers=2).to_dict()
        entry[name] = value
        with pytest.raises(InvalidArgumentError, match=r"^selection\."):
            HeadSelection.from_dict(entry)

    def test_refuses_the_upper_half_of_a_single_layer(self):
        entry = HeadSelection.from_heads([HeadId(0, 2)], num_layers=1).to_dict()
        entry["strategy"] = "mid-top"
        with pytest.raises(InvalidArgumentError, match="two layers"):
            HeadSelection.from_dict(entry)

    @pytest.mark.parametrize("layer", [0, 2, 1.0, True, None])
    def test_refuses_layers_out_of_their_place(self, layer):
        entry = scored_entry()
        entry["layers"][1]["layer"] = layer
        with pytest.raises(InvalidArgumentError, match=r"selection.layers\[1\].layer=.*place, 1"):
            HeadSelection.from_dict(entry)

    def test_refuses_a_head_that_has_no_scores(self):
        entry = scored_entry()
        entry["layers"][1]["selected"] = [QUERY_HEADS]
        with pytest.raises(InvalidArgumentError, match=r"layers\[1\].selected=\[4\].*0\.\.3"):
            HeadSelection.from_dict(entry)

    @pytest.mark.parametrize("share", [-1e308, -1e-9, 1 + 1e-9, 1e308, math.inf, math.nan])
    def test_refuses_an_importance_that_is_no_share(self, share):
        entry = scored_entry()
        entry["layers"][1]["importance"][2] = share
        with pytest.raises(InvalidArgumentError, match=r"layers\[1\].importance=.*\[0, 1\]"):
            HeadSelection.from_dict(entry)

    def test_of_scores_from_elsewhere_comes_back(self):
        selection = HeadSelection.from_scores(torch.eye(4), k=1, strategy="mid-top")
        back = HeadSelection.from_dict(selection.to_dict())
        assert (back.heads, back.k, back.strategy) == (selection.heads, 1, "mid-top")
