"""hifi.plots.head_maps: the numbers in the pictures, and the marks of the selected heads."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from hifi import plots
from hifi.backbones.heads import HeadId
from hifi.errors import InvalidArgumentError
from hifi.selection.head_selection import HeadSelection
from tests.hifi.plots.made import (
    IMPORTANCE,
    RICHNESS,
    budget_document,
    heads_document,
    selection,
)


def cells(axes):
    (image,) = axes.images
    assert image.origin == "lower"  # layer 0 at the bottom, as the terminal shows it
    return np.asarray(image.get_array())


def marks(axes):
    """Return the marked heads as (layer, head)."""
    (line,) = axes.lines
    assert line.get_linestyle() == "None"
    return sorted(zip(line.get_ydata(), line.get_xdata(), strict=True))


def bar_label(axes):
    (image,) = axes.images
    return image.colorbar.ax.get_ylabel()


class TestImportance:
    def test_has_the_share_of_every_head_and_marks_the_selected(self):
        axes = plots.importance(selection())
        assert cells(axes) == pytest.approx(100 * np.array(IMPORTANCE))
        assert marks(axes) == [(0, 0), (1, 2)]
        assert axes.get_title(loc="left") == "importance (PageRank)"
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("head", "layer")
        assert bar_label(axes) == "share of the layer's sum, %"
        (text,) = axes.get_legend().get_texts()
        assert text.get_text() == "selected: 2 of 6 heads"

    def test_is_the_papers_whatever_ranked_the_heads(self):
        axes = plots.importance(budget_document())
        assert cells(axes) == pytest.approx(100 * np.array(IMPORTANCE))
        assert marks(axes) == [(0, 0), (1, 1), (1, 2)]

    def test_draws_into_the_axes_of_the_caller(self):
        figure = Figure()
        left, right = figure.subplots(1, 2)
        assert plots.importance(selection(), ax=right) is right
        assert not left.images
        assert right.images

    def test_numbers_every_head_unless_there_are_many(self):
        axes = plots.importance(selection())
        assert list(axes.get_xticks()) == [0, 1, 2]
        assert list(axes.get_yticks()) == [0, 1]
        many = plots.scores(HeadSelection.from_heads([HeadId(99, 199)], num_layers=100))
        assert 2 <= len(many.get_xticks()) <= 12

    @pytest.mark.parametrize("draw", [plots.importance, plots.richness])
    def test_needs_scores(self, draw):
        by_hand = HeadSelection.from_heads([HeadId(0, 1)], num_layers=2)
        with pytest.raises(InvalidArgumentError, match="chosen by hand"):
            draw(by_hand)


class TestRichness:
    def test_has_the_number_of_directions_of_every_head(self):
        axes = plots.richness(heads_document(xi=0.995))
        assert cells(axes) == pytest.approx(np.array(RICHNESS))
        assert marks(axes) == [(0, 0), (1, 2)]
        assert bar_label(axes) == "singular directions that carry 99.5%"


class TestScores:
    def test_of_the_papers_method_are_the_importance(self):
        axes = plots.scores(selection())
        assert cells(axes) == pytest.approx(100 * np.array(IMPORTANCE))
        assert axes.get_title(loc="left") == "importance (PageRank)"

    def test_of_a_budget_are_shares_of_the_model(self):
        axes = plots.scores(budget_document())
        assert cells(axes) == pytest.approx(np.array([[30, 5, 5], [10, 20, 30]]))
        assert axes.get_title(loc="left") == "score gradient"
        assert bar_label(axes) == "share of the model's sum, %"

    def test_of_pagerank_with_a_budget_are_not_called_the_importance(self):
        document = budget_document()
        del document["score"]
        assert plots.scores(document).get_title(loc="left") == "score pagerank"

    def test_of_another_score_are_shares_of_the_layer(self):
        document = {**budget_document(), "k": 1, "budget": None, "strategy": "layer-wise"}
        axes = plots.scores(document)
        assert cells(axes)[0] == pytest.approx([75, 12.5, 12.5])
        assert bar_label(axes) == "share of the layer's sum, %"

    def test_of_heads_chosen_by_hand_are_the_marks_alone(self):
        by_hand = HeadSelection.from_heads([HeadId(0, 1), HeadId(2, 3)], num_layers=3)
        axes = plots.scores(by_hand)
        assert marks(axes) == [(0, 1), (2, 3)]
        assert cells(axes).shape == (3, 4)
        assert len(set(cells(axes).flatten())) == 1
        assert axes.get_title(loc="left") == "no scores recorded"
        (text,) = axes.get_legend().get_texts()
        assert text.get_text() == "selected: 2 heads"  # of how many is not known

    def test_of_no_heads_are_an_empty_grid(self):
        assert marks(plots.scores(HeadSelection.from_heads([], num_layers=0))) == []
