"""``hifi worker``: run jobs on one device until it is stopped."""

from __future__ import annotations

import argparse

from worker.cli.process import started


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe ``hifi worker``, which has no arguments; its settings come from the environment."""
    parser.description = (
        "Run queued jobs on one device, one at a time, until SIGTERM; the running job is then "
        "checkpointed and returned to the queue. Settings come from HIFI_… variables: "
        "HIFI_DATABASE_URL, HIFI_BROKER_URL, HIFI_ARTIFACTS_URL, HIFI_MODELS, HIFI_DEVICE, …"
    )


def run(args: argparse.Namespace) -> int:  # noqa: ARG001 - every command takes them
    """Run a worker.

    Raises:
        StartError, EngineDiedError: it cannot be started.
    """
    from worker.process import run_worker

    with started("worker") as settings:
        run_worker(settings)
    return 0
