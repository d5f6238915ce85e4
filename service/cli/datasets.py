"""``hifi datasets``: upload, list, show and delete data sets on a server."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from hifi.cli import output
from hifi.data.formats import ENDINGS_IN_WORDS
from service.cli import names, options
from service.cli.actions import Actions, perform
from service.cli.pages import report_deleted, report_page
from service.cli.progress import transfer_display

if TYPE_CHECKING:
    from service.client import Client
    from service.client.documents import Dataset

run = perform


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``hifi datasets``."""
    actions = Actions(parser, connect=options.connect)
    push = actions.add(
        "push",
        _push,
        summary="upload a data set",
        notes=f"Files are {ENDINGS_IN_WORDS}; the server checks every row.",
    )
    push.add_argument("train_file", type=Path, metavar="TRAIN", help="the training split")
    push.add_argument(
        "--validation", type=Path, metavar="FILE", help="the split that selects the best step"
    )
    push.add_argument("--test", type=Path, metavar="FILE", help="a split that training never sees")
    push.add_argument("--name", metavar="NAME", help="for people")
    listing = actions.add("list", _list, summary="list the data sets, newest first")
    listing.add_argument("--name", metavar="NAME", help="list only those of this name")
    options.add_page(listing)
    show = actions.add("show", _show, summary="show a data set")
    delete = actions.add(
        "delete", _delete, summary="delete a data set that no unfinished job needs"
    )
    for action in (show, delete):
        action.add_argument(
            "dataset_id", metavar="DATASET", help="its id, ds_…, or its name if no other has it"
        )
    for action in (push, listing, show, delete):
        options.add_server(action)


def _push(client: Client, args: argparse.Namespace) -> int:
    with transfer_display(Console(stderr=True), "uploading") as display:
        dataset = client.datasets.push(
            args.train_file,
            validation=args.validation,
            test=args.test,
            name=args.name,
            on_progress=display,
        )
    return output.report(dataset, _describe, as_json=args.json)


def _list(client: Client, args: argparse.Namespace) -> int:
    page = client.datasets.list(name=args.name, after=args.after, limit=args.limit)
    return report_page(page, args, columns=_COLUMNS, what="data sets")


def _show(client: Client, args: argparse.Namespace) -> int:
    dataset = client.datasets.get(names.dataset_id(client, args.dataset_id))
    return output.report(dataset, _describe, as_json=args.json)


def _delete(client: Client, args: argparse.Namespace) -> int:
    identifier = names.dataset_id(client, args.dataset_id)
    client.datasets.delete(identifier)
    return report_deleted(identifier, args, kind="dataset")


def _describe(dataset: Dataset) -> dict[str, str]:
    notes = dataset.get("notes", [])  # a server of before has none
    left_out = [note for note in notes if note["code"] == "column_left_out"]
    others = [note for note in notes if note not in left_out]
    return {
        "id": dataset["id"],
        "name": dataset["name"] or "",
        "rows": _rows(dataset),
        "columns": ", ".join(f"{name} ({kind})" for name, kind in dataset["columns"].items()),
        "left out": ", ".join(f"{note['param']!r} ({note['message']})" for note in left_out),
        "notes": "; ".join(f"{note['param']}: {note['message']}" for note in others),
        "stored": output.format_bytes(dataset["bytes"]),
        "created": output.format_moment(dataset["created_at"]),
    }


def _rows(dataset: Dataset) -> str:
    return ", ".join(f"{name} {split['rows']}" for name, split in dataset["splits"].items())


_COLUMNS: dict[str, Callable[[Dataset], str]] = {
    "id": lambda dataset: dataset["id"],
    "name": lambda dataset: dataset["name"] or "",
    "rows": _rows,
    "columns": lambda dataset: ", ".join(dataset["columns"]),
    "size": lambda dataset: output.format_bytes(dataset["bytes"]),
    "created": lambda dataset: output.format_moment(dataset["created_at"]),
}
