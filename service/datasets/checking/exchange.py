"""The messages between the gateway and the parsing child; this module imports no parser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hifi.data.formats.limits import ReadLimits

# The child's exit status when it is out of memory; Python itself exits with 0 to 2.
OUT_OF_MEMORY = 86


@dataclass(frozen=True, kw_only=True)
class UploadedFile:
    """A received file.

    Attributes:
        path: of the file on this machine.
        filename: from the sender; its ending selects the reader, the rest is only shown.
    """

    path: Path
    filename: str

    @property
    def name(self) -> str:
        """The file's name without the folders of the sender's machine."""
        return self.filename.replace("\\", "/").rpartition("/")[2]

    @property
    def ending(self) -> str:
        """The ending in lower case; empty if there is none."""
        _, dot, ending = self.name.rpartition(".")
        return f"{dot}{ending}".lower()


@dataclass(frozen=True, kw_only=True)
class Limits(ReadLimits):
    """The limits of one upload.

    Attributes:
        seconds: of wall-clock time, and of processor time.
        memory: of the child's own memory in bytes; Python and pyarrow take 50 MiB of it.
    """

    seconds: float
    memory: int


def needs_memory(limits: Limits) -> str:
    """Return what is wrong with a file that exceeds the memory limit."""
    return (
        f"needs more than {limits.memory} bytes of memory to read, the most allowed: one "
        "of its rows or pages is huge"
    )


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request to the child.

    Attributes:
        files: path and ending of each split's file.
        folder: for the Parquet files.
        parent: process id of the gateway; the child ends with it.
    """

    files: Mapping[str, Sequence[str]]
    folder: str
    limits: Limits
    parent: int


def parquet_name(split: str) -> str:
    """Return the name of a split's Parquet file."""
    return f"{split}.parquet"
