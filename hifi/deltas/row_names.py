"""The tensor names of a head delta's rows, and the check of their shapes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal, NoReturn, cast

from hifi.backbones.heads import PROJECTION_NAMES, HeadId, ProjectionName
from hifi.errors import InvalidArgumentError

if TYPE_CHECKING:
    from torch import Tensor

Part = Literal["weight", "bias"]
Shape = tuple[int, ...]

_INDEX = r"(0|[1-9][0-9]{0,4})"  # no leading zeros: one name per head; no model has 100,000 layers
_PATTERN = re.compile(rf"layers\.{_INDEX}\.heads\.{_INDEX}\.(query|key|value)\.(weight|bias)")


def row_key(head: HeadId, projection: ProjectionName, part: Part) -> str:
    """Return the tensor name of one head's rows in one projection."""
    return f"layers.{head.layer}.heads.{head.head}.{projection}.{part}"


def heads_of_rows(names: Iterable[str]) -> tuple[HeadId, ...]:
    """Return the heads in these row names, in order.

    Raises:
        InvalidArgumentError: a name is not a row name.
    """
    return tuple(sorted({_parse(name)[0] for name in names}))


def _parse(name: str) -> tuple[HeadId, ProjectionName, Part]:
    """Return the parts of a name that ``row_key`` returns, and raise for all others."""
    match = _PATTERN.fullmatch(name)
    if match is None:
        limit = "layers.{l}.heads.{h}.{query|key|value}.{weight|bias}"
        raise InvalidArgumentError("tensor name", value=name, limit=limit)
    layer, head, projection, part = match.groups()
    return HeadId(int(layer), int(head)), cast("ProjectionName", projection), cast("Part", part)


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Return the shape of every tensor."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def describe_shape(shape: Shape | None) -> str:
    """Return the words for a tensor's shape in an error; None means that it is missing."""
    return "missing" if shape is None else f"of shape {list(shape)}"


def describe_difference(wanted: Mapping[str, Shape], found: Mapping[str, Shape]) -> str | None:
    """Describe the first tensor whose shape in a head delta and in a model differs, if any."""
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            return (
                f"{name} is {describe_shape(wanted.get(name))} in the head delta and "
                f"{describe_shape(found.get(name))} in the model"
            )
    return None


def check_shapes(shapes: Mapping[str, Shape]) -> None:
    """Raise if the shapes of rows do not fit the heads of one backbone.

    A head has query, key and value weights ``[rows, D]`` with the same D. Key and value have D'
    rows, the query a multiple of D'. A bias is ``[rows]``. All heads have the same shapes.

    Args:
        shapes: row name to shape.

    Raises:
        InvalidArgumentError: a tensor does not fit; the message has the shape that would.
    """
    by_head: dict[HeadId, dict[tuple[ProjectionName, Part], Shape]] = defaultdict(dict)
    for name, shape in shapes.items():
        head, projection, part = _parse(name)
        by_head[head][projection, part] = shape
    first: dict[tuple[ProjectionName, Part], Shape] | None = None
    for head in sorted(by_head):
        parts = by_head[head]
        if first is None:
            _check_head(head, parts)
            first = parts
        for projection, part in sorted(first.keys() | parts.keys()):
            wanted = first.get((projection, part))
            if parts.get((projection, part)) != wanted:
                limit = f"{describe_shape(wanted)}, as in head {min(by_head)}"
                _refuse(head, projection, part, parts.get((projection, part)), limit)


def _check_head(head: HeadId, parts: Mapping[tuple[ProjectionName, Part], Shape]) -> None:
    key = parts.get(("key", "weight"))
    for projection in reversed(PROJECTION_NAMES):
        weight = parts.get((projection, "weight"))
        if weight is None or len(weight) != 2 or 0 in weight:
            _refuse(head, projection, "weight", weight, "a matrix [rows, D]")
        bias = parts.get((projection, "bias"))
        if bias not in (None, weight[:1]):
            _refuse(head, projection, "bias", bias, describe_shape(weight[:1]))
    query, value = parts["query", "weight"], parts["value", "weight"]
    if key != value:
        _refuse(head, "key", "weight", key, f"{describe_shape(value)}, as the value's")
    if query[1] != value[1] or query[0] % value[0]:
        limit = f"[a multiple of {value[0]}, {value[1]}], as the value's is {describe_shape(value)}"
        _refuse(head, "query", "weight", query, limit)


def _refuse(
    head: HeadId, projection: ProjectionName, part: Part, shape: Shape | None, limit: str
) -> NoReturn:
    value = "missing" if shape is None else list(shape)
    raise InvalidArgumentError(row_key(head, projection, part), value=value, limit=limit)
