"""``hifi infer``: run the inference process, which serves predictions and merged models."""

from __future__ import annotations

import argparse
import os

from worker.cli.process import started


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe ``hifi infer``, which has no arguments; its settings come from the environment."""
    parser.description = (
        "Serve predictions and merged models to the gateway, until SIGTERM. It keeps each backbone "
        "in memory once, on HIFI_DEVICE, and answers inputs of many tasks in one batch. It listens "
        "on HIFI_INFER_URL (http://host:port, or unix:///a/socket for this user only) and requires "
        "HIFI_INFER_TOKEN if that is set. It needs the same HIFI_ARTIFACTS_URL, HIFI_MODELS and "
        "HIFI_ALLOW_HUB as the workers."
    )


def run(args: argparse.Namespace) -> int:  # noqa: ARG001 - every command takes them
    """Run the inference process.

    Raises:
        StartError: it cannot be started.
    """
    with started("inference") as settings:
        if not settings.allow_hub:  # read once, when transformers is imported
            os.environ["HF_HUB_OFFLINE"] = "1"
        from worker.inference.memory.heap import keep_few_kernels

        keep_few_kernels()
        from worker.inference.server import run_inference

        run_inference(settings)
    return 0
