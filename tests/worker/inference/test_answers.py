"""The inference process answers as each task's merged model, whatever the mix."""

from __future__ import annotations

import base64
import io
import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers as tf
from datasets import load_dataset
from starlette.testclient import TestClient

from hifi.backbones.heads import HeadId
from tests.architectures import ARCHITECTURES, NAMES, tiny_model
from tests.tiny_deltas import save_bare_backbone
from tests.tiny_tasks import END, UNKNOWN, WORDS, save_image_model, tiny_tokenizer
from tests.worker.inference.asking import ask, predict
from tests.worker.inference.test_app import unpack
from tests.worker.inference.tuned import CLOSE, Tuned, image, tune
from worker.inference.app import build_app

if TYPE_CHECKING:
    from tests.worker.inference.conftest import Home

SPECIAL_TOKENS = {"pad_token": "[PAD]", "unk_token": UNKNOWN, "eos_token": END}
TEXT = {"text": "w1 w2 w3"}
MANY = [{"text": " ".join(WORDS[index : index + 1 + index % 9])} for index in range(40)]


def inputs_for(tuned: Tuned, *, count: int, seed: int = 0) -> list[dict[str, str]]:
    """Draw inputs for a task, some of them too long."""
    draw = random.Random(seed)  # noqa: S311 - a draw, not a secret
    task = tuned.delta.metadata.task or {}
    if "image" in task:
        return [{"image": image(draw.randrange(256), size=(8 + n, 11))} for n in range(count)]
    names = ("text", "text_pair")[: len(task["text"])]
    return [
        {name: " ".join(draw.choices(WORDS, k=draw.randint(1, 25))) for name in names}
        for _ in range(count)
    ]


def check_all(answers: Sequence[Any], items: Sequence[tuple[int, Any]], tuned: Sequence[Tuned]):
    for answer, (place, given) in zip(answers, items, strict=True):
        tuned[place].check(answer, given)


def shares_of_merged(
    client: TestClient, order: dict[str, Any], texts: Sequence[str]
) -> list[dict[str, float]]:
    """Predict texts one by one in plain transformers with the model that the process merges."""
    with tempfile.TemporaryDirectory() as name:
        for file, content in unpack(client.post("/merged", json=order).content).items():
            (Path(name) / file).write_bytes(content)
        model = tf.AutoModelForSequenceClassification.from_pretrained(name).eval()
        tokenizer = tf.AutoTokenizer.from_pretrained(name)
    shares = []
    for text in texts:
        with torch.no_grad():
            logits = model(**tokenizer(text, truncation=True, return_tensors="pt")).logits[0]
        shares.append(dict(zip(model.config.label2id, logits.softmax(-1).tolist(), strict=True)))
    return shares


@pytest.fixture
def patient(home: Home) -> Home:
    """Return a home where concurrent requests share one batch."""
    update = {"infer_batch_wait_ms": 100.0}
    return replace(home, settings=home.settings.model_copy(update=update))


