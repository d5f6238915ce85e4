"""Tenants and their keys: for administrators alone."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import Response

from service.context import GatewayDep  # noqa: TC001 - FastAPI reads it when it runs
from service.http.auth import administrator
from service.http.bodies import JsonBody, described, json_body
from service.http.parameters import After, KeyId, Limit, TenantId  # noqa: TC001 - as above
from service.jobs.schemas import (
    KeyDocument,
    KeyList,
    NewKey,
    NewKeyDocument,
    NewQuotas,
    NewTenant,
    TenantDocument,
    TenantList,
    UsageDocument,
    envelope,
)
from service.openapi import problems
from store.jobs import count_jobs
from store.tenants import (
    OwnQuotas,
    change_quotas,
    create_key,
    create_tenant,
    get_tenant,
    list_keys,
    list_tenants,
    revoke_key,
    stored_bytes,
)

router = APIRouter(tags=["tenants"], dependencies=[Depends(administrator)])


@router.post(
    "/tenants",
    status_code=HTTPStatus.CREATED,
    openapi_extra=described(NewTenant),
    responses=problems(HTTPStatus.CONFLICT),
)
def post_tenant(
    gateway: GatewayDep, body: Annotated[JsonBody[NewTenant], Depends(json_body(NewTenant))]
) -> TenantDocument:
    """Add a tenant."""
    new = body.value
    own = OwnQuotas(max_queued=new.max_queued, max_running=new.max_running, max_bytes=new.max_bytes)
    with gateway.database.write() as session:
        tenant = create_tenant(session, new.name, is_admin=new.is_admin, own=own)
    return TenantDocument.of(tenant, gateway.quotas.of(tenant))


@router.get("/tenants", responses=problems(HTTPStatus.NOT_FOUND))
def get_tenants(gateway: GatewayDep, after: After = None, limit: Limit = 20) -> TenantList:
    """List the tenants, newest first."""
    with gateway.database.read() as session:
        page = list_tenants(session, after=after, limit=limit)
    data = [TenantDocument.of(tenant, gateway.quotas.of(tenant)) for tenant in page.rows]
    return TenantList(**envelope(data, has_more=page.has_more))


@router.patch(
    "/tenants/{tenant_id}",
    openapi_extra=described(NewQuotas),
    responses=problems(HTTPStatus.NOT_FOUND),
)
def patch_tenant(
    gateway: GatewayDep,
    tenant_id: TenantId,
    body: Annotated[JsonBody[NewQuotas], Depends(json_body(NewQuotas))],
) -> TenantDocument:
    """Change a tenant's quotas, from now on."""
    with gateway.database.write() as session:
        tenant = change_quotas(session, tenant_id, body.value.changes())
    return TenantDocument.of(tenant, gateway.quotas.of(tenant))


@router.get("/tenants/{tenant_id}/usage", responses=problems(HTTPStatus.NOT_FOUND))
def get_usage(gateway: GatewayDep, tenant_id: TenantId) -> UsageDocument:
    """Tell what a tenant has, and may have."""
    with gateway.database.read() as session:
        tenant = get_tenant(session, tenant_id)
        return UsageDocument.of(
            tenant.id,
            jobs=count_jobs(session, tenant.id),
            stored_bytes=stored_bytes(session, tenant.id),
            quotas=gateway.quotas.of(tenant),
        )


@router.post(
    "/tenants/{tenant_id}/keys",
    status_code=HTTPStatus.CREATED,
    openapi_extra=described(NewKey),
    responses=problems(HTTPStatus.NOT_FOUND),
)
def post_key(
    gateway: GatewayDep,
    tenant_id: TenantId,
    body: Annotated[JsonBody[NewKey], Depends(json_body(NewKey))],
) -> NewKeyDocument:
    """Add a key. Its secret is in this answer and nowhere else."""
    with gateway.database.write() as session:
        key, secret = create_key(session, tenant_id, name=body.value.name)
    return NewKeyDocument.of_new(key, secret=secret)


@router.get("/tenants/{tenant_id}/keys", responses=problems(HTTPStatus.NOT_FOUND))
def get_keys(
    gateway: GatewayDep, tenant_id: TenantId, after: After = None, limit: Limit = 20
) -> KeyList:
    """List a tenant's keys, revoked ones included, newest first; never their secrets."""
    with gateway.database.read() as session:
        page = list_keys(session, tenant_id, after=after, limit=limit)
    data = [KeyDocument.of(key) for key in page.rows]
    return KeyList(**envelope(data, has_more=page.has_more))


@router.delete(
    "/keys/{key_id}",
    status_code=HTTPStatus.NO_CONTENT,
    responses=problems(HTTPStatus.NOT_FOUND),
)
def delete_key(gateway: GatewayDep, key_id: KeyId) -> Response:
    """Make a key worthless at once."""
    with gateway.database.write() as session:
        revoke_key(session, key_id)
    return Response(status_code=HTTPStatus.NO_CONTENT)
