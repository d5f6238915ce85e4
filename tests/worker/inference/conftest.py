"""A home with tiny backbones, head deltas of them in the artifact store, and orders."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from starlette.testclient import TestClient

from hifi.serving.bank import HeadBank
from store.settings import Settings
from store.storage import ArtifactStorage
from tests.tiny_tasks import save_image_model
from tests.worker.inference.asking import Gate, HangingStorage
from tests.worker.inference.tuned import Tuned, tune
from worker.inference import app as app_module
from worker.inference.app import build_app

TENANT, JOB = "ten_1", "job_1"


@dataclass(frozen=True)
class Home:
    """Settings, storage, and orders as a gateway writes them."""

    settings: Settings
    storage: ArtifactStorage

    def put(self, file: Path, *, tenant: str = TENANT) -> str:
        return self.storage.put(tenant, file).sha256

    def order(self, tuned: Tuned, *, tenant: str = TENANT, job: str = JOB) -> dict[str, Any]:
        """Store a head delta; return the order for it."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "delta"
            tuned.delta.save(file)
            digest = self.put(file, tenant=tenant)
        return order_of(digest, model=tuned.folder.name, tenant=tenant, job=job)

    @property
    def left_behind(self) -> list[Path]:
        """The files in the process's folder besides its lock and cached deltas."""
        found = (self.settings.home / "inference").glob("*/models/*")
        return list(found)


def order_of(
    sha256: str, *, model: str = "tiny-bert", tenant: str = TENANT, job: str = JOB
) -> dict[str, Any]:
    return {"tenant": tenant, "job": job, "model": model, "revision": None, "sha256": sha256}


@pytest.fixture(autouse=True)
def plain_logs() -> Iterator[None]:
    """Write plain tracebacks: structlog's default takes seconds for one with tensors."""
    renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    before = structlog.get_config()
    structlog.configure(processors=[*before["processors"][:-1], renderer])
    yield
    structlog.configure(**before)


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny ViT."""
    return save_image_model(tmp_path_factory.mktemp("models") / "tiny-vit")


@pytest.fixture(scope="session")
def tasks(backbone: Path, vit: Path) -> dict[str, Tuned]:
    """Return tasks that differ in heads, labels, kind, columns, length and backbone."""
    from hifi.backbones.heads import HeadId  # noqa: PLC0415 - after the environment is set

    return {
        "two": tune(backbone, seed=1),
        "same": tune(backbone, seed=2),
        "three": tune(backbone, seed=3, labels=(7, 8, 9), heads=[HeadId(1, 0)], max_length=8),
        "pair": tune(backbone, seed=4, columns=2, max_length=16),
        "number": tune(backbone, seed=5, labels=None, heads=[HeadId(0, 0), HeadId(0, 1)]),
        "numbers": tune(backbone, seed=6, labels=None, columns=2),
        "image": tune(vit, seed=7, labels=("cat", "dog", "owl"), is_image=True),
    }


@pytest.fixture
def home(tmp_path: Path, backbone: Path, vit: Path) -> Home:
    models = tmp_path / "models"
    shutil.copytree(backbone, models / "tiny-bert")
    shutil.copytree(vit, models / "tiny-vit")
    settings = Settings(home=tmp_path / "home", models=models, device="cpu")
    return Home(settings, ArtifactStorage(settings.artifacts_url))


@pytest.fixture
def order(home: Home, delta_file: Path) -> dict[str, Any]:
    digest = home.put(delta_file)
    assert digest == hashlib.sha256(delta_file.read_bytes()).hexdigest()
    return order_of(digest)


@pytest.fixture
def client(home: Home) -> Iterator[TestClient]:
    with TestClient(build_app(home.settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Yield a gate that every pass over a backbone goes through."""
    gate = Gate()

    def fan_out(self: HeadBank, batch: Any, names: Any) -> Any:
        return gate(self, batch, names)

    monkeypatch.setattr(HeadBank, "fan_out", fan_out)
    yield gate
    gate.open.set()


@pytest.fixture
def storage(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[HangingStorage]:
    """Install a storage that can hang in the application."""
    storage = HangingStorage(home.settings.artifacts_url)
    monkeypatch.setattr(app_module, "ArtifactStorage", lambda _: storage)
    yield storage
    storage.gate.set()
