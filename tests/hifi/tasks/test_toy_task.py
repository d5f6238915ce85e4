"""A task type declared only in this file works wherever the built-in ones do."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
import torch
import transformers as tf
from torch import nn

from hifi.backbones.models import resolve_model
from hifi.cli import main
from hifi.data import task_types
from hifi.data.columns import read_texts
from hifi.data.task_types import (
    Answer,
    AnswerField,
    Columns,
    Layout,
    Request,
    RequestField,
    TaskType,
    register,
)
from hifi.deltas.loading import load_bare_backbone
from hifi.serving.bank import HeadBank
from hifi.tasks.text import EncodedTexts, TextEncoder, TextTask
from hifi.training.finetuning import finetune
from tests.in_process import Service, running_service
from tests.tiny_deltas import save_bare_backbone
from tests.tiny_tasks import BAD, GOOD, text_rows, write_jsonl

if TYPE_CHECKING:
    from torch import Tensor

    from hifi.backbones.models import AutoClass
    from hifi.deltas.delta import HeadDelta
    from hifi.tasks.base import EncodedInput, Examples
    from hifi.training.finetuning import FinetuneResult

CLOSE = 1e-5
NO_TAG = -100  # of special tokens, and of the padding
TAGS = TaskType(
    name="toy-tags",
    words="a tag for every word of a text",
    implementation=f"{__name__}:Tags",
    input_kind="text",
    layouts=(
        Layout(
            inputs=(Columns(field="text", use="text", words="a text column"),),
            label=Columns(field="label", use="text", words="the column of tags, one for each word"),
            request=Request(
                name="ToyWords", words="Words.", fields=(RequestField(name="words", kind="text"),)
            ),
        ),
    ),
    num_labels=None,
    logits="token",
    metrics=("toy-accuracy", "toy-share"),
    problem_type=None,
    answer=Answer(
        name="ToyTags",
        words="A tag for every word.",
        fields=(AnswerField(name="tags", type=list[str], words="in the order of the words"),),
    ),
)


class TagEncoder(TextEncoder):
    """Puts each word's tag at its token; each word is one token, and [CLS] comes first."""

    def encode(self, dataset: Any, *, split: str, targets: Tensor) -> EncodedTexts:
        lengths = super().encode(dataset, split=split, targets=targets).lengths
        aligned = torch.full((len(lengths), int(lengths.max())), NO_TAG)
        for row, length in enumerate(lengths):
            aligned[row, 1 : length - 1] = targets[row, : length - 2]
        return super().encode(dataset, split=split, targets=aligned)


