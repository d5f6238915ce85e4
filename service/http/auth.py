"""Authentication: find the calling tenant by its key; mark endpoints that need no key."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import structlog
from anyio import CapacityLimiter, to_thread
from fastapi import Depends
from starlette.requests import Request  # noqa: TC002 - FastAPI reads it when it runs

from store.errors import ProblemError
from store.tenants import Caller, authenticate

if TYPE_CHECKING:
    from store.database.connection import Database

_Endpoint = TypeVar("_Endpoint", bound=Callable[..., Any])
_MARK = "answers_without_a_key"
_LOOKUPS = 2  # concurrent key lookups: each takes a fraction of a millisecond


class Authenticator:
    """Identifies callers by their keys.

    Args:
        database: where the keys are.
        default_tenant_id: with ``HIFI_AUTH=none`` the tenant of every caller, an administrator;
            else None.
    """

    def __init__(self, database: Database, *, default_tenant_id: str | None) -> None:
        self._database = database
        self._looking_up = CapacityLimiter(_LOOKUPS)
        self._default_caller = (
            None
            if default_tenant_id is None
            else Caller(key_id=None, tenant_id=default_tenant_id, is_admin=True)
        )

    async def identify(self, authorization: str) -> Caller:
        """Return the caller that a request's key belongs to.

        Args:
            authorization: the header; empty if it is missing.

        Raises:
            ProblemError: 401 ``unauthorized``, the key is missing or invalid.
        """
        if self._default_caller is not None:
            return self._default_caller
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise _unauthorized("send a key: Authorization: Bearer hifi_…", challenge="Bearer")
        caller = await to_thread.run_sync(self._find, secret.strip(), limiter=self._looking_up)
        if caller is None:
            raise _unauthorized(
                "the key is unknown or revoked", challenge='Bearer error="invalid_token"'
            )
        return caller

    def _find(self, secret: str) -> Caller | None:
        with self._database.read() as session:
            return authenticate(session, secret)


def public(endpoint: _Endpoint) -> _Endpoint:
    """Mark an endpoint that needs no key; all others require one."""
    setattr(endpoint, _MARK, True)
    return endpoint


def is_public(endpoint: object) -> bool:
    """Return whether an endpoint needs no key."""
    return getattr(endpoint, _MARK, False) is True


async def admit_caller(request: Request) -> None:
    """Identify the caller except at a public endpoint, and store it in the request's state.

    Raises:
        ProblemError: 401 ``unauthorized``, the key is missing or invalid.
    """
    if is_public(request.scope["endpoint"]):
        return
    authenticator: Authenticator = request.state.authenticator
    caller = await authenticator.identify(request.headers.get("authorization", ""))
    request.state.caller = caller
    structlog.contextvars.bind_contextvars(tenant=caller.tenant_id)


def _unauthorized(detail: str, *, challenge: str) -> ProblemError:
    return ProblemError(
        "unauthorized",
        status=HTTPStatus.UNAUTHORIZED,
        detail=detail,
        headers={"WWW-Authenticate": challenge},
    )


async def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


CallerDep = Annotated[Caller, Depends(_caller)]


async def administrator(caller: CallerDep) -> None:
    """Raise for callers that are not administrators, before a lookup reveals whether an id exists.

    Raises:
        ProblemError: 403 ``forbidden``.
    """
    if not caller.is_admin:
        raise ProblemError(
            "forbidden", status=HTTPStatus.FORBIDDEN, detail="only administrators may do this"
        )
