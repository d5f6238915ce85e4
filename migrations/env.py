"""Alembic's environment: revisions run in the transaction that ``store.database.schema`` began."""

from __future__ import annotations

from alembic import context

from store.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    transactional_ddl=True,  # on SQLite too, because the connection begins transactions itself
)
with context.begin_transaction():
    context.run_migrations()
