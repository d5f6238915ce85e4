"""The engine: the process that owns the device and computes one job at a time.

It reads commands from standard input and writes messages to the original standard output; prints of
libraries go to standard error. It ends with its worker: at the end of its input, and on Linux also
by a signal from the kernel.
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
from store.resources.memory import keep_reservations_small
from worker.engine.messages import (
    Broken,
    Command,
    Control,
    DescribeBackbones,
    Message,
    Ready,
    RunJob,
    StopRequest,
    decode,
    encode,
)


class Engine:
    """Runs one job at a time; a stop request takes effect at the job's next event.

    Args:
        commands: where commands come from.
        messages: where messages go.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        memory: the most bytes of host memory; None is a share of the machine's on a CPU.
        niceness: added to the process's when it is ready for commands.
    """

    def __init__(
        self,
        commands: BinaryIO,
        messages: BinaryIO,
        *,
        device: str,
        memory: int | None,
        niceness: int,
    ) -> None:
        self._device = device
        self._memory = memory
        self._niceness = niceness
        self._commands = commands
        self._messages = messages
        self._todo: queue.Queue[Command] = queue.Queue()
        self._control: Control | None = None

    def run(self) -> None:
        """Process commands until their end, which ends the process."""
        # Import torch after everything else is set up.
        from worker.engine.computing import (  # noqa: PLC0415
            compute,
            describe_all,
            load_task_types,
            make_resident_backbones,
            release_memory,
        )

        try:
            backbones = make_resident_backbones(self._device, memory=self._memory)
        except HifiError as error:
            self._send(Broken(text=str(error)))
            sys.exit(1)
        load_task_types()
        os.nice(self._niceness)  # on Linux: this thread's, and that of threads that it starts
        threading.Thread(target=self._listen, name="commands", daemon=True).start()
        self._send(Ready())
        while True:
            command = self._todo.get()
            if isinstance(command, DescribeBackbones):
                for described in describe_all(command.backbones):
                    self._send(described)
                self._send(Ready())
            elif isinstance(command, RunJob):
                stop_request = partial(self._stop_request, command.run)
                self._send(
                    compute(
                        command, backbones=backbones, send=self._send, stop_request=stop_request
                    )
                )
                release_memory()  # takes a third of a second, so after the answer

    def _stop_request(self, run: str) -> StopRequest | None:
        control = self._control
        return control.stop_request if control is not None and control.run == run else None

    def _listen(self) -> None:
        try:
            for line in self._commands:
                command = decode(line)
                if isinstance(command, Control):
                    self._control = command
                elif isinstance(command, DescribeBackbones | RunJob):
                    self._todo.put(command)
        finally:
            os._exit(0)  # the worker has ended and needs no result

    def _send(self, message: Message) -> None:
        self._messages.write(encode(message))
        self._messages.flush()


def main() -> None:
    """Run the engine of a worker."""
    end_with_parent(signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM):  # the worker gets them too, and ends us
        signal.signal(number, signal.SIG_IGN)
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    device, log_format, memory, niceness = sys.argv[1:]
    keep_reservations_small()
    configure_logging(cast("Literal['json', 'text']", log_format), process="engine")
    logging.captureWarnings(capture=True)
    most = int(memory) if memory else None
    Engine(sys.stdin.buffer, messages, device=device, memory=most, niceness=int(niceness)).run()


if __name__ == "__main__":
    main()
