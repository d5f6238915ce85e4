"""Convert uploaded files to checked Parquet, in a child process that malicious files may crash."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from hifi.data.formats import ENDINGS
from hifi.data.inference import check_certain_task
from hifi.data.profile import DatasetProfile
from hifi.data.spec import SPLITS
from hifi.errors import DataError, quoted
from service.datasets.checking.errors import DatasetInvalidError, UploadTooSlowError
from service.datasets.checking.exchange import (
    OUT_OF_MEMORY,
    Limits,
    Request,
    UploadedFile,
    needs_memory,
    parquet_name,
)
from store.errors import ArtifactStorageError

if TYPE_CHECKING:
    from asyncio.subprocess import Process

_ROOT = Path(__file__).parents[3]  # the folder of our packages
# A profile of the most columns takes 2 MB; the gateway holds and parses the answer in memory.
_MOST_ANSWER_BYTES = 8 << 20
_ENVIRONMENT = {
    # The gateway's environment is not inherited: it contains keys. One arena and one thread keep
    # the child small.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONPATH": str(_ROOT),
}
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


async def convert(
    files: Mapping[str, UploadedFile], *, folder: Path, limits: Limits
) -> ConvertedDataset:
    """Check uploaded files row by row and write them as Parquet.

    The parsers run in a child process with limits on memory, time and written bytes. A file that
    kills it is refused like any other invalid file. A cancelled caller ends the child.

    Args:
        files: by split, with absolute paths: ``train``, and optionally ``validation`` and ``test``.
        folder: an absolute path, for the Parquet files; the caller removes it.
        limits: of the child process.

    Returns:
        The Parquet files and their profile.

    Raises:
        DatasetInvalidError: a file cannot be used; it names split, row and column.
        UploadTooSlowError: reading the files takes too long.
        ArtifactStorageError: the disk has no room for the unpacked files.
        OSError: the child process cannot be started.
    """
    for split, file in files.items():
        if file.ending not in ENDINGS:
            known = ", ".join(ENDINGS)
            reason = f"the file's name {quoted(file.name)} must end in one of {known}"
            raise DatasetInvalidError(DataError(reason, split=split))
    request = Request(
        files={
            split: (str(files[split].path), files[split].ending)
            for split in SPLITS
            if split in files
        },
        folder=str(folder),
        limits=limits,
        parent=os.getpid(),
    )
    profile = await _run_child(request)
    try:
        check_certain_task(profile)
    except DataError as error:
        raise DatasetInvalidError(error) from error
    paths = {split: folder / parquet_name(split) for split in request.files}
    return ConvertedDataset(paths=paths, profile=profile)


async def _run_child(request: Request) -> DatasetProfile:
    """Run the child, and return the profile that it sends last.

    Raises:
        DatasetInvalidError: the child refuses the data, or was killed by it.
        UploadTooSlowError: it takes too long.
        ArtifactStorageError: the child cannot write its files.
    """
    started = time.monotonic()
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "service.datasets.checking"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,  # parsers quote data
        cwd=request.folder,
        env={**_ENVIRONMENT, "PATH": os.environ.get("PATH", "")},
    )
    alarm = asyncio.get_running_loop().call_later(request.limits.seconds, _kill, child)
    try:
        output = await _exchange(child, json.dumps(asdict(request)).encode())
        status = child.returncode
    finally:  # also of a cancelled caller
        alarm.cancel()
        await _bury(child)
    messages = _parse(output) if len(output) < _MOST_ANSWER_BYTES else []
    last = messages[-1] if messages else {}
    if last.get("kind") == "done":
        return DatasetProfile.from_json(last["profile"])
    if last.get("kind") == "refused":
        place = {name: last[name] for name in ("split", "row", "line", "column")}
        raise DatasetInvalidError(DataError(last["reason"], **place))
    if last.get("kind") == "failed":
        raise ArtifactStorageError(
            f"the upload cannot be unpacked here: {os.strerror(last['errno'] or errno.EIO)}"
        )
    split = next((each["split"] for each in messages[::-1] if "split" in each), "train")
    seconds = time.monotonic() - started
    _log.warning(
        "upload_child_died", split=split, status=status, seconds=seconds, error=last.get("error")
    )
    if seconds >= request.limits.seconds or status == -signal.SIGXCPU:
        raise UploadTooSlowError(split, seconds=request.limits.seconds)
    reason = _cause_of_death(status, limits=request.limits)
    raise DatasetInvalidError(DataError(f"the file {reason}", split=split))


def _kill(child: Process) -> None:
    with suppress(ProcessLookupError):  # it has ended
        child.kill()


async def _exchange(child: Process, request: bytes) -> bytes:
    """Send the request, and return the child's output until it ends."""
    if child.stdin is None or child.stdout is None:
        raise OSError("the child has no pipes")
    with suppress(ConnectionError):  # it died at once: its status has the cause
        child.stdin.write(request)
        await child.stdin.drain()
    child.stdin.close()
    try:
        return await child.stdout.readexactly(_MOST_ANSWER_BYTES)
    except asyncio.IncompleteReadError as end:
        await child.wait()
        return end.partial


async def _bury(child: Process) -> None:
    """Kill the child if it is alive, and read what is left in its pipe, which closes it."""
    _kill(child)
    while child.stdout is not None and await child.stdout.read(_MOST_ANSWER_BYTES):
        pass
    await child.wait()


def _cause_of_death(status: int | None, *, limits: Limits) -> str:
    """Return why a file killed its reader.

    Args:
        status: the child's exit status; None if it was killed because it wrote too much.
        limits: of the child.
    """
    if status in (OUT_OF_MEMORY, -signal.SIGKILL):
        return needs_memory(limits)
    if status == -signal.SIGXFSZ:
        return "is too large when unpacked"
    return "cannot be parsed: its reader crashed; the file may be damaged or malicious"


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
