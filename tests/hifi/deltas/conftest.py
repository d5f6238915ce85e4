"""A head delta made by hand, and its files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.architectures import tiny_model
from tests.deltas import bytes_in_every_encoding, hand_made_delta

if TYPE_CHECKING:
    from hifi.deltas.delta import HeadDelta


@pytest.fixture(scope="module")
def delta() -> HeadDelta:
    return hand_made_delta(tiny_model("bert"))


@pytest.fixture(scope="module")
def files(delta: HeadDelta, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Save one delta in every encoding; return the files' bytes."""
    return bytes_in_every_encoding(delta, folder=tmp_path_factory.mktemp("files"))
