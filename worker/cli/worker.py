"""``hifi worker``: run jobs on one device until it is stopped."""

from __future__ import annotations

import argparse
import sys

from worker.cli.process import StartError, started


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
        StartError: it cannot be started.
    """
    from worker.engine.handle import EngineDiedError
    from worker.process import run_worker

    with started("worker") as settings:
        try:
            run_worker(settings)
        except EngineDiedError as error:
            raise StartError(str(error)) from error
    sys.stderr.flush()
    return 0
