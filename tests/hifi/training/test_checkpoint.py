"""hifi.training.checkpoint: a checkpoint is restored exactly, or refused with the reason."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hifi.data.run_warnings import RunWarning
from hifi.errors import CheckpointError, StorageError
from hifi.selection.head_selection import HeadSelection
from hifi.tasks.report import report_classes
from hifi.training import checkpoint as module
from hifi.training.checkpoint import (
    Best,
    Checkpoint,
    check_job,
    load_checkpoint,
    remove_checkpoints,
    save_checkpoint,
)
from hifi.training.convergence import LossThirds

SHA = [letter * 64 for letter in "abc"]
JOB = {"model": SHA[0], "train": SHA[1], "epochs": "3"}
SCORES = torch.tensor([[0.1, 1 / 3], [0.2, 1 / 7]], dtype=torch.float64)
SELECTION = replace(HeadSelection.from_scores(SCORES, k=1), xi=0.1 + 0.2)
NAMES = ("bert.layer.0.query.tuned_weight", "classifier.bias")


def tensors(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(3, 2, generator=generator) for name in NAMES}


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def make(step: int = 12, **changes) -> Checkpoint:
    whole = Checkpoint(
        job=JOB,
        selection=SELECTION,
        step=step,
        head_origin="probe",
        parameters=tensors(step),
        optimizer={
            name: {"step": torch.tensor(12.0), "exp_avg": value, "exp_avg_sq": value**2}
            for name, value in tensors(step + 1).items()
        },
        random={"cpu": torch.arange(5056, dtype=torch.uint8)},
        best=Best(
            step=8,
            metrics={"f1": 0.1 + 0.2},
            parameters=tensors(step + 2),
            only_answer="no",
            report=report_classes(
                ("no", "yes"), np.array([0, 1, 1]), np.array([0, 0, 1]), split="validation"
            ),
        ),
        start={"accuracy": 0.25, "loss": 1.5},
        highest=0.75,
        evaluations_without_gain=2,
        event_number=77,
        train_seconds=1.5,
        selection_seconds=0.25,
        samples=384,
        losses=LossThirds().add(1 / 3, step=0, total_steps=9),
        yardsticks={"majority": {"f1": 0.1 + 0.2}, "probe": {"f1": 1 / 3}},
        warnings=(RunWarning(code="probe_failed", message="why", param=None),),
    )
    return replace(whole, **changes)


def load(folder: Path) -> Checkpoint:
    found = load_checkpoint(folder)
    assert found is not None
    return found[1]


def comparable(value: object) -> object:
    if isinstance(value, Tensor):
        return (value.dtype, value.tolist())
    if isinstance(value, Best):
        return {item.name: comparable(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, HeadSelection):
        return value.to_dict()
    if isinstance(value, dict):
        return {name: comparable(entry) for name, entry in value.items()}
    return value


def assert_equal(first: Checkpoint, second: Checkpoint) -> None:
    for item in fields(Checkpoint):
        one, other = getattr(first, item.name), getattr(second, item.name)
        assert comparable(one) == comparable(other), item.name


class TestRoundTrip:
    @pytest.mark.parametrize(
        "checkpoint",
        [make(), make(0, optimizer={}, best=None, random={}), make(10**9)],
        ids=["whole", "before the first step", "after many steps"],
    )
    def test_everything_comes_back_bit_for_bit(self, checkpoint: Checkpoint, tmp_path: Path):
        path = save_checkpoint(tmp_path / "runs" / "one", checkpoint)
        assert load_checkpoint(tmp_path / "runs" / "one")[0] == path  # type: ignore[index]
        assert_equal(load(tmp_path / "runs" / "one"), checkpoint)

    def test_tensors_that_share_memory_are_written_apart(self, tmp_path: Path):
        shared = tensors(1)
        saved = make(parameters=shared, best=Best(step=1, metrics={}, parameters=shared))
        save_checkpoint(tmp_path, saved)
        assert_equal(load(tmp_path), saved)

    def test_is_safetensors_and_json_alone(self, tmp_path: Path):
        path = save_checkpoint(tmp_path, make())
        assert {file.name for file in path.iterdir()} == {"state.json", "tensors.safetensors"}
        assert json.loads((path / "state.json").read_text())["state"]["step"] == 12

    def test_none_exists_at_first(self, tmp_path: Path):
        assert load_checkpoint(tmp_path) is None
        assert load_checkpoint(tmp_path / "missing") is None


class TestModes:
    def test_nobody_else_may_read_one_whatever_the_umask_is(self, tmp_path):
        before = os.umask(0o022)
        try:
            path = save_checkpoint(tmp_path / "checkpoints", make())
        finally:
            os.umask(before)
        assert mode_of(tmp_path / "checkpoints") == mode_of(path) == 0o700
        assert {mode_of(file) for file in path.iterdir()} == {0o600}


class TestSeries:
    def test_a_newer_one_replaces_the_older(self, tmp_path: Path):
        for step in (0, 9, 10, 100):
            save_checkpoint(tmp_path, make(step))
            assert [path.name for path in tmp_path.iterdir()] == [f"step-{step:08d}"]
        assert load(tmp_path).step == 100

    def test_of_two_the_newer_is_taken(self, tmp_path: Path):
        save_checkpoint(tmp_path, make(99_999_999))
        shutil.copytree(tmp_path / "step-99999999", tmp_path / "kept")
        save_checkpoint(tmp_path, make(100_000_000))
        (tmp_path / "kept").rename(tmp_path / "step-99999999")  # killed before it was removed
        assert load(tmp_path).step == 100_000_000

    def test_the_same_step_again_changes_nothing(self, tmp_path: Path):
        path = save_checkpoint(tmp_path, make())
        stamp = (path / "state.json").stat().st_mtime_ns
        assert save_checkpoint(tmp_path, make()) == path
        assert (path / "state.json").stat().st_mtime_ns == stamp

    def test_leftovers_of_a_killed_run_are_removed_and_other_files_are_not(self, tmp_path: Path):
        (tmp_path / ".hifi-0123456789abcdef.tmp").mkdir()
        (tmp_path / ".hifi-0123456789abcdef.tmp" / "tensors.safetensors").write_bytes(b"half")
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes.txt").write_text("mine")
        save_checkpoint(tmp_path, make())
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"notes", "notes.txt", "step-00000012"}

    def test_all_are_removed_and_their_folder_too(self, tmp_path: Path):
        save_checkpoint(tmp_path / "run", make())
        (tmp_path / "run" / ".hifi-0123456789abcdef.tmp").mkdir()
        remove_checkpoints(tmp_path / "run")
        assert list(tmp_path.iterdir()) == []
        remove_checkpoints(tmp_path / "run")

    def test_half_a_checkpoint_is_none(self, tmp_path: Path):
        (tmp_path / ".hifi-0123456789abcdef.tmp").mkdir()
        assert load_checkpoint(tmp_path) is None


class TestRefusals:
    @pytest.mark.parametrize(
        ("job", "named"),
        [
            ({**JOB, "train": SHA[2]}, "another train"),
            ({**JOB, "model": SHA[2], "train": SHA[0]}, "another model, another train"),
            ({"model": SHA[0], "epochs": "3"}, "another train"),
            ({**JOB, "validation": SHA[2]}, "another validation"),
            ({**JOB, "epochs": "4"}, "epochs 3, not 4"),
            ({**JOB, "epochs": "4", "train": SHA[2]}, "another train, epochs 3, not 4"),
        ],
    )
    def test_another_job_is_refused_by_what_differs(self, job: dict, named: str):
        with pytest.raises(CheckpointError, match=rf"step-00000012.*\({named}\)"):
            check_job(Path("step-00000012"), make(), job=job)

    def test_the_same_job_is_accepted(self):
        check_job(Path("step-00000012"), make(), job=dict(reversed(JOB.items())))

    def test_another_format_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(module, "FORMAT_VERSION", 2)
        save_checkpoint(tmp_path, make())
        monkeypatch.undo()
        with pytest.raises(CheckpointError, match="format version 2, this library has 5"):
            load_checkpoint(tmp_path)

    @pytest.mark.parametrize("name", ["state.json", "tensors.safetensors"])
    @pytest.mark.parametrize("damage", ["gone", "empty", "cut", "changed", "nonsense"])
    def test_a_damaged_file_is_named(self, name: str, damage: str, tmp_path: Path):
        path = save_checkpoint(tmp_path, make()) / name
        data = path.read_bytes()
        middle = len(data) // 2
        flipped = bytes([data[middle] ^ 1])
        changes = {
            "empty": b"",
            "cut": data[:-7],
            "changed": data[:middle] + flipped + data[middle + 1 :],
            "nonsense": b"\x80\x04nonsense",
        }
        path.unlink() if damage == "gone" else path.write_bytes(changes[damage])
        with pytest.raises(CheckpointError, match=rf"{name} is damaged"):
            load_checkpoint(tmp_path)


class TestDisk:
    def test_a_full_disk_leaves_the_older_one(self, tmp_path, monkeypatch: pytest.MonkeyPatch):
        save_checkpoint(tmp_path, make(3))

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(module, "save_file", full)
        with pytest.raises(StorageError, match="No space left"):
            save_checkpoint(tmp_path, make(4))
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]
        assert load(tmp_path).step == 3

    def test_an_interrupt_leaves_the_older_one(self, tmp_path, monkeypatch: pytest.MonkeyPatch):
        save_checkpoint(tmp_path, make(3))

        def interrupted(_: object, path: Path) -> None:
            path.write_bytes(b"half")
            raise KeyboardInterrupt

        monkeypatch.setattr(module, "save_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, make(4))
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]

    def test_a_file_where_the_folder_should_be(self, tmp_path: Path):
        (tmp_path / "taken").write_text("")
        with pytest.raises(StorageError, match="taken"):
            save_checkpoint(tmp_path / "taken", make())
