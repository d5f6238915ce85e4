"""A gateway with keys on a database of its own, as the tests of the service have it."""

from __future__ import annotations

from tests.service.conftest import alice, database, migrated_sqlite, settings, sqlite_url

__all__ = ["alice", "database", "migrated_sqlite", "settings", "sqlite_url"]
