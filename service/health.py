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
from store.jobs.workers import find_live_workers
from store.machine import living_folders, machine_name
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
    """Return whether the inference process of these settings is alive.

    Raises:
        SettingsError: the settings name several, and do not tell which this one is.
    """
    embedded = inference_socket(settings.home)  # its address under `hifi serve`
    is_chosen = settings.model_fields_set & {"infer_url", "infer_listen"}
    if not is_chosen and embedded.is_socket():
        return _answers("http://inference/healthz", uds=str(embedded))
    address = urlsplit(settings.own_infer_url())
    if address.scheme == "unix":
        path = Path(unquote(address.path))
        return path.is_socket() and _answers("http://inference/healthz", uds=str(path))
    port = address.port or 80
    return _answers(f"http://{reachable_host(address.hostname or '')}:{port}/healthz")


def worker_is_healthy(settings: Settings) -> bool:
    """Return whether the worker of this machine and ``HIFI_HOME`` has sent a heartbeat recently.

    If several share the folder, all must have.
    """
    prefix = f"{machine_name()}-"
    ours = {name for name in living_folders(settings.work) if name.startswith(prefix)}
    if not ours:
        return False
    database = Database(settings.database_url, pool_size=1)
    try:
        return ours <= set(find_live_workers(database))
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
