"""Who is calling: a tenant, by its key; and who may call without one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

import structlog
from fastapi import Depends
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request  # noqa: TC002 - FastAPI reads it when it runs

from service.context import Gateway, GatewayDep  # noqa: TC001 - FastAPI reads it when it runs
from service.problems import ProblemError
from store.tenants import authenticate

_Endpoint = TypeVar("_Endpoint", bound=Callable[..., Any])
_MARK = "answers_without_a_key"


@dataclass(frozen=True, slots=True)
class Caller:
    """The tenant in whose name a request comes, and its key; None where none is asked for."""

    tenant_id: str
    tenant_name: str
    is_admin: bool
    key_id: str | None


def public(endpoint: _Endpoint) -> _Endpoint:
    """Mark an endpoint that answers without a key; every other one asks for it."""
    setattr(endpoint, _MARK, True)
    return endpoint


def is_public(endpoint: object) -> bool:
    """Tell whether an endpoint answers without a key."""
    return getattr(endpoint, _MARK, False) is True


async def admit_caller(request: Request, gateway: GatewayDep) -> Caller | None:
    """Find out who calls; the application asks this of every route, before anything else.

    Returns:
        The caller; None at a public endpoint.

    Raises:
        ProblemError: 401 ``unauthorized``, no key or not a valid one.
    """
    if is_public(request.scope["endpoint"]):
        return None
    caller = _everybody(gateway) or await _by_key(request, gateway)
    structlog.contextvars.bind_contextvars(tenant=caller.tenant_id)
    return caller


def _everybody(gateway: Gateway) -> Caller | None:
    """With ``HIFI_AUTH=none`` every caller is the one tenant, and administers the server."""
    if gateway.default_tenant_id is None:
        return None
    return Caller(gateway.default_tenant_id, tenant_name="default", is_admin=True, key_id=None)


async def _by_key(request: Request, gateway: Gateway) -> Caller:
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise _unauthorized("send a key: Authorization: Bearer hifi_…", challenge="Bearer")
    caller = await run_in_threadpool(_look_up, gateway, secret.strip())
    if caller is None:
        raise _unauthorized(
            "the key is unknown or revoked", challenge='Bearer error="invalid_token"'
        )
    return caller


def _look_up(gateway: Gateway, secret: str) -> Caller | None:
    with gateway.database.read() as session:
        holder = authenticate(session, secret)
    if holder is None:
        return None
    return Caller(
        holder.tenant_id,
        tenant_name=holder.tenant_name,
        is_admin=holder.is_admin,
        key_id=holder.key_id,
    )


def _unauthorized(detail: str, *, challenge: str) -> ProblemError:
    return ProblemError(
        "unauthorized",
        status=HTTPStatus.UNAUTHORIZED,
        detail=detail,
        headers={"WWW-Authenticate": challenge},
    )


async def _known(caller: Annotated[Caller | None, Depends(admit_caller)]) -> Caller:
    if caller is None:
        raise RuntimeError("a public endpoint asks who calls")
    return caller


async def administrator(caller: Annotated[Caller, Depends(_known)]) -> Caller:
    """Refuse all but administrators before anything is looked up, so that ids tell them nothing.

    Raises:
        ProblemError: 403 ``forbidden``.
    """
    if not caller.is_admin:
        raise ProblemError(
            "forbidden", status=HTTPStatus.FORBIDDEN, detail="only administrators may do this"
        )
    return caller


CallerDep = Annotated[Caller, Depends(_known)]
AdministratorDep = Annotated[Caller, Depends(administrator)]
