"""hifi.backbones.resident: weights in memory give the same bytes as weights from disk."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor

from hifi.backbones import resident
from hifi.backbones.models import LoadedModel, load_config, load_for_task, resolve_model
from hifi.backbones.resident import Load, ResidentBackbones
from hifi.errors import InvalidArgumentError, JobCancelled
from hifi.training import preparation
from hifi.training.events import Control, TrainingEvent
from tests.architectures import ARCHITECTURES, NAMES
from tests.tiny_runs import file_of, run, stop_at
from tests.tiny_tasks import image_rows, save_image_model, save_text_model, text_rows

ROOM = 1 << 30
ONE_EPOCH = {"epochs": 1, "batch_size": 4, "n_samples": 8}
CLASSES = text_rows(8)
NUMBERS = [{**row, "label": row["label"] / 3 + index / 10} for index, row in enumerate(CLASSES)]


@pytest.fixture
def backbones() -> ResidentBackbones:
    return ResidentBackbones(max_bytes=ROOM)


def load(
    lend: Load,
    folder: Path,
    *,
    num_labels: int = 2,
    dtype: torch.dtype = torch.float32,
    load_model: Callable[..., LoadedModel] = load_for_task,
):
    """Load a classifier as a fine-tune does."""
    source = resolve_model(folder)
    config = load_config(source)
    config.num_labels = num_labels
    auto_class = tf.AutoModelForSequenceClassification
    new_model = partial(load_model, config=config, auto_class=auto_class, attention="eager", seed=0)
    return lend(source, new_model, torch.device("cpu"), dtype)


def weights_of(backbones: ResidentBackbones) -> dict[str, Tensor]:
    (kept,) = backbones._residents.values()
    return kept.weights


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Spoil backbones loaded from disk from now on, so that only weights in memory are right."""
    spoiled: list[str] = []

    def load_and_spoil(*arguments: Any, **options: Any) -> LoadedModel:
        loaded = load_for_task(*arguments, **options)
        for name, parameter in resident._backbone_parameters(loaded).items():
            parameter.data = torch.full_like(parameter, torch.nan)
            spoiled.append(name)
        return loaded

    monkeypatch.setattr(preparation, "load_for_task", load_and_spoil)
    return spoiled


