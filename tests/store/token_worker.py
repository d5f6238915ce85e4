"""A worker that writes a line to a file for each token it takes; for test_queue."""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

from store.queue import consume, make_app
from store.settings import Settings


def main(home: Path, broker_url: str, name: str) -> None:
    """Take tokens until a signal comes.

    Args:
        home: of the settings; the lines go into ``taken`` in it, and where there is a file
            ``seconds``, each task takes so long.
        broker_url: empty for the embedded broker.
        name: of the worker.
    """
    logging.basicConfig(level=logging.INFO)
    app = make_app(Settings(home=home, broker_url=broker_url))

    def run_one() -> None:
        asked = home / "seconds"
        seconds = float(asked.read_text()) if asked.exists() else 0  # a test may remove it next
        with (home / "taken").open("a") as file:
            os.write(file.fileno(), f"{name}\n".encode())
        time.sleep(seconds)

    def note_end() -> None:
        (home / "ending").touch()

    consume(app, run_one, name=f"{name}@test", on_stop=note_end)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
