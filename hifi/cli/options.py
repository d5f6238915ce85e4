"""Options that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from hifi.data.formats import ENDINGS_IN_WORDS
from hifi.data.presets import PRESET_WORDS, PRESETS
from hifi.data.settings import SCORED_WITH, Hyperparameters, Precision, Scoring, Setting, declared
from hifi.data.spec import FIELDS, OPTIONS, IfLabelled
from hifi.data.task_types import metric_names, task_types
from hifi.deltas import metadata
from hifi.errors import InvalidArgumentError

DTYPES = tuple(name for name in get_args(Precision) if name != "auto")
ENCODINGS = metadata.ENCODINGS
NO_SPLIT = "none"  # cannot be a file name: those have an extension

_MODEL = "the backbone: a folder, all-MiniLM-L6-v2, or a Hugging Face hub id"
_REVISION = "branch, tag or commit of a hub id"


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON document on stdout, and everything else on stderr",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the backbone."""
    parser.add_argument("--model", required=True, metavar="NAME", help=_MODEL)
    parser.add_argument("--revision", metavar="REV", help=f"{_REVISION} (default: main)")


def add_delta(parser: argparse.ArgumentParser) -> None:
    """Add a head delta, and its backbone if not the one that the delta names."""
    parser.add_argument("--delta", type=Path, required=True, metavar="FILE", help="the head delta")
    parser.add_argument(
        "--model", metavar="NAME", help=f"{_MODEL} (default: the one that the delta names)"
    )
    parser.add_argument(
        "--revision",
        metavar="REV",
        help=f"{_REVISION} (default: the one that the delta names; with --model, main)",
    )


def add_data(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the source of the training split."""
    group = parser.add_argument_group("data", f"files are {ENDINGS_IN_WORDS}")
    train = group.add_mutually_exclusive_group(required=True)
    train.add_argument("--train", metavar="FILE", help="the training split")
    train.add_argument("--hub", metavar="ID", help="use the splits of this hub data set instead")
    add_hub_details(group)
    return group


def add_hub_details(group: argparse._ArgumentGroup) -> None:
    """Add the configuration and revision of a hub data set."""
    group.add_argument("--hub-config", metavar="NAME", help="its configuration, e.g. mrpc")
    group.add_argument("--hub-revision", metavar="REV", help="its revision")


def add_held_out(group: argparse._ArgumentGroup) -> None:
    """Add the sources of the validation and the test split."""
    group.add_argument(
        "--validation",
        metavar="FILE",
        help=f"the split on which the best step is chosen, or {NO_SPLIT!r} to keep the last "
        "step (default: the split 'validation' with --hub, none with --train)",
    )
    group.add_argument(
        "--test",
        metavar="FILE",
        help="a split that is scored once, at the end, and chooses nothing, or "
        f"{NO_SPLIT!r} (default: the split 'test' with --hub, if it has labels, none with --train)",
    )


def add_task(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the task's type and columns."""
    group = parser.add_argument_group("task", "whatever is not set is inferred from the columns")
    names = [each.name for each in task_types()]
    group.add_argument("--task", choices=names, help="the task's type")
    group.add_argument("--text", nargs="+", metavar="COLUMN", help="one or two text columns")
    group.add_argument("--image", metavar="COLUMN", help="the column of images")
    group.add_argument(
        "--label",
        nargs="+",
        metavar="COLUMN",
        help="the column of classes, of lists of labels or of numbers; or several columns of 0 and "
        "1, one for each label",
    )
    group.add_argument("--tokens", metavar="COLUMN", help="the column of lists of words")
    group.add_argument(
        "--tags", metavar="COLUMN", help="the column of lists with a tag for each word"
    )
    group.add_argument(
        "--spans",
        metavar="COLUMN",
        help="the column of lists of labelled spans of the text: objects with start, end and label",
    )
    group.add_argument("--question", metavar="COLUMN", help="the column of questions")
    group.add_argument(
        "--context", metavar="COLUMN", help="the column of the texts that answer the questions"
    )
    group.add_argument(
        "--choices",
        nargs="+",
        metavar="COLUMN",
        help="the column of lists of choices, or a text column for each choice; --label then is "
        "the column with the number or the letter of the right one",
    )
    group.add_argument(
        "--answers",
        metavar="COLUMN",
        help="the column of answers: objects with lists text and answer_start, empty for no answer",
    )
    group.add_argument(
        "--threshold",
        type=float,
        metavar="X",
        help="the probability from which on an input has a label, for multi-label (default: the "
        "best one on the validation split)",
    )
    group.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="tokens that two windows of a long context share, for question-answering: at most "
        "half of those that a window has (default: a quarter)",
    )
    return group


