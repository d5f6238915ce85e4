"""What a rival stores, in the encodings of a head delta: as small a file as ours, and read back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from benchmarks.paper.methods.base import file_bytes
from hifi.deltas.encoding import decode, encode

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hifi.deltas.metadata import Encoding

_SUFFIX = ".weight"  # of what a head delta encodes


def read_back(
    trained: Mapping[str, Tensor],
    *,
    origins: Mapping[str, Tensor],
    head: Collection[str],
    encoding: Encoding,
) -> tuple[int, dict[str, Tensor]]:
    """Return the size of a file with trained tensors, and the tensors that are read from it.

    What differs from the origins is encoded as a head delta's rows are: a vector as one row, a
    matrix along its shorter side, so that it has few scales. The task head stays in float32.

    Args:
        trained: by name.
        origins: values that are known without the file, such as the backbone's, by name.
        head: names of the task head's tensors.
        encoding: of the differences.
    """
    rows = {
        f"{name}{_SUFFIX}": _as_rows(value.detach() - origins[name])
        for name, value in trained.items()
        if name not in head
    }
    stored = encode(rows, encoding)
    size = file_bytes({**stored, **{name: trained[name] for name in head}})
    found = {
        name: origins[name] + _shaped(decoded, shape=origins[name].shape)
        for name, decoded in (
            (key.removesuffix(_SUFFIX), value) for key, value in decode(stored).items()
        )
    }
    return size, {**found, **{name: trained[name].detach().clone() for name in head}}


def _as_rows(value: Tensor) -> Tensor:
    rows = value.reshape(len(value), -1) if value.dim() > 1 else value[None]
    return rows.T.contiguous() if rows.shape[0] > rows.shape[1] else rows.contiguous()


def _shaped(rows: Tensor, *, shape: torch.Size) -> Tensor:
    """Return what `_as_rows` has made of a tensor of this shape in this shape again."""
    is_turned = len(shape) > 1 and shape[0] > shape[1:].numel()
    return (rows.T if is_turned else rows).reshape(shape)