@dataclass(frozen=True, kw_only=True)
class Tags(TextTask):
    """Tags words; its logits are ``[n, S, tags]``."""

    declaration: ClassVar[TaskType] = TAGS
    auto_class: ClassVar[AutoClass] = tf.AutoModelForTokenClassification

    @classmethod
    def read_classes(cls, dataset: Any, label: str) -> tuple[str, ...]:
        tags = {tag for cell in read_texts(dataset, label, split="train") for tag in cell.split()}
        return tuple(sorted(tags))

    def load_encoder(self, source: Any, config: Any, *, max_length: int) -> TagEncoder:
        return TagEncoder(
            source,
            config,
            columns=self.inputs,
            max_length=max_length,
            request=self.declaration.layouts[0].request,
        )

    def targets(self, dataset: Any, *, split: str) -> Tensor:
        cells = [cell.split() for cell in read_texts(dataset, self.label, split=split)]
        whole = torch.full((len(cells), max(map(len, cells))), NO_TAG)
        for row, tags in enumerate(cells):
            places = [(self.classes or ()).index(tag) for tag in tags]
            whole[row, : len(tags)] = torch.tensor(places)
        return whole

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        mine = targets[:, : logits.shape[1]].flatten()  # a batch may be shorter than its split
        return nn.functional.cross_entropy(logits.flatten(0, 1), mine, ignore_index=NO_TAG)

    def evaluate(self, logits: Tensor, examples: Examples) -> dict[str, float]:
        is_word = examples.targets != NO_TAG
        is_right = (logits.argmax(-1) == examples.targets)[is_word]
        return {"toy-accuracy": is_right.double().mean().item(), "toy-share": 0.5}

    def answer(self, logits: Sequence[Tensor], given: EncodedInput) -> dict[str, Any]:
        (values,), (sample,) = logits, given.samples
        assert values.shape == (sample.length, self.num_labels)
        best = values.argmax(-1)[1:-1].tolist()
        return {"tags": [str((self.classes or ())[index]) for index in best]}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the type during a test."""
    monkeypatch.setattr(task_types, "_TYPES", dict(task_types._TYPES))
    register(TAGS)


def tagged(count: int, *, seed: int) -> list[dict[str, str]]:
    """Make texts of 1 to 12 good and bad words, with their tags."""
    draw = random.Random(seed)  # noqa: S311 - a draw, not a secret
    rows = []
    for _ in range(count):
        words = draw.choices((*GOOD[:4], *BAD[:4]), k=draw.randint(1, 12))
        tags = ["good" if word in GOOD else "bad" for word in words]
        rows.append({"text": " ".join(words), "tags": " ".join(tags)})
    return rows


TRAIN, VALIDATION = tagged(96, seed=1), tagged(16, seed=2)
SPEC = {"type": TAGS.name, "text": "text", "label": "tags"}
SMALL = {"k": 2, "n_samples": 10, "precision": "float32"}
TRAINING = {"epochs": 8, "batch_size": 4, "max_length": 16, "learning_rate": 0.005}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bare_backbone(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture
def tuned(backbone: Path) -> FinetuneResult:
    return finetune(
        model=backbone, train=TRAIN, validation=VALIDATION, task=SPEC, **SMALL, **TRAINING
    )


def merged_model(backbone: Path, delta: HeadDelta) -> tf.PreTrainedModel:
    """Merge a delta of the toy type in plain transformers."""
    model = tf.AutoModelForTokenClassification.from_pretrained(backbone, num_labels=2).eval()
    delta.merge(model)
    return model


def tags_of(model: tf.PreTrainedModel, folder: Path, text: str) -> list[str]:
    """Tag one text, alone and without padding."""
    tokens = tf.AutoTokenizer.from_pretrained(folder)([text], return_tensors="pt")
    with torch.no_grad():
        best = model(**tokens).logits[0].argmax(-1)[1:-1].tolist()
    return [("bad", "good")[index] for index in best]


def share_right(tags: Sequence[Sequence[str]]) -> float:
    """Compare tags of the validation split with the expected ones."""
    pairs = [
        (given, right)
        for row, mine in zip(VALIDATION, tags, strict=True)
        for given, right in zip(mine, row["tags"].split(), strict=True)
    ]
    return float(np.mean([given == right for given, right in pairs]))


class TestFinetune:
    def test_measures_the_merged_model_on_each_text_alone(
        self, tuned: FinetuneResult, backbone: Path
    ):
        model = merged_model(backbone, tuned.delta)
        tags = [tags_of(model, backbone, row["text"]) for row in VALIDATION]
        assert tuned.metrics["toy-accuracy"] == pytest.approx(share_right(tags))
        assert tuned.metrics["toy-accuracy"] > 0.8
        assert tuned.delta.metadata.labels == ["bad", "good"]
        task = tuned.delta.metadata.task or {}
        assert (task["type"], task["num_labels"], task["metric"]) == (
            "toy-tags",
            2,
            "toy-accuracy",
        )

    def test_an_image_or_a_pair_is_refused_by_the_declaration(self, backbone: Path):
        pairs = [{**row, "more": "w1"} for row in TRAIN]
        with pytest.raises(Exception, match="a text column"):
            finetune(model=backbone, train=pairs, task={**SPEC, "text": ["text", "more"]})


class TestCommandLine:
    def test_tunes_and_merges(self, backbone: Path, tmp_path: Path, capsys):
        train = write_jsonl(tmp_path / "train.jsonl", TRAIN)
        validation = write_jsonl(tmp_path / "validation.jsonl", VALIDATION)
        settings = {**SMALL, **TRAINING, "task": TAGS.name, "metric": "toy-accuracy"}
        options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        columns = ["--text", "text", "--label", "tags"]
        files = ["--train", str(train), "--validation", str(validation)]
        delta, folder = tmp_path / "tags.safetensors", tmp_path / "merged"
        model = ["--model", str(backbone)]
        assert (
            main(["tune", *model, *files, *columns, *options, "--out", str(delta), "--json"]) == 0
        )
        result = json.loads(capsys.readouterr().out)["result"]
        merge = ["merge", "--delta", str(delta), *model, "--out", str(folder)]
        assert main(merge) == 0
        merged = tf.AutoModelForTokenClassification.from_pretrained(folder).eval()
        assert merged.config.id2label == {0: "bad", 1: "good"}
        tags = [tags_of(merged, folder, row["text"]) for row in VALIDATION]
        assert result["metrics"]["toy-accuracy"] == pytest.approx(share_right(tags))


class TestBank:
    def test_mixes_it_with_a_classification(self, tuned: FinetuneResult, backbone: Path):
        other = finetune(model=backbone, train=text_rows(24, seed=1), **SMALL, **TRAINING)
        classifier = tf.AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=2)
        other.delta.merge(classifier.eval())
        merged = merged_model(backbone, tuned.delta)
        source = resolve_model(backbone)
        bank = HeadBank(load_bare_backbone(source, device=torch.device("cpu")).model)
        bank.add("tags", tuned.delta)
        bank.add("class", other.delta)
        texts = [row["text"] for row in VALIDATION[:6]]
        tokenizer = tf.AutoTokenizer.from_pretrained(backbone)
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        names = ["tags", "class", None, "tags", "tags", "class"]
        for name, text, answer in zip(names, texts, bank.forward(batch, names), strict=True):
            alone = tokenizer([text], return_tensors="pt")
            length = alone["input_ids"].shape[1]
            with torch.no_grad():
                if name == "tags":
                    expected = merged(**alone).logits[0]
                    assert answer[:length].allclose(expected, atol=CLOSE)
                elif name == "class":
                    assert answer.allclose(classifier(**alone).logits[0], atol=CLOSE)


@pytest.fixture
def service(backbone: Path, tmp_path: Path) -> Iterator[Service]:
    with running_service(tmp_path, backbones={"tiny-bert": backbone}) as running:
        yield running


@pytest.mark.process  # the child that checks uploads
class TestService:
    @pytest.mark.process
    def test_runs_a_job_and_predicts(self, service: Service, tmp_path: Path):
        dataset = service.upload(tmp_path, train=TRAIN, validation=VALIDATION)
        training = {**TRAINING, "precision": "float32"}
        spec = {"model": "tiny-bert", "dataset": dataset, "task": SPEC, "training": training}
        job = service.post("/jobs", json={**spec, "k": 2, "n_samples": 10})["id"]
        service.work()
        document = service.get(f"/jobs/{job}")
        assert document["status"] == "succeeded", document
        assert document["spec"]["task"]["metric"] == "toy-accuracy"
        inputs: list[dict[str, str]] = [{"words": row["text"]} for row in VALIDATION]
        inputs += [{"text": "w1"}, {"words": " "}]
        *answers, wrong, empty = service.post(f"/jobs/{job}/predict", json={"inputs": inputs})[
            "data"
        ]
        tags = [answer["tags"] for answer in answers]
        assert share_right(tags) == pytest.approx(document["result"]["metrics"]["toy-accuracy"])
        assert answers[0] == {"index": 0, "job": job, "tags": tags[0]}
        assert (wrong["error"]["code"], wrong["error"]["param"]) == (
            "invalid_input",
            f"inputs.{len(VALIDATION)}.words",
        )
        assert empty["error"]["message"] == "words is empty"
        mixed = [{"job": job, "input": given} for given in inputs[:2]]
        again = service.post("/predict", json={"inputs": mixed})["data"]
        assert [answer["tags"] for answer in again] == tags[:2]
