"""Backbones as callers see them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from service.http.documents import Listed, Page

if TYPE_CHECKING:
    from store.tables import Backbone


class BackboneDocument(Listed):
    """A pretrained model that some worker has."""

    object: Literal["backbone"] = "backbone"
    architecture: str
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_size: int
    parameters: int
    fingerprint: str

    @classmethod
    def of(cls, backbone: Backbone) -> BackboneDocument:
        """Show a row."""
        return cls.model_validate(backbone, from_attributes=True)


class BackboneList(Page[BackboneDocument]):
    """A page of backbones."""
