"""Files to upload, and helpers to convert them in this process."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hifi.data.profile import DatasetProfile
from hifi.data.spec import SPLITS
from hifi.errors import DataError
from service.datasets.checking.exchange import Limits, Request, parquet_name
from service.datasets.checking.work import convert_all

LIMITS = Limits(max_bytes=1 << 28, max_rows=1_000_000, seconds=60, memory=1 << 30)


@dataclass(frozen=True, kw_only=True)
class Converted:
    """The child's final result.

    Attributes:
        paths: Parquet files by split.
    """

    paths: Mapping[str, Path]
    rows: Mapping[str, int]
    columns: Mapping[str, str]
    profile: DatasetProfile


def write(path: Path, content: str | bytes) -> Path:
    """Write a file."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def jsonl(path: Path, rows: Sequence[Any]) -> Path:
    """Write JSON lines."""
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def json_list(path: Path, rows: Sequence[Any]) -> Path:
    """Write a list of JSON, with a line for each entry after the first line."""
    return write(path, "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


def convert_here(folder: Path, *, limits: Limits = LIMITS, **files: Path) -> Converted:
    """Convert files in this process, as the child process does."""
    request = Request(
        files={
            split: (str(files[split]), files[split].suffix) for split in SPLITS if split in files
        },
        folder=str(folder),
        limits=limits,
        parent=os.getpid(),
    )
    sent = json.dumps(convert_all(request, send=lambda _: None).to_json())
    profile = DatasetProfile.from_json(json.loads(sent))
    return Converted(
        paths={split: folder / parquet_name(split) for split in profile.rows},
        rows=profile.rows,
        columns={column.name: column.type for column in profile.columns},
        profile=profile,
    )


def refusal_of(folder: Path, *, limits: Limits = LIMITS, **files: Path) -> DataError:
    """Convert unusable files; return the error."""
    with pytest.raises(DataError) as caught:
        convert_here(folder, limits=limits, **files)
    return caught.value
