"""The JSON documents of backbones."""

from __future__ import annotations

from typing import Literal

from service.http.documents import Answer, Listed, Page


class BackboneDocument(Listed):
    """A pretrained model that at least one worker has."""

    object: Literal["backbone"] = "backbone"
    architecture: str
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_size: int
    parameters: int
    fingerprint: str


class UnavailableModel(Answer):
    """A folder of a model that workers have found and no job can use.

    Attributes:
        status: ``reading``: a worker waits until it is whole, or reads it.
        reason: why it cannot be used, in one line.
    """

    id: str
    status: Literal["reading", "unusable"]
    reason: str


class BackboneList(Page[BackboneDocument]):
    """A page of backbones.

    Attributes:
        unavailable: models that jobs cannot use now, the same on every page.
    """

    unavailable: list[UnavailableModel]
