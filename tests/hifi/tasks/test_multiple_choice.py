"""hifi.tasks.multiple_choice: against plain transformers, in the bank, resumed, and its probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

from hifi import HeadBank, HeadSelection, HeadTuner, finetune
from hifi.backbones.heads import HeadId
from hifi.backbones.models import load_config, resolve_model
from hifi.data.splits import load_split
from hifi.deltas.loading import load_backbone, load_bare_backbone
from hifi.errors import InputError, JobPaused, ModelError, TextTooLongError
from hifi.serving.prediction import TaskRecord, collate
from hifi.tasks import TaskSpec, make_task
from hifi.tasks.base import Sample
from hifi.tasks.probe import ChoiceProbe
from hifi.training.events import Control, TrainingEvent
from hifi.tuning.states import StatePlaces
from tests.architectures import ARCHITECTURES, LAYERS, tiny_model
from tests.measured import Measured
from tests.task_types.cases import CASES
from tests.tiny_deltas import save_bare_backbone
from tests.tiny_tasks import save_text_model

Row = dict[str, Any]
CPU = torch.device("cpu")
MAKE_ROWS = next(case.rows for case in CASES if case.type == "multiple-choice")
TRAIN, VALIDATION = MAKE_ROWS(48, 1), MAKE_ROWS(18, 2)
SMALL: Mapping[str, Any] = {
    "epochs": 3,
    "batch_size": 8,
    "max_length": 24,
    "learning_rate": 0.01,
    "precision": "float32",
}
HEADS: Mapping[str, Any] = {"k": 2, "n_samples": 10}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bare_backbone(tmp_path_factory.mktemp("models") / "tiny-bert")


def run(backbone: Path, /, **arguments: Any) -> Any:
    given = {"train": TRAIN, "validation": VALIDATION, **HEADS, **SMALL, **arguments}
    return finetune(model=backbone, **given)


def make(rows: Sequence[Row] = TRAIN, **said: Any) -> Any:
    return make_task(
        TaskSpec.of({"type": "multiple-choice", **said}), load_split(rows, split="train")
    )


def encode(task: Any, backbone: Path, rows: Sequence[Row], *, max_length: int = 24) -> Any:
    source, dataset = resolve_model(backbone), load_split(list(rows), split="validation")
    encoder = task.load_encoder(source, load_config(source), max_length=max_length)
    targets = task.targets(dataset, split="validation")
    return encoder.encode(dataset, split="validation", targets=targets)


def with_texts(rows: Sequence[Row], count: int) -> list[Row]:
    """Return rows with so many texts in front of the choices."""
    kept = [{name: value for name, value in row.items() if name != "text"} for row in rows]
    return [
        {**{f"text{n}": f"w4{n} w4{place % 3}" for n in range(count)}, **row}
        for place, row in enumerate(kept)
    ]


class TestEncoding:
    @pytest.mark.parametrize("texts", [0, 1, 2])
    @pytest.mark.parametrize("max_length", [24, 9])
    def test_is_what_transformers_reads(self, backbone: Path, texts: int, max_length: int):
        rows = with_texts(VALIDATION[:5], texts)
        names = tuple(f"text{n}" for n in range(texts))
        task = make(rows, text=names, choices="choices", label="label")
        batch = encode(task, backbone, rows, max_length=max_length).batch([3, 0, 4])
        tokenizer = tf.AutoTokenizer.from_pretrained(backbone)
        first, second = [], []
        for row in (rows[3], rows[0], rows[4]):
            for choice in row["choices"]:
                first.append(row["text0"] if texts else choice)
                second.append(f"{row['text1']} {choice}" if texts == 2 else choice)
        columns = [first, second] if texts else [first]
        expected = tokenizer(
            *columns, truncation=True, max_length=max_length, padding=True, return_tensors="pt"
        )
        for name, value in batch.inputs.items():
            assert value.shape[:2] == (3, 3)
            assert value.flatten(0, 1).equal(expected[name]), name
        assert batch.targets.tolist() == [rows[place]["label"] for place in (3, 0, 4)]

    def test_the_loss_is_that_of_transformers(self, backbone: Path):
        task = make()
        batch = encode(task, backbone, VALIDATION).batch(range(6))
        model = tf.AutoModelForMultipleChoice.from_pretrained(backbone).eval()
        with torch.no_grad():
            output = model(**batch.inputs, labels=batch.targets)
        assert task.loss(output.logits, batch.targets).item() == pytest.approx(output.loss.item())

    def test_another_number_of_choices_is_refused_in_validation(self, backbone: Path):
        rows = [*VALIDATION[:2], {**VALIDATION[2], "choices": ["w1", "w2"]}]
        with pytest.raises(Exception, match=r"row 3.*another number of choices than the 3"):
            encode(make(), backbone, rows)

    def test_the_digest_depends_on_choices_and_labels(self, backbone: Path):
        rows = VALIDATION[:4]
        other = [{**rows[0], "label": (rows[0]["label"] + 1) % 3}, *rows[1:]]
        moved = [{**rows[0], "choices": rows[0]["choices"][::-1]}, *rows[1:]]
        digests = {encode(make(), backbone, each).digest() for each in (rows, other, moved)}
        assert len(digests) == 3


class TestAnswers:
    def test_have_a_share_for_each_choice(self):
        sample = Sample({}, {}, 3)
        logits = [torch.tensor([value]) for value in (0.0, 2.0, 1.0)]
        given = type("Given", (), {"samples": (sample,) * 3})()
        answer = make().read_answer(logits, given)
        shares = torch.tensor([0.0, 2.0, 1.0]).double().softmax(0).tolist()
        assert answer == {"choice": 1, "score": shares[1], "scores": pytest.approx(shares)}

    def test_one_place_for_all_is_named_by_its_label(self):
        logits = torch.tensor([[0.0, 1.0, 0.0]] * 3)
        examples = Measured(torch.tensor([0, 1, 2]))
        letters = [{**row, "label": "ABC"[row["label"]]} for row in TRAIN]
        assert make().only_answer(logits, examples) == "1"
        assert make(letters).only_answer(logits, examples) == "B"
        assert make().only_answer(logits.roll(1, 0) * torch.eye(3), examples) is None


class TestProbe:
    def planted(self, count: int, choices: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Make features whose right choice is the furthest along one direction."""
        draw = torch.Generator().manual_seed(seed)
        features = torch.randn(count, choices, 8, generator=draw)
        features += 5 * torch.randn(count, 1, 8, generator=draw)  # of a row, not of a choice
        return features, features[..., 0].argmax(-1)

    @pytest.mark.parametrize("choices", [2, 4])
    def test_finds_a_planted_direction(self, choices: int):
        kind = ChoiceProbe()
        x, y = kind.examples(*self.planted(400, choices, 0))
        probe = kind.fit(x, y, num_labels=1, has_bias=True, seed=0)
        features, right = self.planted(300, choices, 1)
        found = probe.logits(features).squeeze(-1).argmax(-1)
        assert (found == right).double().mean() > 0.95

    def test_holds_out_whole_rows(self):
        kind = ChoiceProbe()
        _, y = kind.examples(*self.planted(50, 4, 0))
        held = kind._held_out(y.numpy(), seed=0).reshape(50, 4)
        assert (held.all(1) == held.any(1)).all()
        assert held.any(1).sum() == 10

    def test_of_noise_stays_near_chance(self):
        draw = torch.Generator().manual_seed(0)
        features, right = (
            torch.randn(60, 2, 30, generator=draw),
            torch.randint(2, (60,), generator=draw),
        )
        kind = ChoiceProbe()
        x, y = kind.examples(features, right)
        probe = kind.fit(x, y, num_labels=1, has_bias=True, seed=0)
        assert probe.weight.abs().max() < 0.2  # a strong regularisation was chosen

    def test_the_constant_is_the_share_of_each_place(self):
        found = ChoiceProbe().constant(torch.tensor([0, 0, 0, 2]), num_labels=3)
        np.testing.assert_allclose(found.exp(), [0.75, 0.125, 0.25])


