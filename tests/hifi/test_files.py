"""hifi.files: nothing half-written ever carries the final name."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hifi.errors import DataError, StorageError
from hifi.files import TEMPORARY_PREFIX, write_atomically, write_directory_atomically

Writer = Callable[[Path], AbstractContextManager[Path]]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Make writes fail for real, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fail_halfway(path: Path, error: type[BaseException]) -> None:
    path.write_text("half")
    raise error


def fill(folder: Path) -> None:
    folder.mkdir()
    (folder / "precious").touch()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refuse_to_sync(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make fsync fail for one folder."""
    inode, sync = folder.stat().st_ino, os.fsync

    def fail(descriptor: int) -> None:
        if os.fstat(descriptor).st_ino == inode:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)


class TestWriteAtomically:
    def test_puts_the_content_under_the_final_name_and_leaves_nothing_else(self, tmp_path: Path):
        with write_atomically(tmp_path / "a.txt") as temporary:
            temporary.write_text("content")
        assert (tmp_path / "a.txt").read_text() == "content"
        assert names_in(tmp_path) == ["a.txt"]

    def test_takes_a_name_as_text_relative_to_the_working_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.chdir(tmp_path)
        with write_atomically("a.txt") as temporary:
            temporary.write_text("content")
        assert (tmp_path / "a.txt").read_text() == "content"

    def test_replaces_an_existing_file_only_at_the_end(self, tmp_path: Path):
        path = tmp_path / "a.txt"
        path.write_text("old")
        with write_atomically(path) as temporary:
            temporary.write_text("new")
            assert path.read_text() == "old"
            assert temporary.parent == tmp_path
        assert path.read_text() == "new"

    def test_a_new_name_stays_free_while_the_file_is_written(self, tmp_path: Path):
        with write_atomically(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            assert not (tmp_path / "a.txt").exists()

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
    def test_a_failure_keeps_the_old_file_and_removes_the_temporary_one(
        self, tmp_path: Path, error: type[BaseException]
    ):
        path = tmp_path / "a.txt"
        path.write_text("old")
        with pytest.raises(error), write_atomically(path) as temporary:
            fail_halfway(temporary, error)
        assert path.read_text() == "old"
        assert names_in(tmp_path) == ["a.txt"]

    def test_a_full_disk_is_named_and_leaves_nothing(self, tmp_path: Path):
        with (
            pytest.raises(StorageError, match=r"cannot write .*a\.bin: File too large") as caught,
            file_size_limit(4096),
            write_atomically(tmp_path / "a.bin") as temporary,
        ):
            temporary.write_bytes(bytes(10_000))
        assert caught.value.errno == errno.EFBIG
        assert isinstance(caught.value, OSError)
        assert names_in(tmp_path) == []

    def test_content_that_the_disk_refuses_at_last_does_not_take_the_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        def fail(_: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        path = tmp_path / "a.txt"
        path.write_text("old")
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(StorageError, match="Input/output error"), write_atomically(path) as new:
            new.write_text("new")
        assert path.read_text() == "old"
        assert names_in(tmp_path) == ["a.txt"]

    def test_an_error_of_safetensors_becomes_a_storage_error(self, tmp_path: Path):
        with (
            pytest.raises(StorageError, match=r"a\.safetensors.*"),
            write_atomically(tmp_path / "a.safetensors") as temporary,
        ):
            save_file({"a": torch.zeros(2)}, temporary / "no" / "such")
        assert names_in(tmp_path) == []

    def test_errors_of_our_own_pass_unchanged(self, tmp_path: Path):
        with (
            pytest.raises(DataError, match="empty"),
            write_atomically(tmp_path / "a.txt"),
        ):
            raise DataError("empty", split="train")

    def test_refuses_a_missing_folder(self, tmp_path: Path):
        path = tmp_path / "missing" / "a.txt"
        with (
            pytest.raises(StorageError, match=r"missing/a\.txt: No such file or directory"),
            write_atomically(path),
        ):
            pytest.fail("nothing can be written there")

    def test_refuses_a_folder_under_a_file(self, tmp_path: Path):
        (tmp_path / "file").touch()
        with (
            pytest.raises(StorageError, match="Not a directory"),
            write_atomically(tmp_path / "file" / "a.txt"),
        ):
            pytest.fail("nothing can be written there")

    def test_refuses_a_directory(self, tmp_path: Path):
        with (
            pytest.raises(StorageError, match="Is a directory"),
            write_atomically(tmp_path),
        ):
            pytest.fail("a file cannot take a folder's name")

    def test_refuses_a_pipe_before_anything_is_written(self, tmp_path: Path):
        os.mkfifo(tmp_path / "pipe")
        with (
            pytest.raises(StorageError, match="not a regular file"),
            write_atomically(tmp_path / "pipe"),
        ):
            pytest.fail("a pipe must not be replaced")
        assert stat.S_ISFIFO((tmp_path / "pipe").lstat().st_mode)

    def test_replaces_a_symbolic_link_and_not_what_it_points_to(self, tmp_path: Path):
        (tmp_path / "target").write_text("old")
        (tmp_path / "link").symlink_to("target")
        with write_atomically(tmp_path / "link") as temporary:
            temporary.write_text("new")
        assert (tmp_path / "target").read_text() == "old"
        assert not (tmp_path / "link").is_symlink()

    def test_new_files_get_the_permissions_that_the_umask_leaves(self, tmp_path: Path):
        before = os.umask(0o027)
        try:
            with write_atomically(tmp_path / "a.txt") as temporary:
                temporary.write_text("content")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640

    def test_a_name_of_the_greatest_length_can_be_written(self, tmp_path: Path):
        with write_atomically(tmp_path / ("n" * 255)) as temporary:
            temporary.write_text("content")
        assert names_in(tmp_path) == ["n" * 255]

    @pytest.mark.process
    def test_a_process_that_is_killed_leaves_the_final_name_alone(self, tmp_path: Path):
        path = tmp_path / "a.txt"
        path.write_text("old")
        program = (
            "import os, signal, sys\n"
            "from hifi.files import write_atomically\n"
            "with write_atomically(sys.argv[1]) as temporary:\n"
            "    temporary.write_text('half')\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
        assert done.returncode == -signal.SIGKILL
        assert path.read_text() == "old"
        left = [name for name in names_in(tmp_path) if name != "a.txt"]
        assert len(left) == 1
        assert left[0].startswith(TEMPORARY_PREFIX)

    def test_a_failed_folder_sync_does_not_fail_the_write(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        refuse_to_sync(tmp_path, monkeypatch)
        with (
            pytest.raises(StorageError, match=r"a\.txt is complete, but .*Input/output") as caught,
            write_atomically(tmp_path / "a.txt") as temporary,
        ):
            temporary.write_text("new")
        assert caught.value.errno == errno.EIO
        assert "cannot write" not in str(caught.value)
        assert (tmp_path / "a.txt").read_text() == "new"


@pytest.mark.parametrize("write", [write_atomically, write_directory_atomically])
class TestErrorsOfTheCallersBlock:
    def test_another_file_keeps_its_own_error(self, tmp_path: Path, write: Writer):
        with pytest.raises(FileNotFoundError) as caught, write(tmp_path / "out"):
            (tmp_path / "input").read_text()
        assert not isinstance(caught.value, StorageError)
        assert caught.value.filename == str(tmp_path / "input")
        assert names_in(tmp_path) == []

    def test_a_copy_of_a_missing_file_keeps_its_own_error(self, tmp_path: Path, write: Writer):
        with pytest.raises(FileNotFoundError) as caught, write(tmp_path / "out") as temporary:
            shutil.copy(tmp_path / "input", temporary)
        assert not isinstance(caught.value, StorageError)

    def test_a_broken_connection_keeps_its_own_error(self, tmp_path: Path, write: Writer):
        with pytest.raises(ConnectionResetError), write(tmp_path / "out"):
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))

    def test_a_safetensors_file_that_is_read_keeps_its_own_error(
        self, tmp_path: Path, write: Writer
    ):
        (tmp_path / "input").write_bytes(bytes(16))
        with pytest.raises(SafetensorError), write(tmp_path / "out"):
            load_file(tmp_path / "input")

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
    def test_a_full_disk_is_ours(self, tmp_path: Path, write: Writer, number: int):
        with (
            pytest.raises(StorageError, match=r"cannot write .*out") as caught,
            write(tmp_path / "out"),
        ):
            raise OSError(number, os.strerror(number))
        assert caught.value.errno == number

    def test_a_path_of_ours_is_ours(self, tmp_path: Path, write: Writer):
        with (
            pytest.raises(StorageError, match=r"cannot write .*out"),
            write(tmp_path / "out") as new,
        ):
            (new / "no" / "such").write_text("")

    def test_a_full_disk_that_safetensors_meets_keeps_its_number(
        self, tmp_path: Path, write: Writer
    ):
        with (
            pytest.raises(StorageError, match=r"cannot write .*out") as caught,
            file_size_limit(4096),
            write(tmp_path / "out") as new,
        ):
            save_file({"a": torch.zeros(10_000)}, new / "a" if new.is_dir() else new)
        assert caught.value.errno == errno.EFBIG


class TestWriteDirectoryAtomically:
    def test_puts_the_folder_under_the_final_name_and_leaves_nothing_else(self, tmp_path: Path):
        with write_directory_atomically(tmp_path / "out") as temporary:
            (temporary / "inner").mkdir()
            (temporary / "inner" / "a.txt").write_text("content")
            assert not (tmp_path / "out").exists()
        assert (tmp_path / "out" / "inner" / "a.txt").read_text() == "content"
        assert names_in(tmp_path) == ["out"]

    def test_takes_the_place_of_an_empty_folder(self, tmp_path: Path):
        (tmp_path / "out").mkdir()
        with write_directory_atomically(tmp_path / "out") as temporary:
            (temporary / "a.txt").touch()
        assert names_in(tmp_path / "out") == ["a.txt"]

    def test_refuses_a_filled_folder_before_anything_is_written(self, tmp_path: Path):
        fill(tmp_path / "out")
        with (
            pytest.raises(StorageError, match=r"out: the folder exists and is not empty"),
            write_directory_atomically(tmp_path / "out"),
        ):
            pytest.fail("a filled folder must not be written over")
        assert names_in(tmp_path / "out") == ["precious"]

    def test_refuses_a_folder_that_was_filled_in_the_meantime(self, tmp_path: Path):
        with (
            pytest.raises(StorageError, match="not empty"),
            write_directory_atomically(tmp_path / "out"),
        ):
            fill(tmp_path / "out")
        assert names_in(tmp_path) == ["out"]
        assert names_in(tmp_path / "out") == ["precious"]

    def test_refuses_a_file(self, tmp_path: Path):
        (tmp_path / "out").touch()
        with (
            pytest.raises(StorageError, match="a file of that name exists"),
            write_directory_atomically(tmp_path / "out"),
        ):
            pytest.fail("a file must not be replaced")

    def test_refuses_a_missing_parent(self, tmp_path: Path):
        with (
            pytest.raises(StorageError, match="No such file or directory"),
            write_directory_atomically(tmp_path / "missing" / "out"),
        ):
            pytest.fail("nothing can be written there")

    def test_syncs_every_file_and_folder_before_it_takes_the_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        synced: list[tuple[int, bool]] = []

        def record(descriptor: int) -> None:
            synced.append((os.fstat(descriptor).st_ino, (tmp_path / "out").exists()))

        monkeypatch.setattr(os, "fsync", record)
        with write_directory_atomically(tmp_path / "out") as inside:
            (inside / "inner").mkdir()
            (inside / "inner" / "a.txt").touch()
        out = tmp_path / "out"
        below = {(path.stat().st_ino, False) for path in (out, *out.rglob("*"))}
        assert len(below) == 3
        assert set(synced[:-1]) == below
        assert synced[-1] == (tmp_path.stat().st_ino, True)

    def test_a_failed_parent_sync_does_not_fail_the_write(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        refuse_to_sync(tmp_path, monkeypatch)
        with (
            pytest.raises(StorageError, match="out is complete, but"),
            write_directory_atomically(tmp_path / "out") as temporary,
        ):
            (temporary / "a.txt").touch()
        assert names_in(tmp_path / "out") == ["a.txt"]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_a_failure_leaves_nothing(self, tmp_path: Path, error: type[BaseException]):
        with pytest.raises(error), write_directory_atomically(tmp_path / "out") as temporary:
            fail_halfway(temporary / "a.txt", error)
        assert names_in(tmp_path) == []

    def test_a_full_disk_is_named_and_leaves_nothing(self, tmp_path: Path):
        with (
            pytest.raises(StorageError, match="out"),
            file_size_limit(4096),
            write_directory_atomically(tmp_path / "out") as temporary,
        ):
            save_file({"a": torch.zeros(10_000)}, temporary / "a.safetensors")
        assert names_in(tmp_path) == []
