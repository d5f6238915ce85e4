"""Container health checks: ``python -m service.health gateway`` (or ``worker``, ``inference``).

The exit code is 0 if the process of this container works. The settings are those of the process
itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import httpx2

from service.embedded.home import inference_socket
from service.embedded.listening import reachable_host
from store.database.connection import OUTAGES, Database
from store.errors import StoreError
from store.jobs.workers import live_workers
from store.machine import machine_name
from store.settings import read_settings

if TYPE_CHECKING:
    from store.settings import Settings

_SECONDS = 3.0


def gateway_is_healthy(settings: Settings) -> bool:
    """Return whether the gateway is alive; its dependencies do not count."""
    host = reachable_host(settings.host)
    host = f"[{host}]" if ":" in host else host
    return _answers(
        f"http://{host}:{settings.port}/healthz",
        headers={"Host": settings.allowed_hosts[0]},
    )


def inference_is_healthy(settings: Settings) -> bool:
    """Return whether the inference process is alive."""
    address = urlsplit(settings.infer_url)
    embedded = inference_socket(settings.home)  # its address under `hifi serve`
    if "infer_url" not in settings.model_fields_set and embedded.is_socket():
        return _answers("http://inference/healthz", uds=str(embedded))
    if address.scheme == "unix":
        path = Path(unquote(address.path))
        return path.is_socket() and _answers("http://inference/healthz", uds=str(path))
    port = address.port or 80
    return _answers(f"http://{reachable_host(address.hostname or '')}:{port}/healthz")


def worker_is_healthy(settings: Settings) -> bool:
    """Return whether a worker of this machine has sent a heartbeat recently."""
    database = Database(settings.database_url, pool_size=1)
    try:
        with database.read() as session:
            prefix = f"{machine_name()}-"
            return any(worker.id.startswith(prefix) for worker in live_workers(session))
    except OUTAGES:
        return False
    finally:
        database.close()


CHECKS: Mapping[str, Callable[[Settings], bool]] = {
    "gateway": gateway_is_healthy,
    "worker": worker_is_healthy,
    "inference": inference_is_healthy,
}


def _answers(url: str, *, headers: Mapping[str, str] | None = None, uds: str | None = None) -> bool:
    transport = httpx2.HTTPTransport(uds=uds)
    try:
        with httpx2.Client(transport=transport, timeout=_SECONDS, trust_env=False) as client:
            return client.get(url, headers=headers).status_code == httpx2.codes.OK
    except httpx2.TransportError:
        return False


def main(arguments: list[str]) -> int:
    """Check one process and return the exit code."""
    if len(arguments) != 1 or arguments[0] not in CHECKS:
        sys.stderr.write(f"usage: python -m service.health {'|'.join(CHECKS)}\n")
        return 2
    name = arguments[0]
    try:
        is_healthy = CHECKS[name](read_settings())
    except StoreError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if not is_healthy:
        sys.stderr.write(f"found no healthy {name} with these settings\n")
    return 0 if is_healthy else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
