"""Correlation r between the heads of a layer, from their mean outputs (Eq. 5 and 6)."""

from __future__ import annotations

import torch
from torch import Tensor

from hifi.errors import InvalidArgumentError


def head_correlation(mean_outputs: Tensor) -> Tensor:
    r"""Compute the absolute covariance between the heads of one sample.

    Eq. (5)-(6):  r_hh' = | Σ_j (o_hj − ō_h)(o_h'j − ō_h') | / (D' − 1),  r_hh = 0,
    where o_h is the mean of O_h over the sample's real tokens and ō_h the mean of its D' entries.

    Args:
        mean_outputs: o_h, shape ``[..., H, D']``; converted to float64.

    Returns:
        float64 ``[..., H, H]``, symmetric, not negative. The absolute value is taken per sample:
        average over samples afterwards (Eq. 7).

    Raises:
        InvalidArgumentError: fewer than two dimensions, no head, or fewer than two entries a head.

    Example:
        >>> head_correlation(torch.tensor([[1.0, 3.0], [4.0, 0.0]]))
        tensor([[0., 4.],
                [4., 0.]], dtype=torch.float64)
    """
    shape = tuple(mean_outputs.shape)
    if len(shape) < 2 or shape[-1] < 2 or 0 in shape:
        raise InvalidArgumentError(
            "mean_outputs", value=shape, limit="shape [..., H, D'] with H ≥ 1 and D' ≥ 2"
        )
    outputs = mean_outputs.to(torch.float64)
    centred = outputs - outputs.mean(-1, keepdim=True)
    correlation = (centred @ centred.mT).abs() / (shape[-1] - 1)
    correlation.diagonal(dim1=-2, dim2=-1).zero_()
    return correlation
