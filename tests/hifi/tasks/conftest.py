"""Models that several encoders are tested with."""

from __future__ import annotations

import pytest

from tests.tiny_tokenizers import TokenizerModels


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> TokenizerModels:
    return TokenizerModels(tmp_path_factory.mktemp("tokenizers"))
