"""``hifi serve``: run the whole service on this machine, or only its gateway."""

from __future__ import annotations

import argparse
import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from hifi.cli import output
from service.cli.actions import perform

if TYPE_CHECKING:
    from store.settings import Settings

run = perform


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``hifi serve``."""
    parser.description = (
        "Run the whole service on this machine: gateway, one worker and inference, with all data "
        "in one folder. Nothing else has to be installed or started. Settings are HIFI_… "
        "variables; docs/operations.md lists them. SIGTERM or Ctrl-C stops with a checkpoint of "
        "the running job; a second one stops at once."
    )
    parser.add_argument(
        "--only",
        choices=("gateway",),
        help="run only the gateway, for separate `hifi worker` and `hifi infer` processes; the "
        "tables must exist (`hifi migrate`)",
    )
    parser.add_argument(
        "--home", type=Path, metavar="DIR", help="the folder of all data (HIFI_HOME, ./.hifi)"
    )
    parser.add_argument("--host", metavar="HOST", help="listen address (HIFI_HOST, 127.0.0.1)")
    parser.add_argument(
        "--port",
        type=int,
        metavar="PORT",
        help="listen port, 0 for any free port (HIFI_PORT, 8000)",
    )
    parser.add_argument("--listener", type=int, help=argparse.SUPPRESS)  # a supervisor's socket
    parser.set_defaults(act=_serve)


def _serve(args: argparse.Namespace) -> int:
    from store.machine import private_files
    from store.settings import read_settings

    for name in ("home", "host", "port"):
        if getattr(args, name) is not None:  # the parts of the service read them too
            os.environ[f"HIFI_{name.upper()}"] = str(getattr(args, name))
    settings = read_settings()
    with private_files():
        if args.only == "gateway":
            return _serve_gateway(settings, listener=args.listener)
        return _serve_all(settings)


def _serve_all(settings: Settings) -> int:
    from service.embedded.serve import serve_embedded
    from store.logs import configure_logging

    configure_logging(settings.log_format, process="serve")
    number = serve_embedded(settings, announce=_announce)
    return output.EXIT_INTERRUPTED if number == signal.SIGINT else output.EXIT_OK


def _announce(url: str) -> None:
    output.print_line(f"HiFi is ready at {url} (the dashboard; the API is described at {url}/docs)")


def _serve_gateway(settings: Settings, *, listener: int | None) -> int:
    from service.embedded.home import make_home
    from service.embedded.listening import listen, url_of
    from service.server import run_gateway
    from store.database.outages import open_database
    from store.logs import configure_logging

    configure_logging(settings.log_format, process="gateway")
    make_home(settings.home)
    if listener is not None:
        run_gateway(settings, socket.socket(fileno=listener))
        return output.EXIT_OK
    with listen(settings) as opened:
        with open_database(settings.database_url):
            pass  # its tables are checked before the address is printed
        output.print_line(f"HiFi's gateway listens at {url_of(opened)}")
        run_gateway(settings, opened)
    return output.EXIT_OK
