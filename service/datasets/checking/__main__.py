"""The parsing child process: one request on stdin, one JSON line per message on stdout."""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import threading
import time
import traceback
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

from hifi.errors import DataError
from service.datasets.checking.exchange import OUT_OF_MEMORY, Limits, Request
from store.resources.memory import limit_memory

_WATCH_SECONDS = 0.5
_MARGIN = 256 << 20  # for temporary files, and for Parquet that is larger than its content


def main() -> None:
    """Run the request within its limits, and write the result."""
    given = json.load(sys.stdin)
    request = Request(**{**given, "limits": Limits(**given["limits"])})
    threading.Thread(target=_watch_parent, args=[request.parent], daemon=True).start()
    _limit(request.limits)
    sys.meta_path.insert(0, _WithoutPandas())
    try:
        # Import the parsers under the limits.
        from service.datasets.checking.work import convert_all, use_one_thread  # noqa: PLC0415

        use_one_thread()
        profile = convert_all(request, send=_send)
        done: dict[str, Any] = {"kind": "done", "profile": profile.to_json()}
    except DataError as error:
        place = {
            "split": error.split,
            "row": error.row,
            "line": error.line,
            "column": error.column,
        }
        done = {"kind": "refused", "reason": error.reason, **place}
    except MemoryError:
        os._exit(OUT_OF_MEMORY)  # there may be no memory left to write a message
    except OSError as error:
        done = {"kind": "failed", "errno": error.errno}
    except Exception as error:  # noqa: BLE001 - our own bug; its message may quote the data
        done = {"kind": "crashed", "error": _place(error)}
    _send(done)


class _WithoutPandas(MetaPathFinder):
    """Keeps pyarrow from importing pandas, which takes 34 MB and half of the startup time.

    None in ``sys.modules`` is not enough: pyarrow's compiled code would use it as the module.
    """

    def find_spec(
        self,
        fullname: str,
        path: object,  # noqa: ARG002 - importlib's signature
        target: object = None,  # noqa: ARG002 - as above
    ) -> None:
        """Raise for pandas; return None for all others."""
        if fullname == "pandas":
            raise ModuleNotFoundError(fullname)


def _place(error: Exception) -> str:
    """Return the type of an error and where it was raised, without its message."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"


def _send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _watch_parent(parent: int) -> None:
    """Exit when the gateway has ended, even by a kill."""
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)


def _limit(limits: Limits) -> None:
    """Limit this process's memory, processor time and file sizes."""
    limit_memory(limits.memory)
    for kind, most in (
        (resource.RLIMIT_CPU, math.ceil(limits.seconds)),
        (resource.RLIMIT_FSIZE, limits.max_bytes + _MARGIN),
        (resource.RLIMIT_CORE, 0),  # a core file would hold rows of data
    ):
        _, hard = resource.getrlimit(kind)
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (bound, hard))


if __name__ == "__main__":
    main()
