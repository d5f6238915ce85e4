"""hifi.training.finetuning stopped: paused, cancelled, killed, and resumed to the same bytes."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import save_file

from hifi.errors import (
    CheckpointError,
    InvalidArgumentError,
    JobCancelled,
    JobPaused,
    JobStopped,
    JobTimedOut,
    StorageError,
)
from hifi.training import checkpoint, events
from hifi.training.events import Control, OnEvent, TrainingEvent
from tests.root import ROOT
from tests.tiny_runs import STEPS, TRAIN, file_of, record, run, stop_at
from tests.tiny_tasks import (
    save_text_model,
    text_rows,
)


class TestPause:
    @pytest.mark.parametrize(
        ("kind", "step"),
        [
            ("selected", 0),
            ("checkpoint", 0),
            *(("step", step) for step in range(1, STEPS + 1)),
            ("evaluating", 3),
            ("evaluated", 3),
            ("evaluated", 6),
        ],
    )
    def test_at_any_boundary_and_resumed_gives_the_same_bytes(
        self, kind: str, step: int, bert: Path, undisturbed: bytes, tmp_path: Path
    ):
        folder = tmp_path / "checkpoints"
        with pytest.raises(JobPaused) as caught:
            run(bert, checkpoint_dir=folder, on_event=stop_at(kind, step, Control.PAUSE))
        assert caught.value.checkpoint == folder / f"step-{step:08d}"
        heard: list[TrainingEvent] = []
        result = run(bert, checkpoint_dir=folder, on_event=record(heard))
        assert file_of(result, tmp_path) == undisturbed
        assert {event.step for event in heard if event.kind == "step"} == set(range(step + 1, 7))
        assert not {event.kind for event in heard} & {"selecting", "selected"}

    def test_at_every_step_of_one_run(self, bert: Path, undisturbed: bytes, tmp_path: Path):
        pauses = 0
        while True:
            try:
                result = run(
                    bert,
                    checkpoint_dir=tmp_path / "checkpoints",
                    on_event=lambda event: Control.PAUSE if event.kind == "step" else None,
                )
                break
            except JobPaused:
                pauses += 1
        assert pauses == STEPS
        assert file_of(result, tmp_path) == undisturbed

    def test_events_go_on_counting(self, bert: Path, tmp_path: Path):
        heard: list[TrainingEvent] = []

        def pause(event: TrainingEvent) -> Control:
            heard.append(event)
            return Control.PAUSE if event.kind == "step" else Control.CONTINUE

        for _ in range(2):
            with pytest.raises(JobPaused):
                run(bert, checkpoint_dir=tmp_path, on_event=pause)
        run(bert, checkpoint_dir=tmp_path, on_event=record(heard))
        kinds = Counter(event.kind for event in heard)
        assert (kinds["loading"], kinds["loaded"], kinds["resumed"]) == (3, 3, 2)
        assert [event.number for event in heard] == list(range(1, len(heard) + 1))

    def test_kind_and_step_name_an_event(self, bert: Path, tmp_path: Path):
        heard: list[TrainingEvent] = []
        with pytest.raises(JobPaused):
            run(bert, checkpoint_dir=tmp_path, on_event=stop_at("step", 2, Control.PAUSE))
        run(bert, checkpoint_dir=tmp_path, checkpoint_seconds=0, on_event=record(heard))
        names = Counter((event.kind, event.step) for event in heard)
        assert {kind for (kind, _), count in names.items() if count > 1} == {"evaluating"}

    def test_seconds_and_samples_are_counted_over_all_attempts(self, bert: Path, tmp_path: Path):
        with pytest.raises(JobPaused):
            run(bert, checkpoint_dir=tmp_path, on_event=stop_at("step", 5, Control.PAUSE))
        result = run(bert, checkpoint_dir=tmp_path)
        assert result.samples_per_second * result.train_seconds == pytest.approx(48)
        assert result.selection_seconds > 0

    @pytest.mark.parametrize("kind", ["loading", "selecting"])
    def test_before_training_no_checkpoint_is_written(self, kind: str, bert: Path, tmp_path: Path):
        def pause(event: TrainingEvent) -> Control:
            return Control.PAUSE if event.kind == kind else Control.CONTINUE

        with pytest.raises(JobPaused) as caught:
            run(bert, checkpoint_dir=tmp_path, on_event=pause)
        assert caught.value.checkpoint is None
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("answer", [Control.PAUSE, Control.CANCEL])
    def test_a_pause_while_resuming_keeps_the_checkpoint(
        self, answer: Control, bert: Path, undisturbed: bytes, tmp_path: Path
    ):
        folder = tmp_path / "checkpoints"
        with pytest.raises(JobPaused):
            run(bert, checkpoint_dir=folder, on_event=stop_at("step", 1, Control.PAUSE))
        with pytest.raises(JobStopped) as caught:
            run(bert, checkpoint_dir=folder, on_event=stop_at("loading", 0, answer))
        assert caught.value.checkpoint == folder / "step-00000001"
        assert file_of(run(bert, checkpoint_dir=folder), tmp_path) == undisturbed

    def test_without_a_folder_nothing_is_kept(self, bert: Path):
        with pytest.raises(JobPaused, match="nothing was saved") as caught:
            run(bert, on_event=stop_at("step", 1, Control.PAUSE))
        assert caught.value.checkpoint is None

    def test_a_finished_run_finishes_again(self, bert: Path, undisturbed: bytes, tmp_path: Path):
        for _ in range(2):
            result = run(bert, checkpoint_dir=tmp_path / "c", checkpoint_seconds=0)
            assert file_of(result, tmp_path) == undisturbed

    def test_early_stopping_is_remembered(self, bert: Path, tmp_path: Path):
        settings = {"early_stopping_patience": 2, "epochs": 9, "learning_rate": 1e-9}
        whole = run(bert, **settings)
        for step in (3, 6):
            folder = tmp_path / str(step)
            with pytest.raises(JobPaused):
                run(
                    bert,
                    **settings,
                    checkpoint_dir=folder,
                    on_event=stop_at("step", step, Control.PAUSE),
                )
            heard: list[TrainingEvent] = []
            resumed = run(bert, **settings, checkpoint_dir=folder, on_event=record(heard))
            assert heard[-1].step == 6  # the start was evaluated, too
            assert file_of(resumed, tmp_path) == file_of(whole, tmp_path)


class TestTimeLimit:
    """``max_seconds``, on a clock that the events set."""

    @pytest.fixture
    def late_after(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], OnEvent]:
        clock = SimpleNamespace(now=0.0)
        monkeypatch.setattr(events, "time", SimpleNamespace(monotonic=lambda: clock.now))

        def make(kind: str, step: int) -> OnEvent:
            clock.now = 0.0

            def on_event(event: TrainingEvent) -> None:
                if (event.kind, event.step) == (kind, step):
                    clock.now = 61.0

            return on_event

        return make

    def test_stops_at_a_checkpoint_and_resumes_to_the_same_bytes_with_any_limit(
        self, bert: Path, undisturbed: bytes, tmp_path: Path, late_after
    ):
        folder = tmp_path / "checkpoints"
        with pytest.raises(JobTimedOut, match=r"max_seconds=60 ran out after step 2") as caught:
            run(bert, checkpoint_dir=folder, max_seconds=60, on_event=late_after("step", 2))
        assert caught.value.checkpoint == folder / "step-00000002"
        result = run(bert, checkpoint_dir=folder, max_seconds=3600, on_event=late_after("x", 0))
        assert file_of(result, tmp_path) == undisturbed

    @pytest.mark.parametrize(
        ("kind", "words"), [("loaded", "while loading"), ("selecting", "during selection")]
    )
    def test_stops_before_the_first_step(self, kind: str, words: str, bert: Path, late_after):
        step = 0 if kind == "loaded" else 10
        with pytest.raises(JobTimedOut, match=words):
            run(bert, max_seconds=60, on_event=late_after(kind, step))

    def test_after_the_last_step_changes_nothing(
        self, bert: Path, undisturbed, tmp_path, late_after
    ):
        result = run(bert, max_seconds=60, on_event=late_after("step", STEPS))
        assert file_of(result, tmp_path) == undisturbed

    def test_without_a_folder_nothing_is_kept(self, bert: Path, late_after):
        with pytest.raises(JobTimedOut, match="nothing was saved") as caught:
            run(bert, max_seconds=60, on_event=late_after("step", 1))
        assert caught.value.checkpoint is None

    @pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "60"])
    def test_of_no_time_is_refused(self, bert: Path, seconds: object):
        with pytest.raises(InvalidArgumentError, match=r"max_seconds=.*a number above 0"):
            run(bert, max_seconds=seconds)


class TestCancel:
    @pytest.mark.parametrize("kind", ["loading", "selecting", "step", "evaluating", "checkpoint"])
    def test_ends_the_run_at_once(self, kind: str, bert: Path, tmp_path: Path):
        heard: list[TrainingEvent] = []

        def cancel(event: TrainingEvent) -> Control:
            heard.append(event)
            return Control.CANCEL if event.kind == kind else Control.CONTINUE

        with pytest.raises(JobCancelled):
            run(bert, checkpoint_dir=tmp_path, on_event=cancel)
        assert [event.kind for event in heard].count(kind) == 1
        assert heard[-1].kind == kind

    def test_ctrl_c_passes_through_and_can_be_resumed(
        self, bert: Path, undisturbed: bytes, tmp_path: Path
    ):
        def interrupt(event: TrainingEvent) -> None:
            if event.kind == "step" and event.step == 4:
                raise KeyboardInterrupt

        folder = tmp_path / "checkpoints"
        with pytest.raises(KeyboardInterrupt):
            run(bert, checkpoint_dir=folder, checkpoint_seconds=0, on_event=interrupt)
        assert [path.name for path in folder.iterdir()] == ["step-00000003"]
        assert file_of(run(bert, checkpoint_dir=folder), tmp_path) == undisturbed


CHILD = """
import os, signal, sys
from pathlib import Path
from tests import tiny_runs
from hifi import files
from hifi.training import checkpoint