class TestSameBytes:
    @pytest.mark.parametrize("name", NAMES)
    def test_in_two_different_tasks_one_after_the_other(
        self, name: str, backbones: ResidentBackbones, tmp_path: Path
    ):
        folder = tmp_path / "model"
        if ARCHITECTURES[name].image:
            save_image_model(folder, name)
            tasks = [image_rows(8), [*image_rows(4), {**image_rows(1)[0], "label": 2}]]
        else:
            save_text_model(folder, name)
            tasks = [CLASSES, NUMBERS]
        alone = []
        for rows in tasks:
            arguments = {**ONE_EPOCH, "train": rows, "validation": rows, "n_samples": None}
            alone.append(file_of(run(folder, **arguments), tmp_path))
        for rows, expected in zip((*tasks, tasks[0]), (*alone, alone[0]), strict=True):
            arguments = {**ONE_EPOCH, "train": rows, "validation": rows, "n_samples": None}
            kept = run(folder, **arguments, backbones=backbones)
            assert file_of(kept, tmp_path) == expected
        assert len(backbones) == 1

    @pytest.mark.parametrize("rows", [CLASSES, NUMBERS], ids=["classification", "regression"])
    def test_of_the_real_backbone(
        self, rows: list[dict], minilm_path: Path, backbones: ResidentBackbones, tmp_path: Path
    ):
        arguments = {**ONE_EPOCH, "train": rows, "validation": rows, "precision": "auto"}
        alone = file_of(run(minilm_path, **arguments), tmp_path)
        for _ in range(2):
            assert file_of(run(minilm_path, **arguments, backbones=backbones), tmp_path) == alone

    @pytest.mark.parametrize("name", ["bert", "modernbert", "llama"])
    @pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_at_a_dtype_other_than_the_stored_one(
        self,
        name: str,
        stored: torch.dtype,
        precision: str,
        backbones: ResidentBackbones,
        tmp_path: Path,
    ):
        folder = save_text_model(tmp_path / "model", name, dtype=stored)
        arguments = {**ONE_EPOCH, "train": CLASSES, "validation": None, "precision": precision}
        alone = file_of(run(folder, **arguments), tmp_path)
        for _ in range(2):
            assert file_of(run(folder, **arguments, backbones=backbones), tmp_path) == alone

    def test_with_a_pooler_that_the_checkpoint_lacks(
        self, backbones: ResidentBackbones, tmp_path: Path
    ):
        folder = save_text_model(tmp_path / "model")
        tf.BertModel.from_pretrained(folder, add_pooling_layer=False).save_pretrained(folder)
        for seed in (0, 1, 0):
            kept = run(folder, **ONE_EPOCH, seed=seed, backbones=backbones)
            assert "bert.pooler.dense.weight" in kept.delta.task_head
            alone = run(folder, **ONE_EPOCH, seed=seed)
            assert file_of(kept, tmp_path) == file_of(alone, tmp_path)
        assert not any("pooler" in name for name in weights_of(backbones))

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_with_no_weight_read_from_disk(
        self,
        precision: str,
        bert: Path,
        backbones: ResidentBackbones,
        tmp_path: Path,
        request: pytest.FixtureRequest,
    ):
        first = run(bert, precision=precision, backbones=backbones)
        spoiled = request.getfixturevalue("unread")
        second = run(bert, precision=precision, backbones=backbones)
        assert spoiled
        assert file_of(second, tmp_path) == file_of(first, tmp_path)

    def test_resumed_on_another_engine(
        self, bert: Path, undisturbed: bytes, backbones: ResidentBackbones, tmp_path: Path
    ):
        pause = stop_at("step", 2, Control.PAUSE)
        run(bert, backbones=backbones)
        with pytest.raises(Exception, match="paused"):
            run(bert, checkpoint_dir=tmp_path / "c", on_event=pause, backbones=backbones)
        result = run(bert, checkpoint_dir=tmp_path / "c")
        assert file_of(result, tmp_path) == undisturbed


class TestSharing:
    def test_memory_is_shared_and_parameters_are_not(
        self, bert: Path, backbones: ResidentBackbones
    ):
        with backbones.job() as lend:
            first = load(lend, bert, num_labels=2).loaded.model
        with backbones.job() as lend:
            second = load(lend, bert, num_labels=3).loaded.model
        ours, theirs = dict(first.named_parameters()), dict(second.named_parameters())
        for name in weights_of(backbones):
            assert ours[name].data_ptr() == theirs[name].data_ptr()
            assert ours[name] is not theirs[name]
        assert first.config is not second.config
        assert ours["classifier.weight"].shape != theirs["classifier.weight"].shape

    def test_tied_weights_stay_tied(self, bert: Path, backbones: ResidentBackbones):
        def load_tied(*arguments: Any, **options: Any) -> LoadedModel:
            loaded = load_for_task(*arguments, **options)
            lower, upper, _ = loaded.model.bert.encoder.layer
            upper.output.dense.weight = lower.output.dense.weight
            return loaded

        for _ in range(2):
            with backbones.job() as lend:
                model = load(lend, bert, dtype=torch.bfloat16, load_model=load_tied).loaded.model
            lower, upper, _ = model.bert.encoder.layer
            assert upper.output.dense.weight is lower.output.dense.weight
        assert "bert.encoder.layer.1.output.dense.weight" not in weights_of(backbones)

    def test_what_only_a_second_kind_of_model_has_is_added(
        self, bert: Path, backbones: ResidentBackbones
    ):
        def load_without_pooler(*arguments: Any, **options: Any) -> LoadedModel:
            loaded = load_for_task(*arguments, **options)
            loaded.model.bert.pooler = None
            return loaded

        with backbones.job() as lend:
            load(lend, bert, load_model=load_without_pooler)
        assert "bert.pooler.dense.weight" not in weights_of(backbones)
        with backbones.job() as lend:
            model = load(lend, bert).loaded.model
        assert "bert.pooler.dense.weight" in weights_of(backbones)
        stored = tf.AutoModel.from_pretrained(bert)
        assert model.bert.pooler.dense.weight.equal(stored.pooler.dense.weight)

    def test_each_dtype_is_kept_apart(self, bert: Path, backbones: ResidentBackbones):
        with backbones.job() as lend:
            first = load(lend, bert, dtype=torch.float32)
            second = load(lend, bert, dtype=torch.bfloat16)
        assert len(backbones) == 2
        assert first.fingerprint == second.fingerprint
        assert second.loaded.model.dtype == torch.bfloat16

    def test_a_second_borrower_gets_a_separate_copy(
        self, bert: Path, undisturbed: bytes, backbones: ResidentBackbones, tmp_path: Path
    ):
        inner: list[bytes] = []

        def nested(event: TrainingEvent) -> None:
            if (event.kind, event.step) == ("step", 3):
                inner.append(file_of(run(bert, backbones=backbones), tmp_path))

        for _ in range(2):
            outer = run(bert, backbones=backbones, on_event=nested)
            assert file_of(outer, tmp_path) == undisturbed
        assert inner == [undisturbed] * 2
        assert len(backbones) == 1


