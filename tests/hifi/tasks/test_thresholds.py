"""hifi.tasks.thresholds: the best threshold, against every candidate by scikit-learn's metrics."""

from __future__ import annotations

import numpy as np
import pytest

from hifi.tasks.metrics import measure_label_sets
from hifi.tasks.thresholds import best_threshold

METRICS = ("micro_f1", "macro_f1", "subset_accuracy")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_is_the_best_of_all_candidates(metric: str, seed: int, share: float):
    draw = np.random.default_rng(seed)
    targets = draw.random((40, 5)) < share
    scores = np.round(draw.beta(0.6 + targets, 1.4), 2)  # many equal some candidate exactly
    values = {
        each: measure_label_sets([metric], targets, scores, threshold=each)[metric]
        for each in (np.arange(1, 100) / 100).tolist()
    }
    found = best_threshold(targets, scores, metric=metric, usual=0.5)
    assert values[found] == pytest.approx(max(values.values()), abs=1e-9)
    best = [each for each, value in values.items() if value >= max(values.values()) - 1e-9]
    assert abs(found - 0.5) == pytest.approx(min(abs(each - 0.5) for each in best))