class TestRuns:
    def test_kept_states_change_nothing_but_rounding(self, backbone: Path):
        kept = run(backbone, strategy="mid-top", k=1)
        none = run(
            backbone,
            strategy="mid-top",
            k=1,
            state_places=StatePlaces(memory_bytes=0, disk_bytes=0),
        )
        assert kept.metrics == none.metrics
        assert all(kept.delta.rows[name].equal(none.delta.rows[name]) for name in kept.delta.rows)

    def test_a_paused_run_resumes_exactly(self, backbone: Path, tmp_path: Path):
        def pause(event: TrainingEvent) -> Control:
            is_there = event.kind == "step" and event.step == 7
            return Control.PAUSE if is_there else Control.CONTINUE

        whole = run(backbone)
        with pytest.raises(JobPaused):
            run(backbone, checkpoint_dir=tmp_path / "checkpoint", on_event=pause)
        resumed = run(backbone, checkpoint_dir=tmp_path / "checkpoint")
        whole.delta.save(tmp_path / "whole.safetensors")
        resumed.delta.save(tmp_path / "resumed.safetensors")
        first, second = (tmp_path / f"{name}.safetensors" for name in ("whole", "resumed"))
        assert first.read_bytes() == second.read_bytes()

    def test_the_head_of_a_checkpoint_is_kept(self, backbone: Path, tmp_path: Path):
        """Its configuration says two labels, as any without names does."""
        model = tf.AutoModelForMultipleChoice.from_pretrained(backbone)
        assert model.config.num_labels == 2
        model.save_pretrained(tmp_path)
        tf.AutoTokenizer.from_pretrained(backbone).save_pretrained(tmp_path)
        result = run(tmp_path, head_start="keep", epochs=1)
        assert "untuned" in result.yardsticks
        assert not {warning.code for warning in result.warnings} & {"task_head_replaced"}

    def test_a_row_is_one_calibration_sample(self, backbone: Path):
        seen: list[tuple[int, int]] = []

        def listen(event: TrainingEvent) -> None:
            if event.kind == "selecting":
                seen.append((event.step, event.total_steps))

        result = run(backbone, epochs=1, on_event=listen)
        assert seen[-1] == (HEADS["n_samples"], HEADS["n_samples"])
        assert result.selection.n_samples == HEADS["n_samples"]

    def test_gradient_scores_are_computed(self, backbone: Path):
        assert run(backbone, score="gradient", epochs=1).metrics["accuracy"] > 0.3

    def test_a_model_without_such_a_class_is_refused(self, tmp_path: Path):
        folder = save_text_model(tmp_path, "llama")
        tiny_model("llama").base_model.save_pretrained(folder)
        with pytest.raises(ModelError, match="does not read texts"):
            run(folder)


