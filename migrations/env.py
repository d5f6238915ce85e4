"""What Alembic runs: the revisions, in the transaction that ``store.schema`` has begun."""

from __future__ import annotations

from alembic import context

from store.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    transactional_ddl=True,  # on SQLite, too: the connection begins its transactions itself
)
with context.begin_transaction():
    context.run_migrations()
