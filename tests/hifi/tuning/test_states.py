"""hifi.tuning.states: states come back bit for bit from memory and from disk, or not at all."""

from __future__ import annotations

import errno
import logging
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hifi.errors import InvalidArgumentError
from hifi.tuning import states
from hifi.tuning.states import StatePlaces, StateStore

DTYPES = (torch.float32, torch.bfloat16)


def drawn(tokens: int = 3, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, 4, generator=generator).to(dtype)


def open_files() -> list[str]:
    found = []
    for each in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # of the listing itself
            found.append(str(each.readlink()))
    return found


class TestStore:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("memory", [0, 30, 1 << 20])
    def test_returns_what_was_put_wherever_it_is(self, memory: int, dtype, tmp_path: Path):
        places = StatePlaces(memory_bytes=memory, disk_bytes=1 << 20, folder=tmp_path)
        store = StateStore(places)
        put = {key: drawn(1 + key, seed=key, dtype=dtype) for key in range(5)}
        for key, value in put.items():
            store.put(key, value)
        for key in (3, 0, 4, 1, 2, 3):
            found = store.get(key)
            assert found is not None
            assert found.dtype == dtype
            assert torch.equal(found, put[key])
        store.close()

    def test_does_not_know_other_keys(self):
        store = StateStore(StatePlaces(memory_bytes=1000))
        store.put(("train", 1), drawn())
        assert store.get(("validation", 1)) is None

    def test_memory_comes_first_and_its_bytes_are_a_limit(self, tmp_path: Path):
        one = drawn().nbytes
        store = StateStore(StatePlaces(memory_bytes=2 * one + 1, disk_bytes=0, folder=tmp_path))
        for key in range(4):
            store.put(key, drawn(seed=key))
        assert [store.get(key) is not None for key in range(4)] == [True, True, False, False]

    def test_the_bytes_on_disk_are_a_limit(self, tmp_path: Path):
        one = drawn().nbytes
        store = StateStore(StatePlaces(memory_bytes=0, disk_bytes=2 * one, folder=tmp_path))
        for key in range(4):
            store.put(key, drawn(seed=key))
        assert [store.get(key) is not None for key in range(4)] == [True, True, False, False]
        store.close()

    def test_a_key_is_kept_once(self, tmp_path: Path):
        one = drawn().nbytes
        for places in (
            StatePlaces(memory_bytes=2 * one, disk_bytes=0),
            StatePlaces(memory_bytes=0, disk_bytes=2 * one, folder=tmp_path),
        ):
            store = StateStore(places)
            for key in (1, 1, 1, 2):
                store.put(key, drawn(seed=key))
            assert torch.equal(store.get(2), drawn(seed=2))
            store.close()

    def test_without_a_number_uses_an_eighth_of_the_memory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(states, "usable_memory", lambda: 8 * drawn().nbytes)
        store = StateStore(StatePlaces(disk_bytes=0, folder=tmp_path))
        for key in range(2):
            store.put(key, drawn(seed=key))
        assert [store.get(key) is not None for key in range(2)] == [True, False]

    def test_without_a_number_uses_no_more_of_a_large_machine(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(states, "usable_memory", lambda: 64 << 30)
        monkeypatch.setattr(states, "_MOST_MEMORY", drawn().nbytes)
        store = StateStore(StatePlaces(disk_bytes=0, folder=tmp_path))
        for key in range(2):
            store.put(key, drawn(seed=key))
        assert [store.get(key) is not None for key in range(2)] == [True, False]


class TestSharedDisk:
    @pytest.mark.parametrize("most", [None, 1 << 20])
    @pytest.mark.parametrize(("runs", "left"), [(1, 1), (2, 1), (4, 1), (1, 40), (4, 40)])
    def test_as_much_stays_free_as_each_run_takes_and_some_for_all(
        self,
        runs: int,
        left: int,
        most: int | None,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ):
        one, room = drawn().nbytes, 60
        monkeypatch.setattr(states, "_LEFT_FREE", left * one)
        places = StatePlaces(memory_bytes=0, disk_bytes=most, folder=tmp_path)
        stores = [StateStore(places) for _ in range(runs)]

        def measure(_: object) -> SimpleNamespace:
            used = sum(len(store._on_disk) for store in stores)
            return SimpleNamespace(free=(room - used) * one)

        monkeypatch.setattr(states.shutil, "disk_usage", measure)
        for key in range(room):
            for store in stores:
                store.put(key, drawn(seed=key))
        assert {len(store._on_disk) for store in stores} == {
            min(room // (runs + 1), (room - left) // runs)
        }
        for store in stores:
            store.close()

    def test_a_run_stops_when_something_else_fills_the_disk(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ):
        store = StateStore(StatePlaces(memory_bytes=0, folder=tmp_path))
        store.put(1, drawn(seed=1))
        free = SimpleNamespace(free=drawn().nbytes)
        monkeypatch.setattr(states.shutil, "disk_usage", lambda _: free)
        store.put(2, drawn(seed=2))
        assert torch.equal(store.get(1), drawn(seed=1))
        assert store.get(2) is None
        assert "No space left on device" in caplog.text
        store.close()


class TestFile:
    def test_has_no_name_and_is_closed(self, tmp_path: Path):
        store = StateStore(StatePlaces(memory_bytes=0, folder=tmp_path))
        store.put(1, drawn())
        assert list(tmp_path.iterdir()) == []
        assert any(str(tmp_path) in name for name in open_files())
        store.close()
        assert not any(str(tmp_path) in name for name in open_files())
        assert store.get(1) is None

    def test_is_not_opened_while_memory_suffices(self, tmp_path: Path):
        store = StateStore(StatePlaces(memory_bytes=1000, folder=tmp_path))
        store.put(1, drawn())
        assert not any(str(tmp_path) in name for name in open_files())

    @pytest.mark.parametrize("is_missing", [True, False])
    def test_a_folder_that_cannot_be_used_is_said_once(
        self, is_missing: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ):
        folder = tmp_path / "folder"
        if not is_missing:
            folder.write_text("a file")
        store = StateStore(StatePlaces(memory_bytes=0, folder=folder))
        with caplog.at_level(logging.WARNING):
            store.put(1, drawn())
            store.put(2, drawn())
        assert store.get(1) is store.get(2) is None
        (record,) = caplog.records
        assert "no room to keep the hidden states" in record.getMessage()

    def test_a_disk_that_fills_up_keeps_what_it_has(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ):
        store = StateStore(StatePlaces(memory_bytes=0, folder=tmp_path))
        store.put(1, drawn(seed=1))

        def fail(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(store._file, "append", fail)
        store.put(2, drawn(seed=2))
        assert torch.equal(store.get(1), drawn(seed=1))
        assert store.get(2) is None
        assert "No space left on device" in caplog.text
        store.close()

    def test_what_cannot_be_read_back_is_computed_again(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ):
        store = StateStore(StatePlaces(memory_bytes=0, folder=tmp_path))
        store.put(1, drawn())
        store.put(2, drawn())
        store._file._file.truncate(drawn().nbytes)
        assert store.get(1) is not None
        assert store.get(2) is None
        assert "cannot be read back" in caplog.text
        store.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [("memory_bytes", -1), ("memory_bytes", 1.5), ("disk_bytes", -1), ("folder", 7)],
)
def test_places_that_cannot_be_are_refused(name: str, value: object):
    with pytest.raises(InvalidArgumentError, match=name):
        StatePlaces(**{name: value})
