"""hifi.training.kept_states: a run's frozen layers are computed once; no byte depends on where."""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from transformers.models.bert.modeling_bert import BertLayer

from hifi import HeadId, HeadSelection, finetune
from hifi.errors import InvalidArgumentError, JobPaused
from hifi.training import finetuning
from hifi.training.events import Control, TrainingEvent
from hifi.tuning.prefix import FrozenLayers
from hifi.tuning.states import StatePlaces
from tests.tiny_runs import STEPS, TRAIN, VALIDATION, file_of, record, run, stop_at
from tests.tiny_tasks import image_rows, save_image_model, save_text_model

EPOCHS = STEPS // 3
PLACES = {
    "memory": StatePlaces(memory_bytes=1 << 20, disk_bytes=0),
    "disk": StatePlaces(memory_bytes=0, disk_bytes=1 << 20),
    "some of each": StatePlaces(memory_bytes=5_000, disk_bytes=9_000),
    "nothing": StatePlaces(memory_bytes=0, disk_bytes=0),
}


def run_to_the_end(backbone: Path, /, **arguments):
    """Fine-tune in the upper half; the delta is that of the last step, whatever it is worth."""
    result = run(backbone, strategy="mid-top", validation=None, **arguments)
    assert result.best_step == STEPS
    return result


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Count how often the states of each sample are computed."""
    counts: Counter = Counter()
    fill = FrozenLayers.fill

    def counting(frozen: FrozenLayers, batch, *, keys):
        counts.update(keys)
        return fill(frozen, batch, keys=keys)

    monkeypatch.setattr(FrozenLayers, "fill", counting)
    return counts


@pytest.fixture
def lowest(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """List the samples of each batch that is computed by the lowest layer."""
    sizes: list[int] = []
    forward = BertLayer.forward

    def counting(layer: BertLayer, states: torch.Tensor, *arguments, **options):
        if layer.attention.self.layer_idx == 0:
            sizes.append(len(states))
        return forward(layer, states, *arguments, **options)

    monkeypatch.setattr(BertLayer, "forward", counting)
    return sizes


@pytest.fixture(scope="module")
def expected(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the delta file of a run in the upper half, with all states in memory."""
    result = run_to_the_end(bert, state_places=PLACES["memory"])
    return file_of(result, tmp_path_factory.mktemp("expected"))


class TestBytes:
    @pytest.mark.parametrize("place", PLACES)
    def test_do_not_depend_on_where_states_are(
        self, place: str, bert: Path, expected: bytes, tmp_path: Path
    ):
        result = run_to_the_end(bert, state_places=PLACES[place])
        assert file_of(result, tmp_path) == expected

    def test_are_those_of_the_default(self, bert: Path, expected: bytes, tmp_path: Path):
        assert file_of(run_to_the_end(bert), tmp_path) == expected

    def test_do_not_depend_on_a_disk_that_cannot_be_written(
        self, bert: Path, expected: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ):
        places = StatePlaces(memory_bytes=5_000, folder=tmp_path / "missing")
        with caplog.at_level(logging.WARNING):
            result = run_to_the_end(bert, state_places=places)
        assert file_of(result, tmp_path) == expected
        assert caplog.text.count("no room to keep the hidden states") == 1

    @pytest.mark.parametrize("place", PLACES)
    @pytest.mark.parametrize("step", [0, 1, 3, 4, 5])
    def test_of_a_resumed_run_whose_states_are_gone_are_the_same(
        self, step: int, place: str, bert: Path, expected: bytes, tmp_path: Path
    ):
        folder = tmp_path / "checkpoints"
        kind = "step" if step else "checkpoint"
        with pytest.raises(JobPaused):
            run_to_the_end(
                bert,
                checkpoint_dir=folder,
                state_places=PLACES[place],
                on_event=stop_at(kind, step, Control.PAUSE),
            )
        assert [path.name for path in folder.iterdir()] == [f"step-{step:08d}"]
        other = PLACES["nothing" if place == "memory" else "memory"]
        result = run_to_the_end(bert, checkpoint_dir=folder, state_places=other)
        assert file_of(result, tmp_path) == expected

    @pytest.mark.parametrize("name", ["gpt2", "modernbert", "qwen3", "deberta-v2", "mpnet"])
    def test_of_other_architectures_do_not_depend_on_it_either(self, name: str, tmp_path: Path):
        model = save_text_model(tmp_path / "model", name)
        files = [
            file_of(run_to_the_end(model, state_places=places), tmp_path)
            for places in PLACES.values()
        ]
        assert len(set(files)) == 1

    def test_of_images_do_not_depend_on_it_either(self, tmp_path: Path, computed: Counter):
        model = save_image_model(tmp_path / "model")
        files = [
            file_of(
                finetune(
                    model=model,
                    train=image_rows(24),
                    k=1,
                    strategy="mid-top",
                    epochs=2,
                    batch_size=8,
                    n_samples=10,
                    precision="float32",
                    state_places=places,
                ),
                tmp_path,
            )
            for places in PLACES.values()
        ]
        assert len(set(files)) == 1
        assert computed

    def test_of_every_loss_and_metric_do_not_depend_on_it_either(self, bert: Path):
        trails = []
        for places in PLACES.values():
            heard: list[TrainingEvent] = []
            run(bert, strategy="mid-top", state_places=places, on_event=record(heard))
            trails.append([(event.loss, event.metrics) for event in heard])
        assert sum(loss is not None for loss, _ in trails[0]) == STEPS
        assert all(trail == trails[0] for trail in trails)


