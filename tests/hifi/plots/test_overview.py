"""hifi.plots.overview: which pictures a figure has."""

from __future__ import annotations

import numpy as np
import pytest

from hifi import plots
from hifi.backbones.heads import HeadId
from hifi.errors import InvalidArgumentError
from hifi.selection.head_selection import HeadSelection
from tests.hifi.plots.made import CORRELATION, budget_document, heads_document, selection


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]


class TestCorrelations:
    def test_has_every_layer_on_its_own_scale(self):
        figure = plots.correlations(selection())
        assert titles(figure) == ["layer 0, r up to 8", "layer 1, r up to 0.3"]
        panels = [axes for axes in figure.axes if axes.images]
        for axes, pairs in zip(panels, CORRELATION, strict=True):
            assert axes.images[0].get_array().filled(0) == pytest.approx(np.array(pairs))
            assert axes.images[0].norm.vmax == max(map(max, pairs))

    def test_has_no_empty_panel(self):
        document = heads_document(num_layers=7)
        layer = document["layers"][0]
        document["layers"] = [{**layer, "layer": place} for place in range(7)]
        figure = plots.correlations(document)
        assert len(titles(figure)) == 7
        assert len(figure.axes) == 7 + 1  # the colour bar's

    def test_needs_scores(self):
        by_hand = HeadSelection.from_heads([HeadId(0, 1)], num_layers=2)
        with pytest.raises(InvalidArgumentError, match="chosen by hand"):
            plots.correlations(by_hand)


class TestOverview:
    def test_of_the_papers_method_has_importance_richness_and_correlations(self):
        figure = plots.overview(selection())
        assert titles(figure) == [
            "importance (PageRank)",
            "information richness",
            "layer 0, r up to 8",
            "layer 1, r up to 0.3",
        ]

    def test_of_another_score_has_it_beside_the_papers_numbers(self):
        figure = plots.overview(budget_document())
        assert titles(figure)[:3] == [
            "score gradient",
            "importance (PageRank)",
            "information richness",
        ]

    def test_of_heads_chosen_by_hand_has_their_marks(self):
        by_hand = HeadSelection.from_heads([HeadId(0, 1)], num_layers=2)
        assert titles(plots.overview(by_hand)) == ["no scores recorded"]

    def test_a_title_is_no_formula(self, tmp_path):
        figure = plots.overview(selection(), title=r"$\broken and $1")
        plots.save(figure, tmp_path / "titled.svg")  # a formula would raise
        assert figure.get_suptitle() == r"$\broken and $1"
