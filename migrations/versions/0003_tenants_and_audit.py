"""Keys that expire, tenants that are suspended or deleted, and the audit trail.

Deploy: before the gateways and workers of this version start; those of the previous version can go
on meanwhile. Names of tenants get the one form in which they are compared now; where two names
become equal, the later tenant's id is added to its name.
"""

from __future__ import annotations

import unicodedata

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
Time = sa.DateTime(timezone=True)
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_REFUSAL = "the audit trail cannot be changed"


def upgrade() -> None:
    """Add the columns and the table, and bring names into one form."""
    with op.batch_alter_table("tenants") as table:
        table.add_column(sa.Column("suspended_at", Time))
        table.add_column(sa.Column("deleted_at", Time))
    with op.batch_alter_table("api_keys") as table:
        table.add_column(sa.Column("expires_at", Time))
    op.create_table(
        "audit_events",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("created_at", Time, nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("actor_tenant_id", sa.String()),
        sa.Column("actor_key_id", sa.String()),
        sa.Column("request_id", sa.String()),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("subject_id", sa.String(), nullable=False),
        sa.Column("details", Json, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_events")),
    )
    for columns in (["created_at", "id"], ["tenant_id", "created_at", "id"]):
        name = op.f(f"ix_audit_events_{'_'.join(columns)}")
        op.create_index(name, "audit_events", columns)
    _refuse_changes()
    _normalise_names()


def _refuse_changes() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER audit_events_no_{change.lower()} BEFORE {change} ON audit_events "
                f"BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
            )
        return
    op.execute(
        "CREATE OR REPLACE FUNCTION audit_events_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{_REFUSAL}'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_events_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_events "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_events_refuse()"
    )


def _normalise_names() -> None:
    tenants = sa.table("tenants", sa.column("id"), sa.column("name"), sa.column("created_at"))
    bind = op.get_bind()
    query = sa.select(tenants.c.id, tenants.c.name).order_by(tenants.c.created_at, tenants.c.id)
    changed: dict[str, str] = {}
    taken: set[str] = set()
    for identifier, name in bind.execute(query).all():
        normal = _normal(name) or identifier
        if normal in taken:
            normal = f"{normal} {identifier}"
        taken.add(normal)
        if normal != name:
            changed[identifier] = normal
    # First to their ids: a new name may be one that another tenant still has.
    for names in ({identifier: identifier for identifier in changed}, changed):
        for identifier, name in names.items():
            row = tenants.c.id == identifier
            bind.execute(sa.update(tenants).where(row).values(name=name))


def _normal(name: str) -> str:
    visible = (each for each in unicodedata.normalize("NFKC", name) if not _is_hidden(each))
    return " ".join("".join(visible).split())


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in _INVISIBLE and not character.isspace()


def downgrade() -> None:
    """Remove the table and the columns; names stay as they are."""
    op.drop_table("audit_events")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION audit_events_refuse()")
    with op.batch_alter_table("api_keys") as table:
        table.drop_column("expires_at")
    with op.batch_alter_table("tenants") as table:
        table.drop_column("deleted_at")
        table.drop_column("suspended_at")
