"""The engine: the process that owns the device and computes one job after another.

Its commands come on standard input, its messages go to the file that was standard output; what
libraries print goes to standard error. It ends when its worker does: at the end of its input, and
on Linux by a signal of the kernel.
"""

from __future__ import annotations

import ctypes
import gc
import os
import queue
import signal
import sys
import threading
from typing import BinaryIO

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

_PR_SET_PDEATHSIG = 1


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
        self._wish: Wish | None = None

    def run(self) -> None:
        """Work until the commands end, which ends the process."""
        # Torch, once everything is set up.
        from worker.computing import compute, describe_all, make_resident_backbones  # noqa: PLC0415

        backbones = make_resident_backbones(self._device)
        threading.Thread(target=self._listen, name="commands", daemon=True).start()
        self._tell(Ready())
        while True:
            command = self._todo.get()
            if isinstance(command, DescribeBackbones):
                for described in describe_all(command.backbones):
                    self._tell(described)
                self._tell(Ready())
            elif isinstance(command, RunJob):
                last = compute(
                    command, backbones=backbones, tell=self._tell, wish=lambda: self._wish
                )
                gc.collect()
                self._tell(last)

    def _listen(self) -> None:
        for line in self._commands:
            command = decode(line)
            if isinstance(command, Control):
                self._wish = command.wish
            elif isinstance(command, DescribeBackbones | RunJob):
                if isinstance(command, RunJob):
                    self._wish = None
                self._todo.put(command)
        os._exit(0)  # our worker is gone: nobody wants what is being computed

    def _tell(self, message: Message) -> None:
        self._messages.write(encode(message))
        self._messages.flush()


def main() -> None:
    """Run the engine of a worker."""
    _die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):  # our worker gets them too, and ends us in time
        signal.signal(number, signal.SIG_IGN)
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    Engine(sys.stdin.buffer, messages, device=sys.argv[1]).run()


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
