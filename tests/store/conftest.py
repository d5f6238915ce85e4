"""Databases and disks for the tests of the store."""

from __future__ import annotations

from tests.databases import database, database_url, postgres_tables, sqlite_tables
from tests.full_disk import full_disk

__all__ = ["database", "database_url", "full_disk", "postgres_tables", "sqlite_tables"]
