"""The messages between the gateway and the parsing child; this module imports no parser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hifi.data.formats.limits import ReadLimits

SPLITS = ("train", "validation", "test")
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class UploadedFile:
    """A received file.

    Attributes:
        path: of the file on this machine.
        filename: from the sender; only the ending is used.
    """

    path: Path
    filename: str

    @property
    def ending(self) -> str:
        """The ending in lower case; empty if there is none."""
        name = self.filename.replace("\\", "/").rpartition("/")[2]
        _, dot, ending = name.rpartition(".")
        return f"{dot}{ending}".lower()


@dataclass(frozen=True, kw_only=True)
class Limits(ReadLimits):
    """The limits of one upload.

    Attributes:
        seconds: of wall-clock time, and of processor time.
        memory: the child's address space in bytes; Python and pyarrow take 0.3 GiB of it.
    """

    seconds: float = 600.0
    memory: int = 3 * _GIB // 2


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
