"""Messages between the harness and a process of another environment: JSON and tensors.

Both import this, so it needs no packages but torch and safetensors. A message is a line of JSON,
which has the number of bytes of the safetensors file that follows it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from store.machine import end_with_parent

if TYPE_CHECKING:
    from torch import Tensor

_REQUEST, _BYTES = "request", "bytes"
_MOST_QUOTED = 60  # bytes of what is not a message


@dataclass(frozen=True, eq=False)
class Message:
    """What one process tells the other.

    Attributes:
        content: plain JSON.
        tensors: by name.
    """

    content: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def part(self, name: str) -> dict[str, Tensor]:
        """Return one of the parts that were put together by :func:`parts`."""
        prefix = f"{name}/"
        return {
            key.removeprefix(prefix): value
            for key, value in self.tensors.items()
            if key.startswith(prefix)
        }


Answer = Callable[[Message], Message]


def parts(**tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put named groups of tensors together, for one message."""
    return {
        f"{part}/{name}": value for part, each in tensors.items() for name, value in each.items()
    }


def write(stream: IO[bytes], message: Message) -> None:
    """Write a message."""
    tensors = save({name: each.detach().contiguous() for name, each in message.tensors.items()})
    line = json.dumps({**message.content, _BYTES: len(tensors)})
    stream.write(f"{line}\n".encode() + tensors)
    stream.flush()


def read(stream: IO[bytes]) -> Message:
    """Read a message.

    Raises:
        EOFError: the stream has ended.
        ValueError: it has something else.
    """
    line = stream.readline()
    if not line:
        raise EOFError
    try:
        content = dict(json.loads(line))
        tensors = load(stream.read(content.pop(_BYTES)))
    except (ValueError, TypeError, KeyError, SafetensorError) as error:
        raise ValueError(f"no message: {line[:_MOST_QUOTED]!r}") from error
    return Message(content, tensors)


def ask(request: str, message: Message) -> Message:
    """Return a message that asks for an answer of this name."""
    return Message({**message.content, _REQUEST: request}, message.tensors)


def serve(answers: Mapping[str, Answer]) -> None:
    """Answer the requests on standard input until it ends or the harness does.

    Whatever else is printed goes to standard error.

    Args:
        answers: by the name of the request.
    """
    end_with_parent(signal.SIGKILL)
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as replies:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        while True:
            try:
                message = read(sys.stdin.buffer)
            except EOFError:
                return
            write(replies, answers[message.content[_REQUEST]](message))
