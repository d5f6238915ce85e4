"""Convert uploaded files to checked Parquet, in a child process that malicious files may crash."""

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

from hifi.data.formats import ENDINGS
from hifi.data.inference import check_certain_task
from hifi.data.profile import DatasetProfile
from hifi.errors import DataError
from service.datasets.checking.errors import DatasetInvalidError
from service.datasets.checking.exchange import (
    SPLITS,
    Limits,
    Request,
    UploadedFile,
    parquet_name,
)
from store.errors import ArtifactStorageError

_ROOT = Path(__file__).parents[3]  # the folder of our packages
_MOST_ANSWER_BYTES = 64 << 20
_ENVIRONMENT = {
    # The gateway's environment is not inherited: it contains keys. One arena and one thread keep
    # the child small.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONPATH": str(_ROOT),
}
_DEATHS = {
    signal.SIGXCPU: "takes too long to read",
    signal.SIGXFSZ: "is too large when unpacked",
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
    """A valid upload.

    Attributes:
        splits: by name.
        columns: type of each column of the training split, for people.
        profile: a ``DatasetProfile`` as plain JSON.
    """

    splits: Mapping[str, ConvertedSplit]
    columns: Mapping[str, str]
    profile: Mapping[str, Any]


def convert(files: Mapping[str, UploadedFile], *, folder: Path, limits: Limits) -> ConvertedDataset:
    """Check uploaded files row by row and write them as Parquet.

    The parsers run in a child process with limits on memory, time and written bytes. A file that
    kills it is refused like any other invalid file.

    Args:
        files: by split: ``train``, and optionally ``validation`` and ``test``.
        folder: empty, for the Parquet files; the caller removes it.
        limits: of the child process.

    Returns:
        The Parquet files, their columns and their profile.

    Raises:
        DatasetInvalidError: a file cannot be used; it names split, row and column.
        ArtifactStorageError: the disk has no room for the unpacked files.
        OSError: the child process cannot be started.
    """
    for split, file in files.items():
        if file.ending not in ENDINGS:
            known = ", ".join(ENDINGS)
            reason = f"the file's name must end in one of {known}"
            raise DatasetInvalidError(DataError(reason, split=split))
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
    try:
        check_certain_task(DatasetProfile.from_json(converted.profile))
    except DataError as error:
        raise DatasetInvalidError(error) from error
    return converted


def _run_child(request: Request) -> dict[str, Any]:
    """Run the child, and return its last message.

    Raises:
        DatasetInvalidError: the child refuses the data, or was killed by it.
        ArtifactStorageError: the child cannot write its files.
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
            output = _exchange(child, lines)
            status = child.poll()
        finally:
            alarm.cancel()
            child.kill()
    messages = _parse(output) if len(output) < _MOST_ANSWER_BYTES else []
    last = messages[-1] if messages else {}
    if last.get("kind") == "done":
        return last
    if last.get("kind") == "refused":
        reason, split = last["reason"], last["split"]
        raise DatasetInvalidError(
            DataError(reason, split=split, row=last["row"], column=last["column"])
        )
    if last.get("kind") == "failed":
        raise ArtifactStorageError(
            f"the upload cannot be unpacked here: {os.strerror(last['errno'] or errno.EIO)}"
        )
    seconds = time.monotonic() - started
    split = next((each["split"] for each in messages[::-1] if "split" in each), "train")
    _log.warning(
        "upload_child_died",
        split=split,
        status=status,
        seconds=seconds,
        error=last.get("error"),
    )
    cause = _cause(status, seconds, limits=request.limits)
    raise DatasetInvalidError(DataError(cause, split=split))


def _exchange(child: subprocess.Popen[bytes], lines: bytes) -> bytes:
    """Send the request, and return the child's output until it ends."""
    if child.stdin is None or child.stdout is None:
        raise OSError("the child has no pipes")
    try:
        child.stdin.write(lines)
        child.stdin.close()
    except BrokenPipeError:
        return b""
    output = child.stdout.read(_MOST_ANSWER_BYTES)
    if len(output) < _MOST_ANSWER_BYTES:
        child.wait()
    return output


def _parse(output: bytes) -> list[dict[str, Any]]:
    """Parse the messages of a child; the last one is incomplete if the child was killed."""
    messages = []
    for line in output.splitlines():
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
    reason = _DEATHS.get(death) if death is not None else None
    if reason is not None:
        return f"the file {reason}"
    return "the file cannot be parsed: its reader crashed; the file may be damaged or malicious"