class TestPredictions:
    @pytest.fixture(scope="class")
    def tuned(self, backbone: Path) -> Any:
        return run(backbone)

    def read(self, backbone: Path, delta: Any, *inputs: Row, truncate: bool = True) -> list[Any]:
        source = resolve_model(backbone)
        bare = load_bare_backbone(source, device=CPU).model
        record = TaskRecord.of(delta, bare.config)
        return list(record.load_encoder(source, bare).read(inputs, truncate=truncate))

    @pytest.mark.parametrize("count", [2, 5])
    def test_take_any_number_of_choices(self, backbone: Path, tuned: Any, count: int):
        (given,) = self.read(backbone, tuned.delta, {"text": "w41", "choices": ["w1"] * count})
        assert len(given.samples) == count

    @pytest.mark.parametrize(
        ("given", "message", "param"),
        [
            ({"text": "w1"}, "choices is missing", "choices"),
            ({"text": "w1", "choices": ["w2"]}, "at least 2 choices", "choices"),
            ({"text": "w1", "choices": ["w2", " "]}, "the choice is empty", "choices.1"),
            ({"choices": ["w2", "w3"]}, "text is missing", "text"),
            ({"text": " ", "choices": ["w2", "w3"]}, "text is empty", "text"),
            (
                {"text": "w1", "text_pair": "w4", "choices": ["w2", "w3"]},
                "one text, not text_pair",
                "text_pair",
            ),
        ],
    )
    def test_refuse_an_input(
        self, backbone: Path, tuned: Any, given: Row, message: str, param: str
    ):
        sound = {"text": "w1", "choices": ["w2", "w3"]}
        error, other = self.read(backbone, tuned.delta, given, sound)
        assert isinstance(error, InputError)
        assert message in str(error)
        assert error.param == param
        assert len(other.samples) == 2

    def test_too_long_ones_are_refused_on_request(self, backbone: Path, tuned: Any):
        given = {"text": "w1", "choices": ["w2", "w3 " * 40]}
        (cut,) = self.read(backbone, tuned.delta, given)
        assert cut.samples[1].length == 24
        (error,) = self.read(backbone, tuned.delta, given, truncate=False)
        assert isinstance(error, TextTooLongError)

    def test_a_delta_of_an_own_loop_answers(self, backbone: Path):
        model = tf.AutoModelForMultipleChoice.from_pretrained(backbone)
        assert model.config.num_labels == 2  # of any configuration without labels
        selection = HeadSelection.from_heads([HeadId(0, 1)], num_layers=LAYERS)
        delta = HeadTuner(model.eval(), selection).delta(
            task={"type": "multiple-choice", "text": ["t"], "choices": ["c"]}
        )
        (given,) = self.read(backbone, delta, {"text": "w1", "choices": ["w2", "w3"]})
        assert len(given.samples) == 2


NAMES = [
    name
    for name, each in sorted(ARCHITECTURES.items())
    if each.config in tf.models.auto.modeling_auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING
]


@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_learns_it_and_answers_alike(name: str, tmp_path: Path):
    """In a batch that mixes two deltas, the bank answers as each merged model does."""
    folder = save_text_model(tmp_path, name)
    tiny_model(name).base_model.save_pretrained(folder)
    results = [run(folder, seed=seed, max_length=16) for seed in (0, 1)]
    assert results[0].metrics["accuracy"] > results[0].yardsticks["majority"]["accuracy"]
    source = resolve_model(folder)
    bare = load_bare_backbone(source, device=CPU).model
    bank = HeadBank(bare)
    for number, result in enumerate(results):
        bank.add(str(number), result.delta)
    record = TaskRecord.of(results[0].delta, bare.config)
    inputs = [{"text": row["text"], "choices": row["choices"]} for row in VALIDATION[:4]]
    encoded = record.load_encoder(source, bare).read(inputs, truncate=True)
    samples = [sample for given in encoded for sample in given.samples]
    names = [name for name in ("0", "1") for _ in samples]
    logits = iter(bank.forward(collate(samples * 2), names))
    examples = encode(replace(make(), names=None), folder, VALIDATION[:4], max_length=16)
    for result in results:
        merged = load_backbone(result.delta, model=str(folder), revision=None).model
        result.delta.merge(merged)
        batch = examples.batch(range(4))
        with torch.no_grad():
            expected = merged.eval()(**batch.inputs).logits
        found = torch.stack([torch.cat(list(islice(logits, 3))) for _ in range(4)])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
