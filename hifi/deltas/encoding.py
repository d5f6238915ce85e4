"""Encode rows for storage: unchanged in float32, or as differences in bfloat16 or int8."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hifi.deltas.metadata import Encoding

SCALE_SUFFIX = ".scale"
INT8_LIMIT = 127
STORED_DTYPES: Mapping[Encoding, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
}


def is_weight(name: str) -> bool:
    """Return whether a row name is a weight's; biases are never stored as differences."""
    return name.endswith(".weight")


def differences(
    rows: Mapping[str, Tensor], *, base: Mapping[str, Tensor], compute_dtype: str
) -> dict[str, Tensor]:
    """Subtract the replaced rows: W' − W, with W in the dtype of the tuning.

    Args:
        rows: W', by row name.
        base: the rows that W' replaces, under the same names.
        compute_dtype: W is rounded to it before the subtraction.

    Returns:
        float32; biases are those of ``rows``, not differences.
    """
    return {
        name: tensor.float() - _rounded(base[name], compute_dtype)
        if is_weight(name)
        else tensor.float()
        for name, tensor in rows.items()
    }


def add_differences(
    differences: Mapping[str, Tensor], *, base: Mapping[str, Tensor], compute_dtype: str
) -> dict[str, Tensor]:
    """Invert ``differences``: W' = W + (W' − W), in float32, exact up to its rounding."""
    return {
        name: _rounded(base[name], compute_dtype) + tensor if is_weight(name) else tensor
        for name, tensor in differences.items()
    }


def encode(rows: Mapping[str, Tensor], encoding: Encoding) -> dict[str, Tensor]:
    """Encode rows, or differences, as the tensors of a file.

    Args:
        rows: float32; rows or differences, as ``encoding`` requires.
        encoding: ``int8`` adds a float32 scale per row, ``….scale``, of shape ``[rows]``.

    Returns:
        Contiguous tensors by name.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in rows.items():
        if not is_weight(name):
            tensors[name] = tensor.contiguous()
        elif encoding == "int8":
            tensors[name], tensors[name + SCALE_SUFFIX] = quantize(tensor)
        else:
            tensors[name] = tensor.to(STORED_DTYPES[encoding]).contiguous()
    return tensors


def decode(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Decode the tensors of a file to float32 rows, or differences."""
    rows: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(SCALE_SUFFIX):
            continue
        scale = tensors.get(name + SCALE_SUFFIX)
        rows[name] = tensor.float() if scale is None else tensor.float() * scale[:, None]
    return rows


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to 255 evenly spaced values around zero.

    The scale is max|row| / 127. Encoding decoded rows gives the same codes and scale again: for
    every float32 m that is not subnormal, (m/127)·127/127 equals m/127 (tried on all mantissas).

    Args:
        weight: float32 ``[rows, D]``, finite.

    Returns:
        int8 ``[rows, D]`` within ±127, and the float32 scale ``[rows]``, 1 for a row of zeros.
    """
    scale = weight.abs().amax(dim=1) / INT8_LIMIT
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    codes = (weight.double() / scale.double()[:, None]).round().clamp(-INT8_LIMIT, INT8_LIMIT)
    return codes.to(torch.int8).contiguous(), scale


def _rounded(base: Tensor, compute_dtype: str) -> Tensor:
    dtype: torch.dtype = getattr(torch, compute_dtype)
    return base.to(dtype).float()
