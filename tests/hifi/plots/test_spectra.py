"""hifi.plots.spectra: lines of cumulative singular values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from hifi import plots
from hifi.backbones.heads import HeadId
from hifi.errors import InvalidArgumentError

SHARES = np.array([[[0.5, 0.75, 1.0], [0.7, 0.95, 1.0]], [[0.9, 1.0, 1.0], [0.3, 0.6, 1.0]]])


class TestSingularValues:
    def test_has_the_mean_of_each_layer_and_the_share_to_reach(self):
        axes = plots.singular_values(SHARES, xi=0.8)
        *layers, level = axes.lines
        assert [line.get_label() for line in layers] == ["layer 0", "layer 1"]
        assert list(layers[0].get_xdata()) == [1, 2, 3]
        assert list(layers[0].get_ydata()) == pytest.approx([0.6, 0.85, 1])
        assert list(layers[1].get_ydata()) == pytest.approx([0.6, 0.8, 1])
        assert level.get_label() == "ξ = 0.8"
        assert set(level.get_ydata()) == {0.8}

    def test_has_a_line_for_each_head_that_is_named(self):
        axes = plots.singular_values(SHARES, heads=iter([HeadId(1, 0), HeadId(0, 1)]))
        *heads, _ = axes.lines
        assert [line.get_label() for line in heads] == ["layer 1, head 0", "layer 0, head 1"]
        assert list(heads[0].get_ydata()) == [0.9, 1, 1]

    def test_lines_differ_in_more_than_their_colours(self):
        styles = [line.get_linestyle() for line in plots.singular_values(SHARES).lines[:2]]
        assert len(set(styles)) == 2

    def test_draws_into_the_axes_of_the_caller(self):
        ax = Figure().add_subplot()
        assert plots.singular_values(SHARES, ax=ax) is ax

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"shares": SHARES[0]}, r"shares=\(2, 3\).*\[L, H, T\]"),
            ({"shares": SHARES[:0]}, "shares="),
            ({"shares": "shares"}, r"shares='str'.*\[L, H, T\]"),
            ({"shares": [[[0.5, 1.0]], [[1.0]]]}, "shares='list'"),
            ({"shares": torch.ones(1, 1, 2, dtype=torch.bfloat16)}, "shares='Tensor'"),
            ({"shares": torch.ones(1, 1, 2, requires_grad=True)}, "shares='Tensor'"),
            ({"heads": [(0, 0)]}, r"heads=\(0, 0\)"),
            ({"heads": 3}, "heads=3"),
            ({"heads": [HeadId("0", 0)]}, "heads=HeadId"),
            ({"heads": [HeadId(True, 0)]}, "heads=HeadId"),
            ({"heads": [HeadId(0, 1.0)]}, "heads=HeadId"),
            ({"heads": [HeadId(2, 0)]}, r"layers 0\.\.1, heads 0\.\.1"),
            ({"heads": [HeadId(0, -1)]}, r"layers 0\.\.1, heads 0\.\.1"),
            ({"xi": 1.5}, "xi=1.5"),
        ],
    )
    def test_refuses_what_is_not_there(self, changes, message):
        with pytest.raises(InvalidArgumentError, match=message):
            plots.singular_values(**{"shares": SHARES, **changes})
