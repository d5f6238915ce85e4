"""The job spec from a command's options: only what was given, so that the rest is the server's."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from service.client.errors import ClientError, LocalFileError

TASK_TYPES = ("classification", "regression", "image-classification")
METRICS = ("accuracy", "f1", "matthews", "pearson", "spearman")
STRATEGIES = ("layer-wise", "mid-top")
TELEPORTS = ("information", "uniform")
PRECISIONS = ("auto", "float32", "bfloat16")

_TASK = ("text", "label", "image", "metric")
_SELECTION = ("k", "xi", "d", "n_samples", "strategy", "teleport")
_TRAINING = (
    *("epochs", "learning_rate", "batch_size", "max_length", "warmup_ratio"),
    *("weight_decay", "seed", "precision", "early_stopping_patience"),
)


class SpecError(ClientError):
    """A job spec that the options do not make."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what a job spec is made from."""
    parser.add_argument(
        "--spec",
        type=Path,
        metavar="FILE",
        help="a job spec as JSON; the other options change what it says",
    )
    parser.add_argument(
        "--model", metavar="ID", help="the backbone, as `hifi models list` names it"
    )
    parser.add_argument("--name", metavar="NAME", help="for people")
    parser.add_argument(
        "--metadata",
        nargs="+",
        action="extend",
        type=_pair,
        metavar="KEY=VALUE",
        help="kept with the job, for whatever you like",
    )
    group = parser.add_argument_group("data")
    data = group.add_mutually_exclusive_group()
    data.add_argument("--dataset", metavar="ID", help="as `hifi datasets push` gave it, ds_…")
    data.add_argument(
        "--hub", metavar="ID", help="a data set of the Hugging Face hub, where the server allows it"
    )
    group.add_argument("--hub-config", metavar="NAME", help="which configuration of it, as mrpc")
    group.add_argument("--hub-revision", metavar="REV", help="which revision of it")
    _add_task(parser.add_argument_group("task", "what is left out is inferred from the columns"))
    _add_selection(parser.add_argument_group("selection"))
    _add_training(parser.add_argument_group("training"))


def _pair(text: str) -> tuple[str, str]:
    key, mark, value = text.partition("=")
    if not mark or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def _add_task(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--task", choices=TASK_TYPES, help="the task's type")
    group.add_argument("--text", nargs="+", metavar="COLUMN", help="one or two text columns")
    group.add_argument("--image", metavar="COLUMN", help="the column of images")
    group.add_argument("--label", metavar="COLUMN", help="the column of classes or numbers")
    group.add_argument("--metric", choices=METRICS, help="by which the best step is chosen")


def _add_selection(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--k", type=int, metavar="K", help="heads per layer (default: 3)")
    group.add_argument(
        "--xi",
        "--ξ",
        dest="xi",
        type=float,
        metavar="SHARE",
        help="share of the singular values that counts as a head's information (default: 0.9)",
    )
    group.add_argument(
        "--d",
        "--damping",
        "-d",
        dest="d",
        type=float,
        metavar="D",
        help="PageRank's (default: 0.85)",
    )
    group.add_argument(
        "--n-samples", type=int, metavar="N", help="calibration samples (default: 300)"
    )
    group.add_argument(
        "--strategy",
        choices=STRATEGIES,
        help="select in every layer, or in the upper half only (default: layer-wise)",
    )
    group.add_argument(
        "--teleport", choices=TELEPORTS, help="where PageRank restarts (default: information)"
    )


def _add_training(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--epochs", type=int, metavar="N", help="(default: 3)")
    group.add_argument("--learning-rate", type=float, metavar="LR", help="(default: 3e-4)")
    group.add_argument("--batch-size", type=int, metavar="N", help="(default: 32)")
    group.add_argument(
        "--max-length", type=int, metavar="TOKENS", help="of a sample at most (default: 128)"
    )
    group.add_argument("--warmup-ratio", type=float, metavar="SHARE", help="(default: 0.06)")
    group.add_argument("--weight-decay", type=float, metavar="W", help="(default: 0.01)")
    group.add_argument("--seed", type=int, metavar="SEED", help="(default: 0)")
    group.add_argument(
        "--precision", choices=PRECISIONS, help="of the frozen backbone (default: auto)"
    )
    group.add_argument(
        "--early-stopping-patience",
        type=int,
        metavar="N",
        help="stop after N evaluations without a better metric (default: never)",
    )


def build_spec(args: argparse.Namespace) -> dict[str, Any]:
    """Put together the job spec that the options ask for.

    Raises:
        SpecError: the model or the data are missing, or a hub option is without its data set.
        LocalFileError: the file of ``--spec`` cannot be read.
    """
    spec = {} if args.spec is None else _read(args.spec)
    spec |= _given(args, "model", "name", *_SELECTION)
    if dataset := _dataset(args):
        spec["dataset"] = dataset
    task = {"type": args.task} if args.task is not None else {}
    for part, given in (
        ("task", task | _given(args, *_TASK)),
        ("training", _given(args, *_TRAINING)),
        ("metadata", dict(args.metadata or ())),
    ):
        if given:
            spec[part] = {**_object(spec, part), **given}
    for field in ("model", "dataset"):
        if field not in spec:
            or_hub = " or --hub" if field == "dataset" else ""
            raise SpecError(f"say which {field}: --{field}{or_hub}, or in the file of --spec")
    return spec


def _given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _dataset(args: argparse.Namespace) -> str | dict[str, Any] | None:
    hub = {
        "hub": args.hub,
        "config": args.hub_config,
        "revision": args.hub_revision,
    }
    if args.hub is not None:
        return {name: value for name, value in hub.items() if value is not None}
    if args.hub_config is not None or args.hub_revision is not None:
        raise SpecError("--hub-config and --hub-revision go with --hub")
    dataset: str | None = args.dataset
    return dataset


def _object(spec: dict[str, Any], field: str) -> dict[str, Any]:
    """Give an object of the file, to be changed; anything else there is the server's to refuse."""
    value = spec.get(field) or {}
    if not isinstance(value, dict):
        raise SpecError(f"{field} in the file of --spec is no JSON object")
    return value


def _read(path: Path) -> dict[str, Any]:
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LocalFileError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path} is no JSON ({error})") from error
    if not isinstance(spec, dict):
        raise SpecError(f"{path} holds no JSON object")
    return spec
