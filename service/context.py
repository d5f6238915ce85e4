"""The resources of a gateway process, and the dependency that provides them to endpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends
from starlette.requests import HTTPConnection  # noqa: TC002 - FastAPI reads it when it runs

if TYPE_CHECKING:
    from service.http.shares import Shares
    from service.http.space import Space
    from store.database.connection import Database
    from store.queue import TokenPublisher
    from store.resources.turns import FairPool, Turns
    from store.settings import Settings
    from store.storage import ArtifactStorage


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """The resources that several features share, one instance per process.

    Resources of a single feature are separate entries in the request's state.

    Attributes:
        settings: as read at startup.
        database: the tables.
        storage: the artifact store.
        publisher: sends tokens to the workers, after the commit.
        answering: turns to answer in a thread, for which tenants queue.
        posting: the threads for posts of jobs, which tenants get in turn.
        asking_hub: those for posts that query the hub, which may take seconds.
        uploads: this process's folder for uploads in progress; each is removed with its request.
        converting: turns to convert an upload, for which tenants queue: each takes a core and
            memory.
        space: reserves space for uploads.
        shares: limits of each tenant's open requests.
    """

    settings: Settings
    database: Database
    storage: ArtifactStorage
    publisher: TokenPublisher
    answering: Turns
    posting: FairPool
    asking_hub: FairPool
    uploads: Path
    converting: Turns
    space: Space
    shares: Shares


def from_state(name: str) -> Any:  # noqa: ANN401 - as fastapi.Depends
    """Return the dependency on an entry of the request's state, which the lifespan has stored."""

    async def read(connection: HTTPConnection) -> object:
        return getattr(connection.state, name)

    return Depends(read)


GatewayDep = Annotated[Gateway, from_state("gateway")]
