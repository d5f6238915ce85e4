"""Arguments that several commands share, with the defaults that the job spec has too.

The choices are written out, since the modules that own them import torch; a test compares them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hifi.errors import InvalidArgumentError

TASK_TYPES = ("classification", "regression", "image-classification")
METRICS = ("accuracy", "f1", "matthews", "pearson", "spearman")
STRATEGIES = ("layer-wise", "mid-top")
TELEPORTS = ("information", "uniform")
PRECISIONS = ("auto", "float32", "bfloat16")
DTYPES = ("float32", "bfloat16")
ENCODINGS = ("float32", "bfloat16", "int8")
NO_VALIDATION = "none"  # no file's name: those have an ending

# Options that finetune has under the same names: of everything up to the selection, and after it.
STEP_1 = (
    *("model", "revision", "text", "image", "label", "metric"),
    *("k", "xi", "damping", "n_samples", "strategy", "teleport"),
    *("device", "precision", "seed", "max_length", "batch_size"),
)
STEP_2 = (
    *("epochs", "learning_rate", "warmup_ratio", "weight_decay", "early_stopping_patience"),
    *("checkpoint_dir", "checkpoint_seconds"),
)

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
    """Add a head delta, and the backbone where it is not the one that the delta names."""
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
    """Add where the training split comes from."""
    group = parser.add_argument_group("data", "files are .jsonl, .csv, .tsv or .parquet")
    train = group.add_mutually_exclusive_group(required=True)
    train.add_argument("--train", metavar="FILE", help="the training split")
    train.add_argument("--hub", metavar="ID", help="take the splits of this hub data set instead")
    group.add_argument("--hub-config", metavar="NAME", help="which configuration of it, as mrpc")
    group.add_argument("--hub-revision", metavar="REV", help="which revision of it")
    return group


def add_validation(group: argparse._ArgumentGroup) -> None:
    """Add where the validation split comes from."""
    group.add_argument(
        "--validation",
        metavar="FILE",
        help=f"the split on which the best step is chosen, or {NO_VALIDATION!r} to keep the last "
        "step (default: with --hub its split 'validation', with --train none)",
    )


def add_task(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add what to read from the data."""
    group = parser.add_argument_group("task", "what is left out is inferred from the columns")
    group.add_argument("--task", choices=TASK_TYPES, help="the task's type")
    group.add_argument("--text", nargs="+", metavar="COLUMN", help="one or two text columns")
    group.add_argument("--image", metavar="COLUMN", help="the column of images")
    group.add_argument("--label", metavar="COLUMN", help="the column of classes or numbers")
    return group


def add_metric(group: argparse._ArgumentGroup) -> None:
    """Add the metric."""
    group.add_argument(
        "--metric",
        choices=METRICS,
        help="by which the best step is chosen, of equal ones the first (default: accuracy, or "
        "pearson for numbers)",
    )


def add_selection(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the arguments of step 1."""
    group = parser.add_argument_group("selection")
    group.add_argument("--k", type=int, default=3, metavar="K", help=_default("heads per layer"))
    group.add_argument(
        "--xi",
        "--ξ",
        type=float,
        dest="xi",
        metavar="SHARE",
        help="share of the singular values that counts as a head's information (default: 0.9)",
    )
    group.add_argument(
        "--damping", "-d", type=float, default=0.85, metavar="D", help=_default("PageRank's d")
    )
    group.add_argument(
        "--n-samples",
        type=int,
        metavar="N",
        help="calibration samples of the training split (default: 300, or all if there are fewer)",
    )
    group.add_argument(
        "--strategy",
        choices=STRATEGIES,
        default="layer-wise",
        help=_default("select in every layer, or in the upper half only"),
    )
    group.add_argument(
        "--teleport",
        choices=TELEPORTS,
        default="information",
        help=_default("where PageRank restarts"),
    )
    return group


def add_given_selection(group: argparse._ArgumentGroup) -> None:
    """Add the result of an earlier step 1."""
    group.add_argument(
        "--selection",
        type=Path,
        metavar="FILE",
        help="tune the heads in a file of `hifi select --out`, and score nothing: the other "
        "options of this group have no effect then",
    )


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Add what the computation runs on."""
    group = parser.add_argument_group("computation")
    group.add_argument("--device", default="auto", help=_default("auto, cpu, cuda or cuda:N"))
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help=_default("of the frozen backbone; auto is bfloat16 where the device has it natively"),
    )
    group.add_argument("--seed", type=int, default=0, help=_default("equal seeds, equal results"))
    group.add_argument(
        "--max-length",
        type=int,
        default=128,
        metavar="TOKENS",
        help=_default("tokens of a sample at most"),
    )
    group.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help=_default("samples per step")
    )


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of step 2."""
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=int, default=3, help=_default("passes over the data"))
    group.add_argument(
        "--learning-rate", type=float, default=3e-4, metavar="LR", help=_default("the highest")
    )
    group.add_argument(
        "--warmup-ratio",
        type=float,
        default=0.06,
        metavar="SHARE",
        help=_default("share of the steps in which the learning rate rises"),
    )
    group.add_argument(
        "--weight-decay", type=float, default=0.01, metavar="W", help=_default("of AdamW")
    )
    group.add_argument(
        "--early-stopping-patience",
        type=int,
        metavar="N",
        help="stop after N evaluations without a better metric (default: never)",
    )


def _default(text: str) -> str:
    return f"{text} (default: %(default)s)"


def split_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Give the splits as ``finetune`` takes them.

    Raises:
        InvalidArgumentError: a configuration or revision of a hub data set, but no such data set.
    """
    for name in ("hub_config", "hub_revision"):
        value = getattr(args, name)
        if args.train and value is not None:
            raise InvalidArgumentError(name, value=value, limit="only with --hub, not with --train")
    hub = {"hub": args.hub, "config": args.hub_config, "revision": args.hub_revision}
    splits: dict[str, Any] = {"train": args.train or hub}
    if "validation" in args:
        default = NO_VALIDATION if args.train else hub
        validation = default if args.validation is None else args.validation
        splits["validation"] = None if validation == NO_VALIDATION else validation
    return splits


def named_arguments(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Give those options that ``finetune`` has under the same name."""
    return {name: getattr(args, name) for name in names if name in args}