class TestWork:
    def test_each_sample_is_computed_once_in_a_run(self, bert: Path, computed: Counter):
        run(bert, strategy="mid-top")
        samples = {("train", row) for row in range(len(TRAIN))}
        samples |= {("validation", row) for row in range(len(VALIDATION))}
        assert set(computed) == samples
        assert set(computed.values()) == {1}

    @pytest.mark.parametrize("start", ["probe", "keep"])
    def test_the_probe_the_training_and_the_evaluations_share_a_pass(
        self, start: str, bert: Path, lowest: list[int]
    ):
        result = run(bert, strategy="mid-top", head_start=start, n_samples=10)
        assert "probe" in result.yardsticks
        assert sum(lowest) == 10 + len(TRAIN) + len(VALIDATION)

    def test_of_given_heads_too(self, bert: Path, lowest: list[int]):
        heads = HeadSelection.from_heads([HeadId(1, 0)], num_layers=3)
        run(bert, selection=heads, head_start="probe")
        assert sum(lowest) == len(TRAIN) + len(VALIDATION)

    def test_of_a_budget_the_probes_pass_is_its_own(self, bert: Path, lowest: list[int]):
        result = run(bert, strategy="budget", budget=1, k=None, score="gradient", n_samples=10)
        assert result.selection.heads[0].layer > 0
        assert sum(lowest) == 2 * (len(TRAIN) + len(VALIDATION)) + 10

    def test_without_room_each_is_computed_in_every_epoch(self, bert: Path, computed: Counter):
        run(bert, strategy="mid-top", state_places=PLACES["nothing"])
        assert min(computed.values()) >= EPOCHS

    def test_states_end_with_the_run(self, bert: Path, tmp_path: Path):
        folder = tmp_path / "states"
        folder.mkdir()
        run(bert, strategy="mid-top", state_places=StatePlaces(memory_bytes=0, folder=folder))
        assert list(folder.iterdir()) == []
        links = Path("/proc/self/fd").iterdir()
        assert not any(str(folder) in str(link.resolve()) for link in links)

    @pytest.mark.parametrize("change", [{"epochs": 1}, {"strategy": "layer-wise"}])
    def test_a_run_that_gains_nothing_runs_the_whole_model(
        self, change: dict, bert: Path, computed: Counter, monkeypatch: pytest.MonkeyPatch
    ):
        result = run(bert, **{"strategy": "mid-top", **change})
        assert not computed
        monkeypatch.setattr(finetuning, "keeping_states", lambda *_, **__: nullcontext())
        whole = run(bert, **{"strategy": "mid-top", **change})
        assert result.metrics == whole.metrics


def test_the_result_is_that_of_the_whole_model_up_to_rounding(
    bert: Path, monkeypatch: pytest.MonkeyPatch
):
    kept, kept_delta = run(bert, strategy="mid-top"), run_to_the_end(bert).delta
    monkeypatch.setattr(finetuning, "keeping_states", lambda *_, **__: nullcontext())
    whole, whole_delta = run(bert, strategy="mid-top"), run_to_the_end(bert).delta
    assert kept.selection.heads == whole.selection.heads
    assert kept.metrics == pytest.approx(whole.metrics, abs=1e-5)
    for name, rows in kept_delta.rows.items():
        if "key.bias" in name:
            continue  # softmax cancels it: Adam makes whole steps of a gradient of rounding alone
        assert not torch.equal(rows, kept_delta.base[name])
        torch.testing.assert_close(rows, whole_delta.rows[name], atol=1e-5, rtol=1e-4)


def test_a_selection_without_heads_is_refused(bert: Path):
    nothing = HeadSelection.from_heads([], num_layers=3)
    with pytest.raises(InvalidArgumentError, match="at least one head"):
        run(bert, selection=nothing)


def test_places_of_another_kind_are_refused(bert: Path):
    with pytest.raises(InvalidArgumentError, match="state_places"):
        run(bert, state_places="/somewhere")


def test_by_default_the_file_lies_where_the_checkpoints_do(tmp_path: Path, bert: Path, monkeypatch):
    seen: list[StatePlaces] = []

    def keep(*_, places: StatePlaces, **__):
        seen.append(places)
        return nullcontext()

    monkeypatch.setattr(finetuning, "keeping_states", keep)
    run(bert, checkpoint_dir=tmp_path)
    run(bert)
    assert set(seen) == {StatePlaces(folder=tmp_path), StatePlaces()}
