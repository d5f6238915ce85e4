"""The engine: the process that owns the device and computes one job after another.

Its commands come on standard input, its messages go to the file that was standard output; what
libraries print goes to standard error. It ends when its worker does: at the end of its input, and
on Linux by a signal of the kernel.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
from functools import partial
from typing import BinaryIO, Literal, cast

from hifi.errors import HifiError
from store.logs import configure_logging
from store.machine import end_with_parent
from worker.messages import (
    Command,
    Control,
    DescribeBackbones,
    Message,
    Ready,
    RunJob,
    Wish,
    decode,
    encode,
)


class Engine:
    """Runs jobs one after another, and answers a wish to stop at the next event of the job.

    Args:
        commands: where commands come from.
        messages: where messages go.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """

    def __init__(self, commands: BinaryIO, messages: BinaryIO, *, device: str) -> None:
        self._device = device
        self._commands = commands
        self._messages = messages
        self._todo: queue.Queue[Command] = queue.Queue()
        self._control: Control | None = None

    def run(self) -> None:
        """Work until the commands end, which ends the process."""
        # Torch, once everything is set up.
        from worker.computing import (  # noqa: PLC0415
            compute,
            describe_all,
            make_resident_backbones,
            release_memory,
        )

        try:
            backbones = make_resident_backbones(self._device)
        except HifiError as error:
            sys.exit(f"the engine cannot start: {error}")
        threading.Thread(target=self._listen, name="commands", daemon=True).start()
        self._tell(Ready())
        while True:
            command = self._todo.get()
            if isinstance(command, DescribeBackbones):
                for described in describe_all(command.backbones):
                    self._tell(described)
                self._tell(Ready())
            elif isinstance(command, RunJob):
                wish = partial(self._wish, command.run)
                last = compute(command, backbones=backbones, tell=self._tell, wish=wish)
                self._tell(last)
                release_memory()  # a third of a second, for which nobody waits

    def _wish(self, run: str) -> Wish | None:
        control = self._control
        return control.wish if control is not None and control.run == run else None

    def _listen(self) -> None:
        try:
            for line in self._commands:
                command = decode(line)
                if isinstance(command, Control):
                    self._control = command
                elif isinstance(command, DescribeBackbones | RunJob):
                    self._todo.put(command)
        finally:
            os._exit(0)  # our worker is gone: nobody wants what is being computed

    def _tell(self, message: Message) -> None:
        self._messages.write(encode(message))
        self._messages.flush()


def main() -> None:
    """Run the engine of a worker."""
    end_with_parent(signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM):  # our worker gets them too, and ends us in time
        signal.signal(number, signal.SIG_IGN)
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    device, log_format = sys.argv[1:]
    configure_logging(cast("Literal['json', 'text']", log_format), process="engine")
    logging.captureWarnings(capture=True)
    Engine(sys.stdin.buffer, messages, device=device).run()


if __name__ == "__main__":
    main()
