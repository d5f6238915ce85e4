"""``hifi models``: list the backbones of a server's workers."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from hifi.cli import output
from service.cli import options
from service.cli.actions import Actions, perform
from service.cli.pages import report_page
from store.settings import WHERE_MODELS_GO

if TYPE_CHECKING:
    from service.client import Client
    from service.client.documents import Backbone

run = perform


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``hifi models``."""
    actions = Actions(parser, connect=options.connect)
    listing = actions.add("list", _list, summary="list the backbones, and unusable models")
    options.add_page(listing)
    options.add_server(listing)


def _list(client: Client, args: argparse.Namespace) -> int:
    page = client.models.list(after=args.after, limit=args.limit)
    what = f"backbones yet: a worker that was just started reads them first; else {WHERE_MODELS_GO}"
    code = report_page(page, args, columns=_COLUMNS, what=what)
    if not args.json:
        for model in page["unavailable"]:
            output.note(f"{model['id']} is {model['status']}: {model['reason']}")
    return code


_COLUMNS: dict[str, Callable[[Backbone], str]] = {
    "id": lambda backbone: backbone["id"],
    "architecture": lambda backbone: backbone["architecture"],
    "layers": lambda backbone: str(backbone["num_layers"]),
    "heads": lambda backbone: str(backbone["num_heads"]),
    "head size": lambda backbone: str(backbone["head_dim"]),
    "parameters": lambda backbone: f"{backbone['parameters']:,}",
}
