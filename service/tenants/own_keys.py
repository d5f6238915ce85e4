"""Routes for a tenant's own keys: list and replace them."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends

from service.http.auth import CallerDep  # noqa: TC001 - FastAPI reads it when it runs
from service.http.bodies import JsonBody, described, json_body
from service.http.parameters import After, KeyId, Limit  # noqa: TC001 - as above
from service.http.responses import problems
from service.paging import DEFAULT_LIMIT
from service.tenants.documents import KeyList, KeyReplacement, NewKeyDocument
from service.tenants.routes import AdministrationDep  # noqa: TC001 - as above

router = APIRouter(tags=["keys"])


@router.get("/keys", responses=problems(HTTPStatus.NOT_FOUND))
def get_own_keys(
    admin: AdministrationDep, caller: CallerDep, after: After = None, limit: Limit = DEFAULT_LIMIT
) -> KeyList:
    """List your own keys, ended ones included, newest first, without their secrets."""
    return admin.list_keys(caller.tenant_id, after=after, limit=limit)


@router.post(
    "/keys/{key_id}/replace",
    status_code=HTTPStatus.CREATED,
    openapi_extra=described(KeyReplacement),
    responses=problems(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
)
def post_replacement(
    admin: AdministrationDep,
    caller: CallerDep,
    key_id: KeyId,
    body: Annotated[JsonBody[KeyReplacement], Depends(json_body(KeyReplacement))],
) -> NewKeyDocument:
    """Replace one of your keys; administrators may replace any.

    Only this response contains the new secret. The old key ends after `grace_seconds`.
    """
    owner_id = None if caller.is_admin else caller.tenant_id
    return admin.replace_key(key_id, body.value, owner_id=owner_id)
