"""Reproducible tar files: equal folders give equal bytes."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

_CHUNK = 1 << 20
_MODE = 0o644


def stream_tar(folder: Path) -> Iterator[bytes]:
    """Yield the tar of a folder's files in chunks.

    The files are sorted by name. Names are relative to the folder, with subfolders in them; folders
    have no entries of their own. No times, owners or permissions of this machine are included:
    mtime, uid and gid are 0, the mode is 0644. The format is POSIX (PAX), with extra records only
    for what plain USTAR cannot represent: long or non-ASCII names, files of 8 GiB and more.

    Args:
        folder: must not change meanwhile.

    Yields:
        Chunks of at most one mebibyte.

    Raises:
        OSError: a file cannot be read, or has changed in size.
    """
    for path, header in _entries(folder):
        yield header
        yield from _content(path)
    yield bytes(_padding(_size_of_entries(folder)))


def tar_size(folder: Path) -> int:
    """Return the length of a folder's tar in bytes."""
    size = _size_of_entries(folder)
    return size + _padding(size)


def write_tar(folder: Path, file: Path) -> None:
    """Write the tar of a folder's files, as :func:`stream_tar` does; replace an existing file.

    Raises:
        OSError: a file cannot be read or written.
    """
    with file.open("wb") as opened:
        for piece in stream_tar(folder):
            opened.write(piece)


def _entries(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Iterate over the files in order, each with its header."""
    named = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    for name in sorted(named):
        path = named[name]
        if path.is_file():
            yield path, _header(name, size=path.stat().st_size)


def _header(name: str, *, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, _MODE
    return info.tobuf(format=tarfile.PAX_FORMAT, encoding="utf-8")


def _content(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes, and zeros that fill its last block."""
    left = path.stat().st_size
    fill = bytes(-left % tarfile.BLOCKSIZE)
    with path.open("rb") as file:
        while piece := file.read(min(left, _CHUNK)):
            left -= len(piece)
            yield piece
        if left or file.read(1):
            raise OSError(f"{path.name} changed in size while it was being packed")
    yield fill


def _size_of_entries(folder: Path) -> int:
    return sum(
        len(header) + _whole_blocks(path.stat().st_size) for path, header in _entries(folder)
    )


def _whole_blocks(size: int) -> int:
    return size + -size % tarfile.BLOCKSIZE


def _padding(size: int) -> int:
    """Return the number of zeros at the end: two blocks, and as many as fill a record."""
    end = size + 2 * tarfile.BLOCKSIZE
    return end + -end % tarfile.RECORDSIZE - size
