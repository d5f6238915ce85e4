"""Routes for tenants, their keys and the audit trail, for administrators only."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from service.context import GatewayDep  # noqa: TC001 - FastAPI reads it when it runs
from service.http.auth import (
    ActorDep,
    administrator,
)
from service.http.bodies import JsonBody, described, json_body
from service.http.parameters import (  # noqa: TC001 - as above
    After,
    KeyId,
    Limit,
    TenantFilter,
    TenantId,
)
from service.http.responses import problems
from service.paging import DEFAULT_LIMIT
from service.tenants.administration import Administration
from service.tenants.documents import (
    AuditList,
    KeyList,
    NewKey,
    NewKeyDocument,
    NewQuotas,
    NewTenant,
    TenantDocument,
    TenantList,
    UsageDocument,
)
from store.administration.audit import Action  # noqa: TC001 - as above
from store.tenants import Quotas

router = APIRouter(tags=["tenants"], dependencies=[Depends(administrator)])


async def open_administration(gateway: GatewayDep, actor: ActorDep) -> Administration:
    """Return the administration of this server, on behalf of the caller."""
    quotas = Quotas.of_settings(gateway.settings)
    return Administration(gateway.database, quotas=quotas, actor=actor)


AdministrationDep = Annotated[Administration, Depends(open_administration)]


@router.post(
    "/tenants",
    status_code=HTTPStatus.CREATED,
    openapi_extra=described(NewTenant),
    responses=problems(HTTPStatus.CONFLICT),
)
def post_tenant(
    admin: AdministrationDep, body: Annotated[JsonBody[NewTenant], Depends(json_body(NewTenant))]
) -> TenantDocument:
    """Create a tenant."""
    return admin.create(body.value)


@router.get("/tenants", responses=problems(HTTPStatus.NOT_FOUND))
def get_tenants(
    admin: AdministrationDep, after: After = None, limit: Limit = DEFAULT_LIMIT
) -> TenantList:
    """List the tenants, newest first."""
    return admin.list(after=after, limit=limit)


@router.patch(
    "/tenants/{tenant_id}",
    openapi_extra=described(NewQuotas),
    responses=problems(HTTPStatus.NOT_FOUND),
)
def patch_tenant(
    admin: AdministrationDep,
    tenant_id: TenantId,
    body: Annotated[JsonBody[NewQuotas], Depends(json_body(NewQuotas))],
) -> TenantDocument:
    """Change a tenant's quotas."""
    return admin.change_quotas(tenant_id, body.value)


@router.post(
    "/tenants/{tenant_id}/suspend", responses=problems(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)
)
def suspend_tenant(admin: AdministrationDep, tenant_id: TenantId) -> TenantDocument:
    """Refuse a tenant's keys and leave its queued jobs waiting; its running jobs go on."""
    return admin.suspend(tenant_id)


@router.post("/tenants/{tenant_id}/resume", responses=problems(HTTPStatus.NOT_FOUND))
def resume_tenant(admin: AdministrationDep, tenant_id: TenantId) -> TenantDocument:
    """End a tenant's suspension."""
    return admin.resume(tenant_id)


@router.delete(
    "/tenants/{tenant_id}",
    status_code=HTTPStatus.NO_CONTENT,
    responses=problems(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
)
def delete_tenant(admin: AdministrationDep, tenant_id: TenantId) -> Response:
    """Delete a tenant with all that it owns; its running jobs are cancelled first."""
    admin.delete(tenant_id)
    return Response(status_code=HTTPStatus.NO_CONTENT)


@router.get("/tenants/{tenant_id}/usage", responses=problems(HTTPStatus.NOT_FOUND))
def get_usage(admin: AdministrationDep, tenant_id: TenantId) -> UsageDocument:
    """Get a tenant's usage and quotas."""
    return admin.usage(tenant_id)


@router.post(
    "/tenants/{tenant_id}/keys",
    status_code=HTTPStatus.CREATED,
    openapi_extra=described(NewKey),
    responses=problems(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
)
def post_key(
    admin: AdministrationDep,
    tenant_id: TenantId,
    body: Annotated[JsonBody[NewKey], Depends(json_body(NewKey))],
) -> NewKeyDocument:
    """Create a key; only this response contains its secret."""
    return admin.create_key(tenant_id, body.value)


@router.get("/tenants/{tenant_id}/keys", responses=problems(HTTPStatus.NOT_FOUND))
def get_keys(
    admin: AdministrationDep, tenant_id: TenantId, after: After = None, limit: Limit = DEFAULT_LIMIT
) -> KeyList:
    """List a tenant's keys, revoked ones included, newest first, without their secrets."""
    return admin.list_keys(tenant_id, after=after, limit=limit)


@router.delete(
    "/keys/{key_id}",
    status_code=HTTPStatus.NO_CONTENT,
    responses=problems(HTTPStatus.NOT_FOUND),
)
def delete_key(admin: AdministrationDep, key_id: KeyId) -> Response:
    """Revoke a key, effective at once."""
    admin.revoke_key(key_id)
    return Response(status_code=HTTPStatus.NO_CONTENT)


@router.get("/admin/audit", responses=problems(HTTPStatus.NOT_FOUND))
def get_audit(
    *,
    admin: AdministrationDep,
    tenant: TenantFilter = None,
    action: Annotated[Action | None, Query(description="of the events to list")] = None,
    after: After = None,
    limit: Limit = DEFAULT_LIMIT,
) -> AuditList:
    """List who did what to tenants, quotas, keys, data sets and jobs, newest first."""
    return admin.audit(tenant_id=tenant, action=action, after=after, limit=limit)
