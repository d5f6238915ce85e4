"""hifi.plots.head_pairs: r of one layer, without the diagonal."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from hifi import plots
from hifi.backbones.heads import HeadId
from hifi.errors import InvalidArgumentError
from hifi.selection.head_selection import HeadSelection
from tests.hifi.plots.made import CORRELATION, budget_document, heads_document, selection


class TestCorrelation:
    @pytest.mark.parametrize("layer", [0, 1])
    def test_has_the_pairs_of_the_layer_without_the_diagonal(self, layer):
        axes = plots.correlation(selection(), layer=layer)
        (image,) = axes.images
        pairs = image.get_array()
        assert np.array_equal(pairs.mask, np.eye(3, dtype=bool))
        assert pairs.filled(0) == pytest.approx(np.array(CORRELATION[layer]))
        assert image.norm.vmin == 0
        assert axes.get_title(loc="left") == f"correlation r in layer {layer}"
        assert image.colorbar.ax.get_ylabel() == "mean absolute covariance"

    def test_marks_the_selected_heads_on_the_diagonal(self):
        axes = plots.correlation(budget_document(), layer=1)
        (line,) = axes.lines
        assert list(line.get_xdata()) == list(line.get_ydata()) == [1, 2]

    def test_draws_into_the_axes_of_the_caller(self):
        ax = Figure().add_subplot()
        assert plots.correlation(selection(), layer=np.int64(1), ax=ax) is ax

    def test_a_number_that_is_not_finite_is_left_out(self):
        document = heads_document()
        pairs = [[0.0, float("nan"), 2.0], [float("inf"), 0.0, 1.0], [2.0, 1.0, 0.0]]
        document["layers"][0]["correlation"] = pairs
        (image,) = plots.correlation(document, layer=0).images
        assert image.get_array().mask.sum() == 5
        assert image.norm.vmax == 2

    def test_a_single_head_has_no_pairs(self):
        document = heads_document(num_layers=1)
        single = {"importance": [1.0], "information_richness": [3.0], "correlation": [[0.0]]}
        document["layers"] = [{**document["layers"][0], **single, "selected": [0]}]
        (image,) = plots.correlation(document, layer=0).images
        assert image.get_array().mask.all()

    @pytest.mark.parametrize("layer", [2, -1, 0.0, True, None])
    def test_refuses_a_layer_that_is_not_there(self, layer):
        with pytest.raises(InvalidArgumentError, match=r"layer=.* an integer from 0 to 1"):
            plots.correlation(selection(), layer=layer)

    def test_needs_scores(self):
        by_hand = HeadSelection.from_heads([HeadId(0, 1)], num_layers=2)
        with pytest.raises(InvalidArgumentError, match="chosen by hand"):
            plots.correlation(by_hand, layer=0)