class TestNothingStays:
    """The next job finds the backbone as it was, however this one ended."""

    def check_next_job(self, bert: Path, backbones: ResidentBackbones, expected: bytes, to: Path):
        assert len(backbones) == 1
        (before,) = backbones._residents.values()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert file_of(run(bert, backbones=backbones), to) == expected
        assert list(backbones._residents.values()) == [before]

    @pytest.mark.parametrize(
        "place", [("selecting", 8), ("selected", 0), ("step", 4), ("evaluated", 6)]
    )
    @pytest.mark.parametrize("failure", [None, RuntimeError, KeyboardInterrupt])
    def test_after_a_job_that_did_not_finish(
        self,
        place: tuple[str, int],
        failure: type[BaseException] | None,
        bert: Path,
        undisturbed: bytes,
        tmp_path: Path,
    ):
        backbones = ResidentBackbones(max_bytes=ROOM)

        def on_event(event: TrainingEvent) -> Control:
            if (event.kind, event.step) != place:
                return Control.CONTINUE
            if failure is not None:
                raise failure
            return Control.CANCEL

        settings = {"learning_rate": 0.1, "seed": 5}  # other rows, far from the backbone's
        with pytest.raises(failure or JobCancelled):
            run(bert, **settings, backbones=backbones, on_event=on_event)
        self.check_next_job(bert, backbones, undisturbed, tmp_path)

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    @pytest.mark.parametrize("name", NAMES)
    def test_after_one_that_did(
        self, name: str, precision: str, backbones: ResidentBackbones, tmp_path: Path
    ):
        image = ARCHITECTURES[name].image
        (save_image_model if image else save_text_model)(tmp_path, name)
        rows = image_rows(8) if image else CLASSES
        arguments = {**ONE_EPOCH, "train": rows, "validation": None, "n_samples": None}
        run(tmp_path, **arguments, precision=precision, learning_rate=0.1, backbones=backbones)
        (kept,) = backbones._residents.values()
        assert kept.changed() == []
        assert not kept.is_lent

    def test_models_and_optimizers_are_released(self, bert: Path, backbones: ResidentBackbones):
        def alive() -> int:
            gc.collect()
            kinds = (tf.PreTrainedModel, torch.optim.Optimizer)
            return sum(issubclass(type(entry), kinds) for entry in gc.get_objects())

        before = alive()
        for _ in range(2):
            run(bert, backbones=backbones)
        assert alive() == before


