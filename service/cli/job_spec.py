"""Build a job spec from a command's options; the server has the defaults of all others."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hifi.cli import options
from hifi.data.settings import Hyperparameters, RunSettings, Scoring, declared
from service.client.errors import ClientError, reading


class SpecError(ClientError):
    """The options do not form a job spec."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a job spec."""
    parser.add_argument(
        "--spec",
        type=Path,
        metavar="FILE",
        help="a job spec as JSON; other options override its fields",
    )
    parser.add_argument("--model", metavar="ID", help="the backbone's id, from `hifi models list`")
    parser.add_argument("--name", metavar="NAME", help="for people")
    parser.add_argument(
        "--metadata",
        nargs="+",
        action="extend",
        type=_pair,
        metavar="KEY=VALUE",
        help="your own data, stored with the job",
    )
    group = parser.add_argument_group("data")
    data = group.add_mutually_exclusive_group()
    data.add_argument(
        "--dataset",
        metavar="ID",
        help="its id from `hifi datasets push`, ds_…, or its name if no other has it",
    )
    data.add_argument(
        "--hub", metavar="ID", help="a data set of the Hugging Face hub, if the server allows it"
    )
    options.add_hub_details(group)
    options.add_metric(options.add_task(parser))
    options.add_selection(parser)
    training = declared(Hyperparameters).values()
    options.add_settings(parser.add_argument_group("training"), training)


def _pair(text: str) -> tuple[str, str]:
    key, mark, value = text.partition("=")
    if not mark or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def build_spec(args: argparse.Namespace) -> dict[str, Any]:
    """Return the job spec that the options describe.

    Raises:
        SpecError: model or data set are missing, or a hub option is used without ``--hub``.
        LocalFileError: the file of ``--spec`` cannot be read.
    """
    spec = {} if args.spec is None else _read(args.spec)
    spec |= options.given(args, ("model", "preset", "name")) | _settings(args, Scoring)
    if dataset := _dataset(args):
        spec["dataset"] = dataset
    for part, given in (
        ("task", options.task_of(args)),
        ("training", _settings(args, Hyperparameters)),
        ("metadata", dict(args.metadata or ())),
    ):
        if given:
            spec[part] = {**_object(spec, part), **given}
    for field in ("model", "dataset"):
        if field not in spec:
            or_hub = " or --hub" if field == "dataset" else ""
            raise SpecError(f"no {field}: set --{field}{or_hub}, or {field} in the --spec file")
    return spec


def _settings(args: argparse.Namespace, kind: type[RunSettings]) -> dict[str, Any]:
    """Return the given settings, under their names in the job spec."""
    known = declared(kind)
    return {known[name].names[0]: value for name, value in options.given(args, known).items()}


def _dataset(args: argparse.Namespace) -> str | dict[str, Any] | None:
    hub = {"hub": args.hub, "config": args.hub_config, "revision": args.hub_revision}
    if args.hub is not None:
        return {name: value for name, value in hub.items() if value is not None}
    if args.hub_config is not None or args.hub_revision is not None:
        raise SpecError("--hub-config and --hub-revision need --hub")
    dataset: str | None = args.dataset
    return dataset


def _object(spec: dict[str, Any], field: str) -> dict[str, Any]:
    """Return an object of the file, empty if it is missing."""
    value = spec.get(field) or {}
    if not isinstance(value, dict):
        raise SpecError(f"{field} in the --spec file is not a JSON object")
    return value


def _read(path: Path) -> dict[str, Any]:
    try:
        with reading(path):
            spec = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path} is not JSON ({error})") from error
    if not isinstance(spec, dict):
        raise SpecError(f"{path} is not a JSON object")
    return spec
