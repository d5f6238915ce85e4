"""Whether a model is the backbone that a head delta was tuned on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hifi.backbones.fingerprint import backbone_fingerprint, is_exact_in
from hifi.backbones.heads import backbone_dtype
from hifi.errors import BackboneMismatchError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

    from hifi.deltas.metadata import DeltaMetadata

_HALVES = (torch.float16, torch.bfloat16)


def describe_backbone(metadata: DeltaMetadata) -> str:
    """Return the name of a delta's backbone for a message."""
    return f"{metadata.model!r} (revision {metadata.revision or 'not recorded'})"


def check_architecture(metadata: DeltaMetadata, *, name: str, architecture: str) -> None:
    """Raise if a model has another architecture than a delta's backbone.

    Args:
        metadata: of the delta.
        name: of the model.
        architecture: the ``model_type`` of its configuration.

    Raises:
        BackboneMismatchError: the architectures differ; the message names both models.
    """
    if architecture != metadata.architecture:
        raise BackboneMismatchError(
            f"the head delta was tuned on {describe_backbone(metadata)}, whose architecture is "
            f"{metadata.architecture!r}; that of {name!r} is {architecture!r}"
        )


def check_fingerprint(metadata: DeltaMetadata, model: PreTrainedModel) -> None:
    """Raise unless a model is exactly a delta's backbone, as in :func:`is_backbone`.

    Raises:
        BackboneMismatchError: another backbone or another revision; the message has both hashes.
    """
    if not is_backbone(metadata, model):
        raise BackboneMismatchError(
            f"the head delta was tuned on {describe_backbone(metadata)}, whose fingerprint is "
            f"{metadata.fingerprint}; the model's is {backbone_fingerprint(model)}: load that "
            "backbone at that revision, in the dtype in which it was stored"
        )


def is_backbone(metadata: DeltaMetadata, model: PreTrainedModel) -> bool:
    """Return whether a model has the weights of a delta's backbone.

    A delta records the fingerprint as stored, or that of a model in memory in the dtype of the
    tuning. So the model is the backbone if the recorded hash is that of its weights as they are;
    of its weights in the dtype of the tuning; or of its weights in float16 or bfloat16, if that
    holds them exactly: then it was loaded in a wider dtype than it was stored in.
    """
    return any(
        backbone_fingerprint(model, dtype=dtype) == metadata.fingerprint
        for dtype in _possible_dtypes(metadata, model)
    )


def _possible_dtypes(
    metadata: DeltaMetadata, model: PreTrainedModel
) -> Iterator[torch.dtype | None]:
    yield None
    tuned_at: torch.dtype = getattr(torch, metadata.compute_dtype)
    present = backbone_dtype(model)
    if tuned_at != present:
        yield tuned_at
    for dtype in _HALVES:
        if dtype.itemsize < present.itemsize and is_exact_in(model, dtype):
            yield dtype
