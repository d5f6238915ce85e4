"""Options that several commands share."""

from __future__ import annotations

import argparse
import os

from hifi.cli.options import add_json
from service.client import Client
from service.client.resources import DEFAULT_LIMIT

DEFAULT_URL = "http://127.0.0.1:8000"


def add_server(
    parser: argparse.ArgumentParser, *, default: str = f"HIFI_URL, or {DEFAULT_URL}"
) -> None:
    """Add ``--url``, with a description of its default, and ``--json``."""
    parser.add_argument(
        "--url",
        metavar="URL",
        help=f"the server (default: {default}); its key is taken from HIFI_API_KEY",
    )
    add_json(parser)


def add_page(parser: argparse.ArgumentParser) -> None:
    """Add ``--limit`` and ``--after``, which select a page of a list."""
    parser.add_argument(
        "--limit",
        type=int,
        default=DEFAULT_LIMIT,
        metavar="N",
        help="show at most N, 1 to 100 (default: %(default)s)",
    )
    parser.add_argument("--after", metavar="ID", help="continue the list after this id")


def connect(args: argparse.Namespace) -> Client:
    """Return a client of the server of ``--url``, HIFI_URL or the default.

    Raises:
        AddressError: invalid URL or key.
    """
    url = args.url or os.environ.get("HIFI_URL") or DEFAULT_URL
    return Client(url, api_key=os.environ.get("HIFI_API_KEY") or None)
