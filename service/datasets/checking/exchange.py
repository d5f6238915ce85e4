"""What the gateway and the parsing child tell each other: plain data, no parser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

ENDINGS = (".jsonl", ".csv", ".tsv", ".parquet")
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
class Limits:
    """What one upload may cost.

    Attributes:
        max_bytes: of all splits as they lie in memory, decompressed.
        max_rows: of all splits.
        max_columns: of each split; entries of nested columns count.
        seconds: from start to end, and of processor time.
        memory: the child's address space, of which Python and pyarrow take 0.3 GiB.
    """

    max_bytes: int = 4 * _GIB
    max_rows: int = 20_000_000
    max_columns: int = 1000
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
        """Give plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` gave."""
        files = {split: (path, ending) for split, (path, ending) in document["files"].items()}
        return cls(**{**document, "files": files, "limits": Limits(**document["limits"])})


class Refusal(Exception):  # noqa: N818 - an outcome that is told, like any other
    """A file that cannot be used.

    Args:
        reason: what is wrong and what is allowed; at most a short value of the data in it.
        row: from 1, header and blank lines not counted; None for the whole file.
        column: the offending column.
        split: filled in by whoever knows it.
    """

    def __init__(
        self,
        reason: str,
        *,
        row: int | None = None,
        column: str | None = None,
        split: str | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.row = row
        self.column = column
        self.split = split


def parquet_name(split: str) -> str:
    """Name the file that the child writes of a split."""
    return f"{split}.parquet"


def quoted(value: object) -> str:
    """Quote a value of the data: printable, and short."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
