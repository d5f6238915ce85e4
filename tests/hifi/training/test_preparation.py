"""hifi.training.preparation: what is prepared before the first step, and the job's digest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from hifi.backbones.fingerprint import backbone_fingerprint
from hifi.backbones.models import resolve_model
from hifi.data.settings import Hyperparameters
from hifi.data.training_defaults import choose_learning_rate
from hifi.errors import InvalidArgumentError, ModelError
from hifi.tasks import TaskSpec
from hifi.training.preparation import (
    Prepared,
    calibration_batches,
    describe_job,
    prepare,
)
from tests.architectures import HIDDEN
from tests.tiny_tasks import image_rows, save_image_model, save_text_model, text_rows

SETTINGS = Hyperparameters(
    epochs=3, learning_rate=1e-3, max_length=16, batch_size=4, precision="float32"
)
TRAIN, VALIDATION = text_rows(20, seed=1), text_rows(6, seed=2)


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_model(tmp_path_factory.mktemp("models") / "bert", dtype=torch.bfloat16)


def make(folder: Path, *, settings: Hyperparameters = SETTINGS, **changes: Any) -> Prepared:
    arguments = {"spec": TaskSpec(), "train": TRAIN, "validation": VALIDATION}
    return prepare(
        resolve_model(folder),
        settings=settings,
        device=torch.device("cpu"),
        **{**arguments, **changes},
    )


def job(
    folder: Path,
    *,
    settings: Hyperparameters = SETTINGS,
    selection: dict[str, Any] | None = None,
    **changes: Any,
) -> dict[str, str]:
    ready = make(folder, settings=settings, **changes)
    return describe_job(ready, settings=settings, selection=selection or {})


@pytest.fixture
def bfloat16_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that this processor multiplies bfloat16 natively."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})


class TestPrepare:
    def test_the_fingerprint_is_of_the_backbone_as_stored(self, bert: Path):
        ready = make(bert)
        stored = tf.AutoModel.from_pretrained(bert, dtype="auto")
        assert ready.fingerprint == backbone_fingerprint(stored)
        assert ready.loaded.model.dtype == torch.float32
        assert ready.fingerprint != backbone_fingerprint(ready.loaded.model)

    def test_the_whole_model_has_the_dtype_of_the_precision(self, bert: Path):
        settings = Hyperparameters(max_length=16, precision="bfloat16")
        parameters = make(bert, settings=settings).loaded.model.parameters()
        assert {parameter.dtype for parameter in parameters} == {torch.bfloat16}

    def test_the_configuration_knows_the_task(self, bert: Path):
        rows = text_rows(6, labels=("no", "yes", "maybe"))
        config = make(bert, train=rows, validation=rows).loaded.model.config
        assert config.id2label == {0: "maybe", 1: "no", 2: "yes"}
        assert config.num_labels == 3

    @pytest.mark.parametrize(
        ("labels", "codes"),
        [
            ([0, *range(12)], ["many_classes"]),  # and none of the rows of a class
            ("aaaaaaaabbbbbbbbc", ["rare_classes"]),
            ("aaaaaaaabb", ["few_rows_per_class"]),
            ("aaaaaaaabbbbbbbb", []),
            ((0.1, 0.2, 0.3), []),
        ],
    )
    def test_doubtful_labels_are_warned_of(
        self, bert: Path, labels: Sequence[Any], codes: list[str]
    ):
        rows = [{"text": f"w{row}", "label": label} for row, label in enumerate(labels)]
        ready = make(bert, train=rows, validation=None)
        assert [warning.code for warning in ready.data.warnings] == codes
        assert ready.warnings[: len(codes)] == ready.data.warnings

    def test_different_labels_of_the_same_texts_are_warned_of(self, bert: Path):
        rows = [{"text": f"w{row}", "label": row % 2} for row in range(20)]
        doubtful = [*rows, {"text": "w3", "label": 0}, {"text": "w4", "label": 1}]
        assert make(bert, train=rows + rows, validation=None).warnings == ()
        (warning,) = make(bert, train=doubtful, validation=None).warnings
        assert warning.code == "label_noise_suspected"
        assert "such as the training rows 4 and 21: at least 2 of 22 labels" in warning.message

    def test_of_a_pair_both_texts_count(self, bert: Path):
        rows = [
            {"first": "w1", "second": f"w{row}", "label": label}
            for row, label in enumerate("ab" * 10)
        ]
        spec = TaskSpec(text=("first", "second"))
        assert make(bert, spec=spec, train=rows, validation=None).data.warnings == ()
        doubtful = [{**row, "label": "b"} for row in rows[:9]]
        (warning,) = make(bert, spec=spec, train=rows + doubtful, validation=None).data.warnings
        assert warning.code == "label_noise_suspected"

    @pytest.mark.parametrize(("max_length", "name"), [(16, "eager"), (129, "sdpa")])
    @pytest.mark.usefixtures("bfloat16_processor")
    def test_attention_suits_the_length(self, max_length: int, name: str, tmp_path: Path):
        folder = save_text_model(tmp_path, max_position_embeddings=200)
        ready = make(folder, settings=Hyperparameters(max_length=max_length))
        assert ready.loaded.model.config._attn_implementation == name

    @pytest.mark.usefixtures("bfloat16_processor")
    def test_of_an_image_patches_count(self, tmp_path: Path):
        folder = save_image_model(tmp_path)
        rows = image_rows(4)
        ready = make(folder, train=rows, validation=rows, settings=Hyperparameters(max_length=999))
        assert ready.loaded.model.config._attn_implementation == "eager"

    def test_a_length_beyond_the_model_is_refused_with_its_limit(self, bert: Path):
        with pytest.raises(InvalidArgumentError, match="bert reads 64 tokens") as caught:
            make(bert, settings=Hyperparameters(max_length=65))
        assert caught.value.param == "max_length"

    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            ("text", "has the architecture 'vit', which does not read texts"),
            ("image", "has the architecture 'bert', which does not read images"),
        ],
    )
    def test_a_model_that_does_not_read_the_inputs(self, kind: str, words: str, tmp_path: Path):
        save, rows = {
            "text": (save_image_model, TRAIN),
            "image": (save_text_model, image_rows(4)),
        }[kind]
        with pytest.raises(ModelError, match=words):
            make(save(tmp_path / "model"), train=rows, validation=None)

    def test_a_summary_describes_the_task(self, bert: Path):
        rows = text_rows(8, labels=("x" * 99, *"abcdefg"))
        assert make(bert, train=rows, validation=None).summary() == (
            "classification of text by label (8 classes: a, b, c, d, e, f, …); 8 rows; "
            "float32 on cpu"
        )
        numbers = [{"text": "a", "other": "b", "score": 0.5}] * 3
        assert make(bert, train=numbers, validation=numbers).summary() == (
            "regression of text and other by score; 3 rows, 3 validation rows; float32 on cpu"
        )


class TestJob:
    @pytest.mark.parametrize(
        ("part", "change"),
        [
            ("train", {"train": TRAIN[::-1]}),
            ("validation", {"validation": None}),
            ("validation", {"validation": VALIDATION[1:]}),
            ("task", {"spec": TaskSpec(metric="f1")}),
            ("k", {"selection": {"k": 2}}),
            ("layers", {"selection": {"layers": [{"layer": 0, "selected": [1, 2, 3]}]}}),
            ("batch_size", {"settings": replace(SETTINGS, batch_size=32)}),
            ("epochs", {"settings": replace(SETTINGS, epochs=4)}),
            ("learning_rate", {"settings": replace(SETTINGS, learning_rate=2e-3)}),
        ],
    )
    def test_every_part_changes_the_digest(self, part: str, change: dict[str, Any], bert: Path):
        before, after = job(bert), job(bert, **change)
        assert {name for name in after if before.get(name) != after[name]} == {part}

    def test_equal_calls_are_the_same_job(self, bert: Path):
        assert job(bert) == job(bert)

    def test_a_choice_and_the_same_value_given_are_the_same_job(self, bert: Path):
        left_open = replace(SETTINGS, epochs=None, learning_rate="auto")
        epochs = left_open.count_epochs(rows=len(TRAIN))
        given = replace(
            SETTINGS, epochs=epochs, learning_rate=choose_learning_rate(hidden_size=HIDDEN)
        )
        assert job(bert, settings=left_open) == job(bert, settings=given)

    def test_another_kind_of_device_is_another_job(self, bert: Path):
        ready = make(bert)
        before = describe_job(ready, settings=SETTINGS, selection={})
        ready.loaded.model.to("meta")
        after = describe_job(ready, settings=SETTINGS, selection={})
        assert {name for name in before if before[name] != after[name]} == {"device"}


class TestCalibration:
    def test_samples_are_drawn_once_each_and_the_longest_come_first(self, bert: Path):
        ready = make(bert)
        batches = list(calibration_batches(ready, n=10, settings=SETTINGS))
        assert [len(batch["input_ids"]) for batch in batches] == [4, 4, 2]
        lengths = torch.cat([batch["attention_mask"].sum(1) for batch in batches])
        assert lengths.tolist() == sorted(lengths.tolist(), reverse=True)
        rows = {tuple(row[row > 0].tolist()) for batch in batches for row in batch["input_ids"]}
        assert len(rows) == 10

    def test_the_seed_draws_them(self, bert: Path):
        ready = make(bert)
        drawn = [
            [batch["input_ids"].tolist() for batch in calibration_batches(ready, n=5, settings=s)]
            for s in (SETTINGS, SETTINGS, Hyperparameters(seed=1, batch_size=4))
        ]
        assert drawn[0] == drawn[1] != drawn[2]
