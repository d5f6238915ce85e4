"""Databases for the tests of the store."""

from __future__ import annotations

from tests.databases import database, database_url, postgres_tables, sqlite_tables

__all__ = ["database", "database_url", "postgres_tables", "sqlite_tables"]