model, folder, where, count = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def on_event(event):
    print(event.kind, event.step, flush=True)
    if where == "step" and (event.kind, event.step) == ("step", count):
        die()

writes = 0
def dying(function):
    def wrapped(*arguments, **named):
        global writes
        writes += 1
        if writes == count:
            die()
        return function(*arguments, **named)
    return wrapped

if where == "write":  # the tensors are on disk, the state is not
    checkpoint.canonical_json = dying(checkpoint.canonical_json)
if where == "remove":  # the new checkpoint is there, the old one too
    checkpoint.shutil.rmtree = dying(checkpoint.shutil.rmtree)
tiny_runs.run(model, checkpoint_dir=folder, checkpoint_seconds=0, on_event=on_event)
"""


@pytest.mark.process
class TestKill:
    @pytest.mark.parametrize(
        ("where", "count"),
        [
            ("step", None),
            ("write", 7),
            ("remove", 8),
        ],
    )
    def test_a_killed_run_resumes_to_the_same_bytes(
        self, where: str, count: int | None, bert: Path, undisturbed: bytes, tmp_path: Path
    ):
        folder = tmp_path / "checkpoints"
        count = count or random.Random(time.time_ns()).randint(1, STEPS)  # noqa: S311
        command = [sys.executable, "-c", CHILD, str(bert), str(folder), where, str(count)]
        child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert child.returncode == -signal.SIGKILL, child.stderr
        assert any(path.name.startswith("step-") for path in folder.iterdir())
        heard: list[TrainingEvent] = []
        result = run(bert, checkpoint_dir=folder, on_event=record(heard))
        assert "selecting" not in {event.kind for event in heard}
        assert file_of(result, tmp_path) == undisturbed, f"killed at {where} {count}"


class TestCheckpoints:
    def test_come_as_often_as_asked(self, bert: Path, tmp_path: Path):
        for seconds, steps in ((0, list(range(7))), (3600, [0])):
            heard: list[TrainingEvent] = []
            folder = tmp_path / str(seconds)
            run(bert, checkpoint_dir=folder, checkpoint_seconds=seconds, on_event=record(heard))
            assert [event.step for event in heard if event.kind == "checkpoint"] == steps
            assert len(list(folder.iterdir())) == 1

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"learning_rate": 1e-3}, r"\(learning_rate 0.0003, not 0.001\)"),
            ({"seed": 1}, r"\(seed 0, not 1\)"),
            ({"k": 2}, r"\(k 1, not 2\)"),
            ({"score": "gradient"}, r"\(another score\)"),
            ({"k": None, "strategy": "budget", "budget": 3}, r"k 1, not null.*another budget"),
            ({"train": text_rows(24, seed=7)}, "another train"),
            ({"validation": None}, "another validation"),
            ({"metric": "f1"}, "another task"),
            ({"precision": "bfloat16"}, 'another model, precision "float32", not "bfloat16"'),
        ],
    )
    def test_of_another_run_are_refused(self, change: dict, named: str, bert: Path, tmp_path: Path):
        with pytest.raises(JobPaused):
            run(bert, checkpoint_dir=tmp_path, on_event=stop_at("step", 1, Control.PAUSE))
        with pytest.raises(CheckpointError, match=named):
            run(bert, checkpoint_dir=tmp_path, **change)

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            ({"xi": None}, {"xi": 0.9}),
            ({"k": None}, {"k": 3, "score": "pagerank", "budget": None}),
            ({"n_samples": None}, {"n_samples": len(TRAIN)}),
            ({"damping": 0.5, "seed": 0}, {"damping": np.float32(0.5), "seed": np.int64(0)}),
            ({"checkpoint_seconds": 60}, {"checkpoint_seconds": 0}),
        ],
    )
    def test_of_the_same_job_spelled_differently_are_resumed(
        self, first: dict, second: dict, bert: Path, tmp_path: Path
    ):
        with pytest.raises(JobPaused):
            run(bert, checkpoint_dir=tmp_path, on_event=stop_at("step", 2, Control.PAUSE), **first)
        heard: list[TrainingEvent] = []
        run(bert, checkpoint_dir=tmp_path, on_event=record(heard), **second)
        assert min(event.step for event in heard if event.kind == "step") == 3

    def test_of_another_model_are_refused(self, bert: Path, tmp_path: Path):
        with pytest.raises(JobPaused):
            run(bert, checkpoint_dir=tmp_path / "c", on_event=stop_at("step", 1, Control.PAUSE))
        other = save_text_model(tmp_path / "tiny-bert", seed=5)
        with pytest.raises(CheckpointError, match="another model"):
            run(other, checkpoint_dir=tmp_path / "c")

    def test_a_damaged_one_is_refused(self, bert: Path, tmp_path: Path):
        with pytest.raises(JobPaused) as caught:
            run(bert, checkpoint_dir=tmp_path, on_event=stop_at("step", 1, Control.PAUSE))
        assert caught.value.checkpoint is not None
        (caught.value.checkpoint / "tensors.safetensors").write_bytes(b"nonsense")
        heard: list[TrainingEvent] = []
        with pytest.raises(CheckpointError, match=r"tensors\.safetensors is damaged"):
            run(bert, checkpoint_dir=tmp_path, on_event=record(heard))
        assert heard == []  # before the data and the model are read

    def test_a_full_disk_ends_the_run_at_the_last_checkpoint(
        self, bert: Path, undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        folder = tmp_path / "checkpoints"
        writes = 0

        def save_until_full(tensors: dict, path: Path) -> None:
            nonlocal writes
            writes += 1
            if writes > 3:  # of the steps 0, 1 and 2
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            save_file(tensors, path)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save_file", save_until_full)
            with pytest.raises(StorageError, match="No space left"):
                run(bert, checkpoint_dir=folder, checkpoint_seconds=0)
        assert [path.name for path in folder.iterdir()] == ["step-00000002"]
        assert file_of(run(bert, checkpoint_dir=folder), tmp_path) == undisturbed
