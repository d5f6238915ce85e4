"""Print pages of lists, and deletions."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from hifi.cli import output

if TYPE_CHECKING:
    from service.client.documents import Page

_Item = TypeVar("_Item")


def report_page(
    page: Page[_Item],
    args: argparse.Namespace,
    *,
    columns: Mapping[str, Callable[[_Item], str]],
    what: str,
) -> int:
    """Print a page of a list and how to see the next one, and return the exit code.

    ``columns`` maps each heading to a function from an item to its cell; ``what`` names the items.
    """
    if args.json:
        output.print_json(page)
    elif not page["data"]:
        output.note(f"no {what}")
    else:
        rows = [[show(item) for show in columns.values()] for item in page["data"]]
        output.print_table(list(columns), rows)
        if page["has_more"]:
            output.note(f"more: continue with --after {page['last_id']}")
    return output.EXIT_OK


def report_deleted(
    identifier: str, args: argparse.Namespace, *, kind: str, verb: str = "deleted"
) -> int:
    """Print that something was deleted, and return the exit code."""
    document = {"id": identifier, "object": kind, "deleted": True}
    return output.report(document, lambda _: {verb: identifier}, as_json=args.json)
