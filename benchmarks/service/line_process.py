"""A process of our own that answers lines of JSON with lines of JSON, until its input ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

Document = Mapping[str, Any]


@contextmanager
def line_process(
    module: str, *, environment: Mapping[str, str] | None = None
) -> Iterator[Callable[[Document], Any]]:
    """Run a module that calls :func:`answer_lines`.

    Args:
        module: its name.
        environment: of the process, in place of ours.

    Yields:
        A function that sends a document and gives the answer to it.
    """
    process = subprocess.Popen(  # noqa: S603 - a module of ours
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the pipes asked for are missing")
    sent, received = process.stdin, process.stdout

    def ask(document: Document) -> Any:
        print(json.dumps(document), file=sent, flush=True)
        line = received.readline()
        if not line:
            raise RuntimeError(f"{module} has ended with exit code {process.wait()}")
        return json.loads(line)

    try:
        yield ask
    finally:
        process.kill()
        process.communicate()


def answer_lines(answer: Callable[[Document], Any]) -> None:
    """Answer line after line; what libraries print goes to standard error."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        for line in sys.stdin:
            print(json.dumps(answer(json.loads(line))), file=answers, flush=True)
