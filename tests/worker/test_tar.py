"""worker.tar: equal folders, equal bytes, and every tar reads them."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from worker.tar import stream_tar, tar_size, write_tar

LONG = "x" * 120 + ".json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "empty").mkdir()
    contents = {
        "config.json": b"{}",
        "model.safetensors": os.urandom(3 * (1 << 20) + 17),
        "nothing": b"",
        "block": b"b" * 512,
        "deep/er/one": b"1",
        "deep/two": b"2",
        "größe.txt": b"3",
        LONG: b"4",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def packed(folder: Path) -> bytes:
    return b"".join(stream_tar(folder))


class TestStreamTar:
    def test_python_and_tar_read_it(self, folder: Path, tmp_path: Path):
        wanted = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
        with tarfile.open(fileobj=io.BytesIO(packed(folder))) as archive:
            assert archive.getnames() == sorted(wanted)
            archive.extractall(tmp_path / "out", filter="data")
        for name, path in wanted.items():
            assert (tmp_path / "out" / name).read_bytes() == path.read_bytes()
        write_tar(folder, tmp_path / "file.tar")
        shutil.unpack_archive(tmp_path / "file.tar", tmp_path / "again", filter="data")
        assert (tmp_path / "again" / "deep" / "two").read_bytes() == b"2"

    def test_contains_nothing_about_the_machine(self, folder: Path):
        with tarfile.open(fileobj=io.BytesIO(packed(folder))) as archive:
            for member in archive:
                assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
                assert (member.uname, member.gname, member.mode) == ("", "", 0o644)
                assert not {"mtime", "atime", "ctime"} & member.pax_headers.keys()
                assert member.isreg()

    def test_neither_times_nor_modes_nor_the_order_of_writing_count(
        self, folder: Path, tmp_path: Path
    ):
        twin = tmp_path / "twin"
        for path in sorted((p for p in folder.rglob("*") if p.is_file()), reverse=True):
            copy = twin / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
            copy.chmod(0o600)
            os.utime(copy, (1, 1))
        assert packed(twin) == packed(folder)

    def test_is_not_padded_differently_from_other_tars(self, tmp_path: Path):
        (tmp_path / "a").write_bytes(b"1")
        assert len(packed(tmp_path)) == tarfile.RECORDSIZE

    def test_an_empty_folder_is_an_empty_tar(self, tmp_path: Path):
        with tarfile.open(fileobj=io.BytesIO(packed(tmp_path))) as archive:
            assert archive.getnames() == []

    def test_the_pieces_are_small(self, folder: Path):
        assert max(map(len, stream_tar(folder))) <= 1 << 20

    @pytest.mark.parametrize("change", [b"", b"longer than it was"])
    def test_a_file_that_changes_meanwhile_is_detected(self, change: bytes, tmp_path: Path):
        file = tmp_path / "a"
        file.write_bytes(b"x" * (2 << 20))
        pieces = stream_tar(tmp_path)
        next(pieces)
        next(pieces)
        file.write_bytes(change if not change else b"x" * (2 << 20) + change)
        with pytest.raises(OSError, match="changed in size"):
            list(pieces)

    def test_a_file_of_more_than_8_gib_is_supported(self, tmp_path: Path):
        with (tmp_path / "big").open("wb") as file:
            file.truncate(9 << 30)  # sparse
        header = next(stream_tar(tmp_path))
        member = tarfile.TarFile.open(fileobj=io.BytesIO(header)).next()
        assert member is not None
        assert member.size == 9 << 30


class TestTarSize:
    def test_is_the_length(self, folder: Path, tmp_path: Path):
        assert tar_size(folder) == len(packed(folder))
        write_tar(folder, tmp_path / "file.tar")
        assert (tmp_path / "file.tar").stat().st_size == tar_size(folder)
