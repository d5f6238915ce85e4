"""singular-values: the library's shares, and where they reach ξ."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.paper.figures.singular_values import compute, draw, notes, reached_at
from tests.architectures import HIDDEN, LAYERS, QUERY_HEADS

if TYPE_CHECKING:
    from benchmarks.paper.figures.figure import Request


def test_the_shares_rise_to_one_and_are_drawn_by_layer(request_for: Callable[..., Request]):
    numbers = compute(request_for())
    shares = np.array(numbers["shares"])
    assert shares.shape == (LAYERS, QUERY_HEADS, HIDDEN // QUERY_HEADS)
    assert (np.diff(shares, axis=-1) >= 0).all()
    assert shares[..., -1] == pytest.approx(1)
    assert numbers["samples"] == 300
    for layer, count in enumerate(numbers["reached_at"]):
        means = shares[layer].mean(0)
        assert count == 1 + (means < 0.9).sum()
    lines = draw(numbers).axes[0].lines
    assert list(lines[1].get_ydata()) == pytest.approx(shares[1].mean(0))
    assert f"layer 0: {numbers['reached_at'][0]}" in "\n".join(notes(numbers))


def test_reached_at_takes_the_mean_of_the_heads():
    shares = np.array([[[0.5, 0.8, 1.0], [0.7, 1.0, 1.0]], [[0.95, 1.0, 1.0], [0.95, 1.0, 1.0]]])
    assert reached_at(shares, share=0.9) == [2, 1]
