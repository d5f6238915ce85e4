"""``hifi datasets``: upload data sets to a server, and look at them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from service.cli import options, output
from service.cli.actions import Actions, perform
from service.cli.progress import transfer_display

if TYPE_CHECKING:
    from service.client.documents import Dataset

run = perform


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``hifi datasets``."""
    actions = Actions(parser)
    push = actions.add(
        "push",
        _push,
        summary="upload a data set",
        notes="Files are .jsonl, .csv, .tsv or .parquet; the server checks every row.",
    )
    push.add_argument("train_file", type=Path, metavar="TRAIN", help="the training split")
    push.add_argument(
        "--validation", type=Path, metavar="FILE", help="the split that chooses the best step"
    )
    push.add_argument("--test", type=Path, metavar="FILE", help="a split that training never sees")
    push.add_argument("--name", metavar="NAME", help="for people")
    listing = actions.add("list", _list, summary="list the data sets, newest first")
    options.add_page(listing)
    show = actions.add("show", _show, summary="show a data set")
    delete = actions.add("delete", _delete, summary="delete a data set that no live job needs")
    for action in (show, delete):
        action.add_argument("dataset_id", metavar="DATASET", help="its id, ds_…")
    for action in (push, listing, show, delete):
        options.add_server(action)


def _push(args: argparse.Namespace) -> int:
    with (
        options.connect(args) as client,
        transfer_display(Console(stderr=True), "uploading") as display,
    ):
        dataset = client.datasets.push(
            args.train_file,
            validation=args.validation,
            test=args.test,
            name=args.name,
            on_progress=display,
        )
    return _report(dataset, args)


def _list(args: argparse.Namespace) -> int:
    with options.connect(args) as client:
        page = client.datasets.list(after=args.after, limit=args.limit)
    if args.json:
        output.print_json(page)
        return output.EXIT_OK
    rows = [
        (
            dataset["id"],
            dataset["name"] or "",
            _rows(dataset),
            ", ".join(dataset["columns"]),
            output.format_bytes(dataset["bytes"]),
            output.format_moment(dataset["created_at"]),
        )
        for dataset in page["data"]
    ]
    header = ("id", "name", "rows", "columns", "size", "created")
    output.print_page(page, header=header, rows=rows, what="data sets")
    return output.EXIT_OK


def _show(args: argparse.Namespace) -> int:
    with options.connect(args) as client:
        return _report(client.datasets.get(args.dataset_id), args)


def _delete(args: argparse.Namespace) -> int:
    with options.connect(args) as client:
        client.datasets.delete(args.dataset_id)
    return output.report_deleted(args.dataset_id, kind="dataset", as_json=args.json)


def _report(dataset: Dataset, args: argparse.Namespace) -> int:
    if args.json:
        output.print_json(dataset)
        return output.EXIT_OK
    columns = ", ".join(f"{name} ({kind})" for name, kind in dataset["columns"].items())
    entries = {
        "id": dataset["id"],
        "name": dataset["name"] or "",
        "rows": _rows(dataset),
        "columns": columns,
        "stored": output.format_bytes(dataset["bytes"]),
        "created": output.format_moment(dataset["created_at"]),
    }
    output.print_facts({name: text for name, text in entries.items() if text})
    return output.EXIT_OK


def _rows(dataset: Dataset) -> str:
    return ", ".join(f"{name} {split['rows']}" for name, split in dataset["splits"].items())