class TestDamage:
    """Illegal changes to weights in memory are detected before the next job."""

    @staticmethod
    def zero_a_row(weights: dict[str, Tensor]) -> None:
        weights["bert.encoder.layer.1.attention.self.key.weight"][3] = 0

    @staticmethod
    def swap_rows(weights: dict[str, Tensor]) -> None:
        weight = weights["bert.encoder.layer.1.attention.self.key.weight"]
        weight[[3, 4]] = weight[[4, 3]]

    @staticmethod
    def swap_columns(weights: dict[str, Tensor]) -> None:
        weight = weights["bert.encoder.layer.1.attention.self.key.weight"]
        weight[:, [3, 20]] = weight[:, [20, 3]]

    @staticmethod
    def change_a_pooler(weights: dict[str, Tensor]) -> None:
        weights["bert.pooler.dense.bias"][0] += 1

    @staticmethod
    def swap_biases(weights: dict[str, Tensor]) -> None:
        bias = weights["bert.encoder.layer.1.attention.self.key.bias"]
        bias[[0, 1]] = bias[[1, 0]]

    @pytest.mark.parametrize(
        "damage", [zero_a_row, swap_rows, swap_columns, change_a_pooler, swap_biases]
    )
    def test_is_logged_and_repaired_from_disk(
        self,
        damage: Callable[[dict[str, Tensor]], None],
        bert: Path,
        undisturbed: bytes,
        backbones: ResidentBackbones,
        tmp_path: Path,
    ):
        run(bert, backbones=backbones)
        damage(weights_of(backbones))
        with pytest.warns(RuntimeWarning, match=r"1 weights of .*tiny-bert have changed in memory"):
            result = run(bert, backbones=backbones)
        assert file_of(result, tmp_path) == undisturbed
        assert file_of(run(bert, backbones=backbones), tmp_path) == undisturbed

    def test_changed_files_are_reloaded(self, backbones: ResidentBackbones, tmp_path: Path):
        folder = save_text_model(tmp_path / "model", seed=1)
        old = run(folder, **ONE_EPOCH, backbones=backbones)
        save_text_model(folder, seed=2)
        new = run(folder, **ONE_EPOCH, backbones=backbones)
        assert new.delta.metadata.fingerprint != old.delta.metadata.fingerprint
        assert file_of(new, tmp_path) == file_of(run(folder, **ONE_EPOCH), tmp_path)
        assert len(backbones) == 1


class TestBudget:
    @pytest.fixture
    def folders(self, tmp_path: Path) -> list[Path]:
        return [save_text_model(tmp_path / f"m{seed}", seed=seed) for seed in range(3)]

    def size(self, folder: Path) -> int:
        backbones = ResidentBackbones(max_bytes=ROOM)
        with backbones.job() as lend:
            load(lend, folder)
        return backbones.nbytes

    def test_the_least_recently_used_is_evicted_first(self, folders: list[Path]):
        backbones = ResidentBackbones(max_bytes=2 * self.size(folders[0]))
        for index in (0, 1, 0, 2):
            with backbones.job() as lend:
                load(lend, folders[index])
        assert [Path(key.folder).name for key in backbones._residents] == ["m0", "m2"]

    def test_a_lent_one_is_not_evicted(self, folders: list[Path]):
        backbones = ResidentBackbones(max_bytes=self.size(folders[0]))
        with backbones.job() as lend:
            load(lend, folders[0])
            backbones.clear()
            assert len(backbones) == 1
        backbones.clear()
        assert (len(backbones), backbones.nbytes) == (0, 0)

    def test_one_larger_than_the_budget_is_not_kept(
        self, bert: Path, undisturbed: bytes, tmp_path: Path
    ):
        backbones = ResidentBackbones(max_bytes=1000)
        assert file_of(run(bert, backbones=backbones), tmp_path) == undisturbed
        assert len(backbones) == 0

    @pytest.mark.parametrize("value", [0, -1, 1.5, "1", None])
    def test_must_be_a_number_of_bytes(self, value: Any):
        with pytest.raises(InvalidArgumentError, match="max_bytes"):
            ResidentBackbones(max_bytes=value)


@pytest.mark.gpu
class TestGpu:
    def test_gives_the_same_bytes_and_keeps_nothing(
        self, bert: Path, backbones: ResidentBackbones, tmp_path: Path
    ):
        alone = file_of(run(bert, device="cuda", precision="bfloat16"), tmp_path)
        for device in ("cuda", "cuda:0", "cuda"):
            kept = run(bert, device=device, precision="bfloat16", backbones=backbones)
            assert file_of(kept, tmp_path) == alone
        assert len(backbones) == 1
        assert {tensor.device.type for tensor in weights_of(backbones).values()} == {"cuda"}

    def test_memory_of_the_device_is_flat(self, bert: Path, backbones: ResidentBackbones):
        used = []
        for _ in range(4):
            run(bert, device="cuda", backbones=backbones)
            gc.collect()
            used.append(torch.cuda.memory_allocated())
        assert used[1:] == used[1:2] * 3