def task_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the task that the options describe, with the fields of a task spec."""
    fields = given(args, (*FIELDS, "metric", *OPTIONS))
    if len(fields.get("label", ())) == 1:
        (fields["label"],) = fields["label"]
    return fields if args.task is None else {"type": args.task, **fields}


def add_metric(group: argparse._ArgumentGroup) -> None:
    """Add the metric."""
    defaults = ", ".join(f"{each.metrics[0]} for {each.name}" for each in task_types())
    group.add_argument(
        "--metric",
        choices=metric_names(),
        help=f"chooses the best step; among equals the lowest loss does (default: {defaults})",
    )


def add_settings(group: argparse._ArgumentGroup, settings: Iterable[Setting]) -> None:
    """Add an option for each setting; it is None if not set, and the setting's default applies."""
    for each in settings:
        short = [f"-{name}" for name in each.names if len(name) == 1 and name.isascii()]
        group.add_argument(
            *(f"--{name.replace('_', '-')}" for name in each.names),
            *short,
            dest=each.name,
            type=each.type if each.form is None else each.form.parse,
            choices=each.choices or None,
            metavar=_metavar(each),
            help=each.help,
        )


def _metavar(setting: Setting) -> str | None:
    if setting.form is not None:
        return setting.form.metavar
    return None if setting.choices else "N" if setting.type is int else "X"


def add_selection(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the settings of head selection."""
    group = parser.add_argument_group("selection")
    group.add_argument("--preset", choices=PRESETS, help=PRESET_WORDS)
    add_settings(group, declared(Scoring).values())
    return group


def add_given_selection(group: argparse._ArgumentGroup) -> None:
    """Add the option for an existing selection."""
    group.add_argument(
        "--selection",
        type=Path,
        metavar="FILE",
        help="tune the heads in a file of `hifi select --out` without scoring; the other options "
        "of this group are ignored then",
    )


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Add what selection and training share: the device and some hyperparameters."""
    group = parser.add_argument_group("computation")
    group.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)"
    )
    add_settings(group, [declared(Hyperparameters)[name] for name in SCORED_WITH])


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add the hyperparameters of training only."""
    settings = declared(Hyperparameters).values()
    add_settings(
        parser.add_argument_group("training"),
        [each for each in settings if each.name not in SCORED_WITH],
    )


def split_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return the splits as arguments of ``finetune``.

    Raises:
        InvalidArgumentError: a configuration or revision without a hub data set.
    """
    for name in ("hub_config", "hub_revision"):
        value = getattr(args, name)
        if args.train and value is not None:
            raise InvalidArgumentError(name, value=value, limit="only with --hub, not with --train")
    hub = {"hub": args.hub, "config": args.hub_config, "revision": args.hub_revision}
    splits: dict[str, Any] = {"train": args.train or hub}
    if "validation" in args:
        for name, own in (("validation", hub), ("test", IfLabelled(hub))):
            file = getattr(args, name)
            default = None if args.train else own
            splits[name] = {None: default, NO_SPLIT: None}.get(file, file)
    return splits


def given(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Return the options of these names that were set."""
    values = vars(args)
    return {name: values[name] for name in names if values.get(name) is not None}
