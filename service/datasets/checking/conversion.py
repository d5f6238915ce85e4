"""Turn uploaded files into checked Parquet, in a child process that may die of them."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from hifi.data.inference import check_certain_task
from hifi.data.profile import DatasetProfile
from service.datasets.checking.errors import DatasetInvalidError
from service.datasets.checking.exchange import (
    ENDINGS,
    SPLITS,
    Limits,
    Request,
    UploadedFile,
    parquet_name,
)
from store.errors import ArtifactStorageError

_ROOT = Path(__file__).parents[3]  # the folder of our packages, wherever they are installed
_MOST_ANSWER_BYTES = 64 << 20
_ENVIRONMENT = {
    # Of the gateway's own nothing: it holds keys. One arena and one thread keep the child small.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONPATH": str(_ROOT),
}
_DEATHS = {
    signal.SIGXCPU: "takes too long to read",
    signal.SIGXFSZ: "is too large when it is unpacked",
    signal.SIGKILL: "takes too much memory or time to read",
}

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class ConvertedSplit:
    """One split as Parquet."""

    path: Path
    rows: int


@dataclass(frozen=True, kw_only=True)
class ConvertedDataset:
    """An upload that was found sound.

    Attributes:
        splits: by name.
        columns: type of each of the training split's columns, for people.
        profile: what the rows hold, as ``DatasetProfile`` reads it; plain JSON.
    """

    splits: Mapping[str, ConvertedSplit]
    columns: Mapping[str, str]
    profile: Mapping[str, Any]


def convert(files: Mapping[str, UploadedFile], *, folder: Path, limits: Limits) -> ConvertedDataset:
    """Check uploaded files row by row and write them as Parquet.

    The parsers run in a child with limits on memory, time and what it writes; what kills it is
    the file's fault and refused like any other.

    Args:
        files: by split: ``train``, and where there are any ``validation`` and ``test``.
        folder: an empty one, for the Parquet files; the caller removes it.
        limits: what the upload may cost.

    Returns:
        The Parquet files, their columns, and what is in them.

    Raises:
        DatasetInvalidError: a file that cannot be used; it names split, row and column.
        ArtifactStorageError: there is no room to unpack them.
        OSError: the child cannot be started.
    """
    for split, file in files.items():
        if file.ending not in ENDINGS:
            known = ", ".join(ENDINGS)
            raise DatasetInvalidError(f"the file's name must end in one of {known}", split=split)
    request = Request(
        files={
            split: (str(files[split].path.absolute()), files[split].ending)
            for split in SPLITS
            if split in files
        },
        folder=str(folder.absolute()),
        limits=limits,
        parent=os.getpid(),
    )
    answer = _run_child(request)
    converted = ConvertedDataset(
        splits={
            split: ConvertedSplit(path=folder / parquet_name(split), rows=answer["rows"][split])
            for split in request.files
        },
        columns=answer["columns"],
        profile=answer["profile"],
    )
    check_certain_task(DatasetProfile.from_json(converted.profile))
    return converted


def _run_child(request: Request) -> dict[str, Any]:
    """Let the child work, and give its last word.

    Raises:
        DatasetInvalidError: it refuses the data, or has died of it.
    """
    started = time.monotonic()
    lines = json.dumps(request.to_json()).encode()
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "service.datasets.checking"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # parsers quote data
        cwd=request.folder,
        env={**_ENVIRONMENT, "PATH": os.environ.get("PATH", "")},
    ) as child:
        alarm = threading.Timer(request.limits.seconds, child.kill)
        alarm.daemon = True
        alarm.start()
        try:
            said = _talk(child, lines)
            status = child.poll()
        finally:
            alarm.cancel()
            child.kill()
    messages = _parse(said) if len(said) < _MOST_ANSWER_BYTES else []
    last = messages[-1] if messages else {}
    if last.get("kind") == "done":
        return last
    if last.get("kind") == "refused":
        raise DatasetInvalidError(
            last["reason"], split=last["split"], row=last["row"], column=last["column"]
        )
    if last.get("kind") == "failed":
        raise ArtifactStorageError(
            f"the upload cannot be unpacked here: {os.strerror(last['errno'] or errno.EIO)}"
        )
    seconds = time.monotonic() - started
    split = next((told["split"] for told in messages[::-1] if "split" in told), "train")
    _log.warning(
        "upload_child_died",
        split=split,
        status=status,
        seconds=seconds,
        error=last.get("error"),
    )
    raise DatasetInvalidError(_cause(status, seconds, limits=request.limits), split=split)


def _talk(child: subprocess.Popen[bytes], lines: bytes) -> bytes:
    """Send the request; collect what is said until the child is silent for good."""
    if child.stdin is None or child.stdout is None:
        raise OSError("the child has no pipes")
    try:
        child.stdin.write(lines)
        child.stdin.close()
    except BrokenPipeError:
        return b""
    said = child.stdout.read(_MOST_ANSWER_BYTES)
    if len(said) < _MOST_ANSWER_BYTES:
        child.wait()
    return said


def _parse(said: bytes) -> list[dict[str, Any]]:
    """Read the whole lines of what a child said that may have died in the middle of one."""
    messages = []
    for line in said.splitlines():
        try:
            message = json.loads(line)
        except ValueError:
            break
        if isinstance(message, dict):
            messages.append(message)
    return messages


def _cause(status: int | None, seconds: float, *, limits: Limits) -> str:
    if seconds >= limits.seconds:
        return f"the file takes more than {limits.seconds:g} seconds to read"
    death = signal.Signals(-status) if status is not None and status < 0 else None
    told = _DEATHS.get(death) if death is not None else None
    if told is not None:
        return f"the file {told}"
    return "the file cannot be parsed: its reader crashed; it may be damaged, or made to do harm"
