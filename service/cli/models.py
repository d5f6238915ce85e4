"""``hifi models``: the backbones that a server's workers have."""

from __future__ import annotations

import argparse

from service.cli import options, output
from service.cli.actions import Actions, perform

run = perform


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``hifi models``."""
    listing = Actions(parser).add("list", _list, summary="list the backbones")
    options.add_page(listing)
    options.add_server(listing)


def _list(args: argparse.Namespace) -> int:
    with options.connect(args) as client:
        page = client.models.list(after=args.after, limit=args.limit)
    if args.json:
        output.print_json(page)
        return output.EXIT_OK
    rows = [
        (
            backbone["id"],
            backbone["architecture"],
            str(backbone["num_layers"]),
            f"{backbone['num_heads']} of {backbone['head_dim']}",
            f"{backbone['parameters']:,}",
        )
        for backbone in page["data"]
    ]
    header = ("id", "architecture", "layers", "heads", "parameters")
    output.print_page(page, header=header, rows=rows, what="backbones: no worker has told of any")
    return output.EXIT_OK