class TestAnswers:
    def test_of_mixed_tasks_are_those_of_their_merged_models(
        self, client: TestClient, home: Home, tasks: dict[str, Tuned]
    ):
        names = list(tasks)
        orders = [home.order(tasks[name]) for name in names]
        items = [
            (place, given)
            for place, name in enumerate(names)
            for given in inputs_for(tasks[name], count=7, seed=place)
        ]
        random.Random(3).shuffle(items)  # noqa: S311 - a draw, not a secret
        for _ in range(2):  # from the store, and from the device
            check_all(predict(client, orders, items), items, list(tasks.values()))

    def test_are_those_of_what_merged_gives(self, client: TestClient, order: dict):
        shares = shares_of_merged(client, order, [given["text"] for given in MANY])
        for answer, expected in zip(ask(client, order, *MANY), shares, strict=True):
            assert answer["scores"] == pytest.approx(expected, abs=CLOSE)
            assert answer["label"] == max(expected, key=expected.__getitem__)

    def test_of_one_task_in_one_pass_are_in_the_order_asked(
        self, client: TestClient, home: Home, tasks: dict[str, Tuned]
    ):
        for answer, given in zip(ask(client, home.order(tasks["two"]), *MANY), MANY, strict=True):
            tasks["two"].check(answer, given)

    def test_of_256_inputs_for_as_many_orders(
        self, client: TestClient, home: Home, tasks: dict[str, Tuned]
    ):
        orders = [home.order(tasks[name]) for name in ("two", "three")] * 128
        items = [(place, MANY[place % len(MANY)]) for place in range(256)]
        for place, answer in enumerate(predict(client, orders, items)):
            tasks[("two", "three")[place % 2]].check(answer, items[place][1])

    def test_of_a_text_that_is_cut_are_as_trained(
        self, client: TestClient, home: Home, tasks: dict[str, Tuned]
    ):
        long = " ".join(WORDS)
        for name, given in {
            "two": {"text": long},
            "pair": {"text": long, "text_pair": "w4"},
            "numbers": {"text": "w4 w5", "text_pair": long},
        }.items():
            (answer,) = ask(client, home.order(tasks[name]), given)
            tasks[name].check(answer, given)

    def test_differ_where_the_tasks_do(
        self, client: TestClient, home: Home, tasks: dict[str, Tuned]
    ):
        orders = [home.order(tasks[name]) for name in ("two", "same")]
        first, second = predict(client, orders, [(0, TEXT), (1, TEXT)])
        assert abs(first["scores"]["bad"] - second["scores"]["bad"]) > 100 * CLOSE

    def test_of_a_decoder_whose_delta_names_no_pad_token(self, patient: Home):
        """A decoder reads the last token before the padding, so it must know the pad token."""
        folder = patient.settings.models / "tiny-gpt2"
        tiny_model("gpt2", pad_token_id=None).base_model.save_pretrained(folder)
        tiny_tokenizer(unk_token=UNKNOWN, eos_token=END).save_pretrained(folder)
        tuned = [tune(folder, seed=seed) for seed in (1, 2)]
        orders = [patient.order(each) for each in tuned]
        texts = ["w1 w2 w4 w5 w6", "w1 w2 w4 w5 w6 w7"]
        with TestClient(build_app(patient.settings)) as client:
            items = [(place, {"text": text}) for place, text in enumerate(texts)]
            for place, answer in enumerate(predict(client, orders, items)):
                (shares,) = shares_of_merged(client, orders[place], [texts[place]])
                assert answer["scores"] == pytest.approx(shares, abs=CLOSE)

    def test_of_a_bfloat16_backbone_without_its_pooler(self, home: Home):
        folder = home.settings.models / "half"
        save_bare_backbone(folder)
        config = tf.BertConfig(**ARCHITECTURES["bert"].arguments)
        tf.BertModel(config, add_pooling_layer=False).bfloat16().save_pretrained(folder)
        tuned = tune(folder)
        order = {**home.order(tuned), "model": "half"}
        with TestClient(build_app(home.settings)) as client:
            (answer,) = ask(client, order, TEXT)
            (shares,) = shares_of_merged(client, order, [TEXT["text"]])
        assert answer["scores"] == pytest.approx(shares, abs=0.01)

    @pytest.mark.parametrize("name", [name for name in NAMES if name != "bert"])
    def test_of_every_architecture(self, patient: Home, name: str):
        folder = patient.settings.models / name
        is_image = ARCHITECTURES[name].image
        if is_image:
            save_image_model(folder, name)
        else:
            tiny_tokenizer(**SPECIAL_TOKENS).save_pretrained(folder)
        tiny_model(name).base_model.save_pretrained(folder)
        kinds = [("a", "b", "c"), ("no", "yes") if is_image else None]
        heads = [[HeadId(0, 1)], [HeadId(1, 0), HeadId(2, 1)]]
        tuned = [
            tune(folder, seed=place, labels=labels, heads=heads[place], is_image=is_image)
            for place, labels in enumerate(kinds)
        ]
        items = [(place, given) for place in (0, 1) for given in inputs_for(tuned[place], count=4)]
        with TestClient(build_app(patient.settings)) as client:
            orders = [patient.order(each) for each in tuned]
            check_all(predict(client, orders, items[::-1]), items[::-1], tuned)


class TestRealModels:
    def test_minilm(self, patient: Home, minilm_path: Path):
        tuned = [
            tune(minilm_path, seed=1, columns=2, max_length=24, heads=[HeadId(1, 3), HeadId(4, 0)]),
            tune(minilm_path, seed=2, labels=None, columns=2, heads=[HeadId(5, 11)]),
        ]
        given = [
            {"text": "He said the food was good.", "text_pair": "The food, he said, was good."},
            {
                "text": "Unquestionably na\u00efve \u65e5\u672c\u8a9e \U0001f642!",
                "text_pair": "\u00bfQu\u00e9?",
            },
            {"text": "word " * 60, "text_pair": "other " * 3},
            {"text": "a", "text_pair": "b " * 60},
        ]
        items = [(place, each) for each in given for place in (0, 1)]
        orders = [{**patient.order(each), "model": "all-MiniLM-L6-v2"} for each in tuned]
        with TestClient(build_app(patient.settings)) as client:
            check_all(predict(client, orders, items), items, tuned)

    def test_vit(self, patient: Home, test_data: Path):
        folder = patient.settings.models / "vit-cifar10-4L4H64"
        shutil.copytree(test_data / "models" / folder.name, folder)
        tuned = tune(folder, labels=("a", "b", "c"), is_image=True)
        path = str(test_data / "data" / "mnist" / "validation.parquet")
        rows = load_dataset("parquet", data_files=path, split="train[:6]")
        given = [{"image": _png(picture)} for picture in rows["image"]]
        with TestClient(build_app(patient.settings)) as client:
            answers = ask(client, patient.order(tuned), *given)
        check_all(answers, [(0, each) for each in given], [tuned])


def _png(picture: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
