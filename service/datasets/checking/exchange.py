"""What the gateway and the parsing child tell each other: plain data, no parser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from hifi.data.formats.limits import ReadLimits

SPLITS = ("train", "validation", "test")
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class UploadedFile:
    """A file as it arrived.

    Attributes:
        path: where its bytes lie now.
        filename: as its sender named it; only the ending is looked at.
    """

    path: Path
    filename: str

    @property
    def ending(self) -> str:
        """The ending, in small letters; empty where there is none."""
        name = self.filename.replace("\\", "/").rpartition("/")[2]
        _, dot, ending = name.rpartition(".")
        return f"{dot}{ending}".lower()


@dataclass(frozen=True, kw_only=True)
class Limits(ReadLimits):
    """What one upload may cost.

    Attributes:
        seconds: from start to end, and of processor time.
        memory: the child's address space, of which Python and pyarrow take 0.3 GiB.
    """

    seconds: float = 600.0
    memory: int = 3 * _GIB // 2


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the child is asked to do.

    Attributes:
        files: path and ending of each split's file.
        folder: where the Parquet files go.
        parent: process id of the gateway; the child ends when it does.
    """

    files: Mapping[str, tuple[str, str]]
    folder: str
    limits: Limits
    parent: int

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` gave."""
        files = {split: (path, ending) for split, (path, ending) in document["files"].items()}
        return cls(**{**document, "files": files, "limits": Limits(**document["limits"])})


def parquet_name(split: str) -> str:
    """Name the file that the child writes of a split."""
    return f"{split}.parquet"
