"""Requests for figures of a tiny BERT that reads 128 tokens, on tiny tasks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.paper.figures.figure import Request
from hifi.backbones.models import resolve_model
from tests.benchmarks.paper.tiny import save_glue
from tests.tiny_tasks import save_text_model

ROWS = 320  # more than the 300 that are scored in the standard setting


@pytest.fixture(scope="session")
def long_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny BERT that reads as many tokens as the paper's settings have."""
    folder = tmp_path_factory.mktemp("long") / "tiny-bert"
    return save_text_model(folder, max_position_embeddings=128)


@pytest.fixture(scope="session")
def many_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ``data/glue/<task>/…`` and ROWS training rows of each task."""
    return save_glue(tmp_path_factory.mktemp("many"), rows=ROWS)


@pytest.fixture(scope="session")
def request_for(long_bert: Path, many_rows: Path) -> Callable[..., Request]:
    """Return the function that makes requests with these settings changed."""

    def make(**changes: object) -> Request:
        settings = {
            "source": resolve_model(long_bert),
            "data": many_rows / "data" / "glue",
            "task": "cola",
            "steps": 2,
            "grid": 3,
            "rows": 8,
            **changes,
        }
        return Request(**settings)

    return make
