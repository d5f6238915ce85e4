"""Authentication: find the calling tenant by its key; mark endpoints that need no key."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import Depends
from starlette.requests import Request  # noqa: TC002 - FastAPI reads it when it runs

from service.connections.addresses import caller_of
from store.administration.audit import Actor
from store.administration.keys import Caller, authenticate
from store.errors import ProblemError
from store.resources.turns import FairPool

if TYPE_CHECKING:
    from store.database.connection import Database

_Endpoint = TypeVar("_Endpoint", bound=Callable[..., Any])
_MARK = "answers_without_a_key"
_MOST_FAILURES = 30  # invalid keys of an address in a window
_WINDOW_SECONDS = 60.0
_LOOKUPS = 2  # concurrent key lookups: each takes a fraction of a millisecond


class _Failures:
    """Counts invalid keys by the address that they came from, in windows of a minute."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._ends_at = 0.0

    def are_many(self, address: str) -> bool:
        """Return whether an address has sent more invalid keys than a person would."""
        if time.monotonic() >= self._ends_at:
            self._counts.clear()
            self._ends_at = time.monotonic() + _WINDOW_SECONDS
        return self._counts[address] >= _MOST_FAILURES

    def add(self, address: str) -> None:
        """Count an invalid key."""
        self._counts[address] += 1


class Authenticator:
    """Identifies callers by their keys.

    Keys have 256 random bits: nobody finds one by trying. What trying could do is to keep the
    database busy. So addresses take turns, and those with many invalid keys have a queue of their
    own, one key at a time. Their valid keys stay valid: others may use the same address.

    Args:
        database: where the keys are.
        default_tenant_id: with ``HIFI_AUTH=none`` the tenant of every caller, an administrator;
            else None.
    """

    def __init__(self, database: Database, *, default_tenant_id: str | None) -> None:
        self._database = database
        self._lookups = FairPool(_LOOKUPS, most_each=_LOOKUPS, spare=0, name="key")
        self._doubtful_lookups = FairPool(1, most_each=1, spare=0, name="doubtful-key")
        self._failures = _Failures()
        self._default_caller = (
            None
            if default_tenant_id is None
            else Caller(key_id=None, tenant_id=default_tenant_id, is_admin=True)
        )

    def close(self) -> None:
        """Look no further key up."""
        self._lookups.close()
        self._doubtful_lookups.close()

    async def identify(self, authorization: str, *, address: str) -> Caller:
        """Return the caller that a request's key belongs to.

        Args:
            authorization: the header; empty if it is missing.
            address: that the request came from, as :func:`caller_of` names it.

        Raises:
            ProblemError: 401 ``unauthorized``, the key is missing or invalid; 403
                ``tenant_suspended``; 429 ``too_many_attempts``, the key is invalid, as many before
                it from this address.
        """
        if self._default_caller is not None:
            return self._default_caller
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise _unauthorized("send a key: Authorization: Bearer hifi_…", challenge="Bearer")
        are_many = self._failures.are_many(address)
        lookups = self._doubtful_lookups if are_many else self._lookups
        caller = await lookups.run(partial(self._find, secret.strip()), tenant=address)
        if caller is not None:
            return _unless_suspended(caller)
        self._failures.add(address)
        if are_many:
            raise ProblemError(
                "too_many_attempts",
                status=HTTPStatus.TOO_MANY_REQUESTS,
                detail=f"more than {_MOST_FAILURES} invalid keys came from your address within "
                f"{_WINDOW_SECONDS:g} seconds; check the key, and retry later",
                headers={"Retry-After": f"{_WINDOW_SECONDS:g}"},
            )
        raise _unauthorized(
            "the key is unknown, revoked or expired", challenge='Bearer error="invalid_token"'
        )

    def _find(self, secret: str) -> Caller | None:
        with self._database.read() as session:
            return authenticate(session, secret)


def _unless_suspended(caller: Caller) -> Caller:
    if caller.is_suspended:
        raise ProblemError(
            "tenant_suspended",
            status=HTTPStatus.FORBIDDEN,
            detail="this tenant is suspended: ask the server's administrator",
        )
    return caller


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
    caller = await authenticator.identify(
        request.headers.get("authorization", ""),
        address=caller_of(request.client.host if request.client else None),
    )
    request.state.caller = caller


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


async def _actor(request: Request, caller: CallerDep) -> Actor:
    return Actor(
        tenant_id=caller.tenant_id, key_id=caller.key_id, request_id=request.state.request_id
    )


ActorDep = Annotated[Actor, Depends(_actor)]


async def administrator(caller: CallerDep) -> None:
    """Raise for callers that are not administrators, before a lookup reveals whether an id exists.

    Raises:
        ProblemError: 403 ``forbidden``.
    """
    if not caller.is_admin:
        raise ProblemError(
            "forbidden", status=HTTPStatus.FORBIDDEN, detail="only administrators may do this"
        )
