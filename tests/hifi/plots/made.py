"""A selection of two layers of three heads with numbers that a reader can check."""

from __future__ import annotations

from typing import Any

import numpy as np

from hifi.selection.head_selection import HeadSelection

IMPORTANCE = [[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]
RICHNESS = [[4.0, 2.0, 2.0], [1.0, 1.5, 3.5]]
CORRELATION = [
    [[0.0, 8.0, 2.0], [8.0, 0.0, 1.0], [2.0, 1.0, 0.0]],
    [[0.0, 0.1, 0.3], [0.1, 0.0, 0.2], [0.3, 0.2, 0.0]],
]
GRADIENT = [[6.0, 1.0, 1.0], [2.0, 4.0, 6.0]]
SETTINGS = {"xi": 0.9, "d": 0.85, "teleport": "information", "n_samples": 9, "num_layers": 2}


def heads_document(**changes: Any) -> dict[str, Any]:
    """Return the paper's selection as plain JSON, the best head of each layer selected."""
    layers = [
        {
            "layer": layer,
            "selected": [np.argmax(IMPORTANCE[layer]).item()],
            "information_richness": RICHNESS[layer],
            "correlation": CORRELATION[layer],
            "importance": IMPORTANCE[layer],
            "iterations": 5,
        }
        for layer in range(2)
    ]
    return {**SETTINGS, "k": 1, "strategy": "layer-wise", "layers": layers, **changes}


def budget_document() -> dict[str, Any]:
    """Return a selection by gradients with a budget of three heads, two of them in layer 1."""
    document = heads_document(score="gradient", k=None, budget=3, strategy="budget")
    for layer, selected in zip(document["layers"], ([0], [1, 2]), strict=True):
        layer |= {"values": GRADIENT[layer["layer"]], "selected": selected}
    return document


def selection(**changes: Any) -> HeadSelection:
    """Return the paper's selection."""
    return HeadSelection.from_dict(heads_document(**changes))
