"""The audit trail: who did what to keys, tenants, quotas and what tenants own.

Rows are only ever added, in the transaction of what they record; a trigger in the database refuses
to change or remove one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import sqlalchemy as sa

from store.database.connection import database_now
from store.database.identifiers import new_identifier
from store.database.pages import Page, matching, newest_first
from store.tables import AuditEvent

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

Action = Literal[
    "tenant.created",
    "tenant.quotas_changed",
    "tenant.suspended",
    "tenant.resumed",
    "tenant.deleted",
    "key.created",
    "key.replaced",
    "key.revoked",
    "dataset.deleted",
    "job.cancelled",
    "job.deleted",
    "prediction.cancelled",
    "prediction.deleted",
]
ACTIONS: tuple[Action, ...] = get_args(Action)


@dataclass(frozen=True, kw_only=True)
class Actor:
    """Who acts: a tenant with its key, or somebody on the server itself.

    Attributes:
        tenant_id: None for the command line on the server, which uses no key.
        key_id: None where the server requires no keys.
        request_id: of the request, for the logs.
    """

    tenant_id: str | None = None
    key_id: str | None = None
    request_id: str | None = None


ON_THE_SERVER = Actor()


def record(
    session: Session,
    actor: Actor,
    action: Action,
    *,
    tenant_id: str,
    subject_id: str,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Record an action in the transaction that performs it.

    Args:
        session: the write transaction.
        actor: who acts.
        action: what is done.
        tenant_id: whose tenant, key, data set or job it is.
        subject_id: the id of the tenant, key, data set or job.
        details: what the ids do not say; never a secret.
    """
    event = AuditEvent(
        id=new_identifier("aud"),
        created_at=database_now(session),
        action=action,
        actor_tenant_id=actor.tenant_id,
        actor_key_id=actor.key_id,
        request_id=actor.request_id,
        tenant_id=tenant_id,
        subject_id=subject_id,
        details=dict(details or {}),
    )
    session.add(event)


def list_audit(
    session: Session,
    *,
    tenant_id: str | None = None,
    action: Action | None = None,
    after: str | None,
    limit: int,
) -> Page[AuditEvent]:
    """Return a page of the trail, newest first: of a tenant, of an action, or of all.

    Raises:
        NotFoundError: ``after`` is not among the events.
    """
    wanted = matching((AuditEvent.tenant_id, tenant_id), (AuditEvent.action, action))
    query = sa.select(AuditEvent).where(*wanted)
    return newest_first(session, query, AuditEvent, after=after, limit=limit)
