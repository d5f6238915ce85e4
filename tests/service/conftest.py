"""A gateway with keys on a database of its own, an administrator, and two tenants."""

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
from tests.service.gateways import Member, add_backbone, add_member, opened, settings_for

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    from store.settings import Settings

__all__ = ["postgres_url"]


@pytest.fixture(autouse=True)
def plain_logs() -> Iterator[None]:
    """Log in one line each: structlog's own choice draws boxes around local variables.

    For each test anew, since some configure the logs themselves: the boxes take seconds.
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
    """Give an SQLite file with all tables, for copying."""
    file = tmp_path_factory.mktemp("databases") / "empty.db"
    upgrade(f"sqlite:///{file}")
    return file


@pytest.fixture
def sqlite_url(migrated_sqlite: Path, tmp_path: Path) -> str:
    """Give a database of the test's own."""
    file = tmp_path / "hifi.db"
    shutil.copyfile(migrated_sqlite, file)
    return f"sqlite:///{file}"


@pytest.fixture
def settings(tmp_path: Path, sqlite_url: str) -> Settings:
    """Give settings with keys."""
    return settings_for(tmp_path / "home", sqlite_url)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    """Give the gateway's database, with a backbone."""
    database = Database(settings.database_url)
    add_backbone(database)
    yield database
    database.close()


@pytest.fixture
def client(settings: Settings, database: Database) -> Iterator[TestClient]:  # noqa: ARG001 - made first
    """Give a client of the gateway, without a key."""
    with opened(settings) as client:
        yield client


@pytest.fixture
def admin(database: Database) -> Member:
    """Give an administrator."""
    return add_member(database, "root", is_admin=True)


@pytest.fixture
def alice(database: Database) -> Member:
    """Give a tenant."""
    return add_member(database, "alice")


@pytest.fixture
def bob(database: Database) -> Member:
    """Give another tenant."""
    return add_member(database, "bob")


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Give the numbers of tokens that the gateway publishes, in place of a broker."""
    counts: list[int] = []
    monkeypatch.setattr(TokenPublisher, "publish", lambda _publisher, count=1: counts.append(count))
    return counts
