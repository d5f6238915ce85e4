"""Options that several commands share."""

from __future__ import annotations

import argparse
import os

from hifi.cli.options import add_json
from service.client import Client
from service.paging import DEFAULT_LIMIT, MAX_LIMIT

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
        type=_limit,
        default=DEFAULT_LIMIT,
        metavar="N",
        help=f"show at most N, 1 to {MAX_LIMIT} (default: %(default)s)",
    )
    parser.add_argument("--after", metavar="ID", help="continue the list after this id")


def _limit(text: str) -> int:
    try:
        limit = int(text)
    except ValueError:
        limit = 0
    if not 1 <= limit <= MAX_LIMIT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {MAX_LIMIT}")
    return limit


def names_server(args: argparse.Namespace) -> bool:
    """Return whether ``--url`` or HIFI_URL names a server."""
    return bool(args.url or os.environ.get("HIFI_URL"))


def connect(args: argparse.Namespace) -> Client:
    """Return a client of the server of ``--url``, HIFI_URL or the default.

    Raises:
        AddressError: invalid URL or key.
    """
    url = args.url or os.environ.get("HIFI_URL") or DEFAULT_URL
    return Client(url, api_key=os.environ.get("HIFI_API_KEY") or None)
