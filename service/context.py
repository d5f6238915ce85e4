"""The resources of a gateway process, and the dependency that provides them to endpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends
from starlette.requests import HTTPConnection  # noqa: TC002 - FastAPI reads it when it runs

if TYPE_CHECKING:
    from anyio import CapacityLimiter

    from service.http.shares import Shares
    from store.database.connection import Database
    from store.queue import TokenPublisher
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
        posting: limits concurrent posts of jobs: those of one tenant wait for each other.
        asking_hub: limits concurrent posts that query the hub, which may take seconds.
        converting: limits concurrent conversions of uploads: each takes a core and memory.
        shares: limits of each tenant's open requests.
    """

    settings: Settings
    database: Database
    storage: ArtifactStorage
    publisher: TokenPublisher
    posting: CapacityLimiter
    asking_hub: CapacityLimiter
    converting: CapacityLimiter
    shares: Shares

    @property
    def uploads(self) -> Path:
        """The folder of uploads in progress; each file is removed with its request."""
        return self.settings.home / "uploads"


def from_state(name: str) -> Any:  # noqa: ANN401 - as fastapi.Depends
    """Return the dependency on an entry of the request's state, which the lifespan has stored."""

    async def read(connection: HTTPConnection) -> object:
        return getattr(connection.state, name)

    return Depends(read)


GatewayDep = Annotated[Gateway, from_state("gateway")]
