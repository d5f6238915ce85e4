"""What one gateway process holds, and how an endpoint reaches it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection  # noqa: TC002 - FastAPI reads it when it runs

from store.tenants import Quotas

if TYPE_CHECKING:
    from anyio import CapacityLimiter

    from service.http.shares import Shares
    from store.database.connection import Database
    from store.queue import TokenPublisher
    from store.settings import Settings
    from store.storage import ArtifactStorage


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """Made once per process when it starts, closed when it stops.

    It holds what several features use. What belongs to one feature stands beside it in the
    request's state, and that feature knows how to find it.

    Attributes:
        settings: as they were read at the start.
        database: where the tables are.
        storage: where the blobs are.
        publisher: sends tokens to the workers, after the commit.
        posting: how many jobs are queued at once: a tenant's wait for each other.
        asking_hub: how many posts ask the hub at once: it may take seconds.
        converting: how many uploads are converted at once: each takes a core and memory.
        shares: what each tenant may hold at a time, so that the others get theirs.
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
    def quotas(self) -> Quotas:
        """What a tenant without quotas of its own may have."""
        return Quotas.of_settings(self.settings)

    @property
    def uploads(self) -> Path:
        """The folder for files on their way in; nothing in it outlives its request."""
        return self.settings.home / "uploads"


def gateway_of(connection: HTTPConnection) -> Gateway:
    """Find the gateway that a request came to: the lifespan puts it into the request's state."""
    gateway: Gateway = connection.state.gateway
    return gateway


async def _gateway(connection: HTTPConnection) -> Gateway:
    return gateway_of(connection)


GatewayDep = Annotated[Gateway, Depends(_gateway)]
