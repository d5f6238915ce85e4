"""By how much metrics of the same rows differ by chance alone."""

from __future__ import annotations

import math


def standard_error(rows: int) -> float:
    """Return 0.5/√n, the largest standard error of an accuracy.

    It is one number for all metrics: the standard error of a correlation near 0 is twice as large.

    Args:
        rows: n, of the split that the metric is measured on.
    """
    return 0.5 / math.sqrt(rows)
