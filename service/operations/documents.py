"""The JSON documents of backbones."""

from __future__ import annotations

from typing import Literal

from service.http.documents import Listed, Page


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


class BackboneList(Page[BackboneDocument]):
    """A page of backbones."""
