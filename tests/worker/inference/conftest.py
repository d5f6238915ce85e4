"""A home with a tiny backbone in it, a head delta of it in the artifact store, and orders."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from store.settings import Settings
from store.storage import ArtifactStorage

TENANT, JOB = "ten_1", "job_1"


@dataclass(frozen=True)
class Home:
    """Settings, and what a gateway would ask for."""

    settings: Settings
    storage: ArtifactStorage

    def put(self, file: Path, *, tenant: str = TENANT) -> str:
        return self.storage.put(tenant, file).sha256

    @property
    def left_behind(self) -> list[Path]:
        """What lies in the process's folder that is neither its lock nor a cached delta."""
        found = (self.settings.home / "inference").glob("*/models/*")
        return list(found)


@pytest.fixture
def home(tmp_path: Path, backbone: Path) -> Home:
    models = tmp_path / "models"
    shutil.copytree(backbone, models / "tiny-bert")
    settings = Settings(home=tmp_path / "home", models=models)
    return Home(settings, ArtifactStorage(settings.artifacts_url))


@pytest.fixture
def order(home: Home, delta_file: Path) -> dict[str, Any]:
    digest = home.put(delta_file)
    assert digest == hashlib.sha256(delta_file.read_bytes()).hexdigest()
    return {"tenant": TENANT, "job": JOB, "model": "tiny-bert", "revision": None, "sha256": digest}
