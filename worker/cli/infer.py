"""``hifi infer``: run the inference process, which serves predictions and merged models."""

from __future__ import annotations

import argparse
import os
import sys

from worker.cli.process import started

# The thread that computes needs the interpreter for a moment before each of a pass's hundred
# operations, and with Python's 5 ms it waits so long each time that another thread tokenises.
_SWITCH_SECONDS = 0.0005


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe ``hifi infer``."""
    parser.description = (
        "Serve predictions and merged models to the gateway, until SIGTERM. It keeps each backbone "
        "in memory once, on HIFI_DEVICE, and answers inputs of many tasks in one batch. It listens "
        "on HIFI_INFER_URL (http://host:port, or unix:///a/socket for this user only) and requires "
        "HIFI_INFER_TOKEN if that is set. If HIFI_INFER_URL names several processes, each needs "
        "--listen. It needs the same HIFI_ARTIFACTS_URL, HIFI_MODELS and "
        "HIFI_ALLOW_HUB as the workers, and for batch predictions the same HIFI_DATABASE_URL."
    )
    parser.add_argument(
        "--listen",
        metavar="URL",
        help="the address of this process (HIFI_INFER_LISTEN; HIFI_INFER_URL if it names only one)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the inference process.

    Raises:
        StartError: it cannot be started.
    """
    if args.listen is not None:
        os.environ["HIFI_INFER_LISTEN"] = args.listen
    with started("inference") as settings:
        if not settings.allow_hub:  # read once, when transformers is imported
            os.environ["HF_HUB_OFFLINE"] = "1"
        # The threads that encode are enough: more would take the cores from the one that computes.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        sys.setswitchinterval(_SWITCH_SECONDS)
        from store.resources.memory import keep_reservations_small
        from worker.inference.memory.heap import keep_few_kernels

        keep_reservations_small()
        keep_few_kernels()
        from worker.inference.server import run_inference

        run_inference(settings)
    return 0
