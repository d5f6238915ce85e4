"""The parsing child: one request on its input, one JSON line per message on its output."""

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
from service.datasets.checking.exchange import Limits, Request

_WATCH_SECONDS = 0.5
_MARGIN = 256 << 20  # of files written: spools, and Parquet that is larger than its content


def main() -> None:
    """Do what was asked, within the limits, and tell."""
    request = Request.from_json(json.load(sys.stdin))
    threading.Thread(target=_watch_parent, args=[request.parent], daemon=True).start()
    _limit(request.limits)
    sys.meta_path.insert(0, _WithoutPandas())
    try:
        # Parsers are loaded under the limits.
        from service.datasets.checking.work import convert_all, use_one_thread  # noqa: PLC0415

        use_one_thread()
        done = convert_all(request, tell=_tell)
    except DataError as error:
        place = {"split": error.split, "row": error.row, "column": error.column}
        done = {"kind": "refused", "reason": error.reason, **place}
    except MemoryError:
        raise
    except OSError as error:
        done = {"kind": "failed", "errno": error.errno}
    except Exception as error:  # noqa: BLE001 - a fault of ours; its message may quote the data
        done = {"kind": "crashed", "error": _place(error)}
    _tell(done)


class _WithoutPandas(MetaPathFinder):
    """Keeps pyarrow from loading pandas, which is not needed here: 34 MB, and half of the time."""

    def find_spec(
        self,
        fullname: str,
        path: object,  # noqa: ARG002 - importlib's signature
        target: object = None,  # noqa: ARG002 - as above
    ) -> None:
        """Raise for pandas, find nothing else."""
        if fullname == "pandas":
            raise ModuleNotFoundError(fullname)


def _place(error: Exception) -> str:
    """Name the type of an error and where it was raised, without its words."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"


def _tell(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _watch_parent(parent: int) -> None:
    """End when the gateway does, however it does."""
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)


def _limit(limits: Limits) -> None:
    """Put bounds on what a file can make us do."""
    for kind, most in (
        (resource.RLIMIT_AS, limits.memory),
        (resource.RLIMIT_CPU, math.ceil(limits.seconds)),
        (resource.RLIMIT_FSIZE, limits.max_bytes + _MARGIN),
        (resource.RLIMIT_CORE, 0),  # a core file would hold rows of data
    ):
        _, hard = resource.getrlimit(kind)
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (bound, hard))


if __name__ == "__main__":
    main()
