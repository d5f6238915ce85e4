"""Shared by the tests of the paper's harness: its data and where its cells run."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.paper.running import Workplace
from hifi.backbones.models import resolve_model
from tests.benchmarks.paper.tiny import save_glue


@pytest.fixture(scope="session")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ``data/glue/<task>/…``."""
    return save_glue(tmp_path_factory.mktemp("glue"))


@pytest.fixture(scope="session")
def workplace(glue: Path, bert: Path) -> Workplace:
    """Return the tiny BERT and the tiny GLUE."""
    return Workplace(data=glue / "data" / "glue", source=resolve_model(bert))
