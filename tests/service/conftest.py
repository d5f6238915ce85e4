"""A gateway with keys on its own database, an administrator, and two tenants."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog

from store.database.connection import Database
from store.database.schema import upgrade
from store.queue import TokenPublisher
from tests.databases import postgres_url
from tests.full_disk import full_disk
from tests.service.gateways import Member, add_backbone, add_member, opened, settings_for

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    from store.settings import Settings

__all__ = ["full_disk", "postgres_url"]


@pytest.fixture(autouse=True)
def plain_logs() -> Iterator[None]:
    """Log one line per event: structlog's default draws boxes around local variables.

    Set for each test, since some configure the logs themselves; the boxes take seconds.
    """
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(),
        ]
    )
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an SQLite file with all tables, to copy."""
    file = tmp_path_factory.mktemp("databases") / "empty.db"
    upgrade(f"sqlite:///{file}")
    return file


@pytest.fixture
def sqlite_url(migrated_sqlite: Path, tmp_path: Path) -> str:
    """Return the URL of a test's own database."""
    file = tmp_path / "hifi.db"
    shutil.copyfile(migrated_sqlite, file)
    return f"sqlite:///{file}"


@pytest.fixture
def settings(tmp_path: Path, sqlite_url: str) -> Settings:
    """Return settings of a gateway that asks for keys."""
    return settings_for(tmp_path / "home", sqlite_url)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    """Yield the gateway's database, with a backbone."""
    database = Database(settings.database_url)
    add_backbone(database)
    yield database
    database.close()


@pytest.fixture
def client(settings: Settings, database: Database) -> Iterator[TestClient]:  # noqa: ARG001 - made first
    """Yield a client of the gateway, without a key."""
    with opened(settings) as client:
        yield client


@pytest.fixture
def admin(database: Database) -> Member:
    """Return an administrator."""
    return add_member(database, "root", is_admin=True)


@pytest.fixture
def alice(database: Database) -> Member:
    """Return a tenant."""
    return add_member(database, "alice")


@pytest.fixture
def bob(database: Database) -> Member:
    """Return another tenant."""
    return add_member(database, "bob")


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replace the broker; return the list of token counts that the gateway publishes."""
    counts: list[int] = []
    monkeypatch.setattr(TokenPublisher, "publish", lambda _publisher, count=1: counts.append(count))
    return counts
