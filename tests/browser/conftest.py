"""A gateway with keys on its own database: the fixtures of the service's tests."""

from __future__ import annotations

from tests.service.conftest import alice, database, migrated_sqlite, settings, sqlite_url

__all__ = ["alice", "database", "migrated_sqlite", "settings", "sqlite_url"]
