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
from dataclasses import asdict, dataclass
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
_DEATHS: Mapping[int, str] = {
    signal.SIGXCPU: "takes too long to read",
    signal.SIGXFSZ: "is too large when unpacked",
    signal.SIGKILL: "takes too much memory or time to read",
}
_CRASH = "cannot be parsed: its reader crashed; the file may be damaged or malicious"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class ConvertedDataset:
    """A valid upload.

    Attributes:
        paths: the Parquet file of each split.
        profile: of its columns.
    """

    paths: Mapping[str, Path]
    profile: DatasetProfile


def convert(files: Mapping[str, UploadedFile], *, folder: Path, limits: Limits) -> ConvertedDataset:
    """Check uploaded files row by row and write them as Parquet.

    The parsers run in a child process with limits on memory, time and written bytes. A file that
    kills it is refused like any other invalid file.

    Args:
        files: by split: ``train``, and optionally ``validation`` and ``test``.
        folder: empty, for the Parquet files; the caller removes it.
        limits: of the child process.

    Returns:
        The Parquet files and their profile.

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
    profile = _run_child(request)
    try:
        check_certain_task(profile)
    except DataError as error:
        raise DatasetInvalidError(error) from error
    paths = {split: folder / parquet_name(split) for split in request.files}
    return ConvertedDataset(paths=paths, profile=profile)


def _run_child(request: Request) -> DatasetProfile:
    """Run the child, and return the profile that it sends last.

    Raises:
        DatasetInvalidError: the child refuses the data, or was killed by it.
        ArtifactStorageError: the child cannot write its files.
    """
    started = time.monotonic()
    lines = json.dumps(asdict(request)).encode()
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
        return DatasetProfile.from_json(last["profile"])
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
        "upload_child_died", split=split, status=status, seconds=seconds, error=last.get("error")
    )
    most = request.limits.seconds
    cause = _DEATHS.get(-(status or 0), _CRASH)
    if seconds >= most:
        cause = f"takes more than {most:g} seconds to read"
    raise DatasetInvalidError(DataError(f"the file {cause}", split=split))


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
