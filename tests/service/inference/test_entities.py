"""Predictions of entities over HTTP: long texts, words, and one text for jobs of several types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from hifi import HeadBank, HeadDelta, finetune
from hifi.backbones.models import resolve_model
from hifi.deltas.loading import load_bare_backbone
from hifi.serving.prediction import TaskRecord, collate
from tests.in_process import Service, running_service
from tests.task_types.cases import CASES
from tests.tiny_deltas import save_bare_backbone
from tests.tiny_tasks import WORDS

pytestmark = pytest.mark.process  # the child that checks uploads

Row = dict[str, Any]
SCORING: dict[str, Any] = {"k": 2, "n_samples": 10}
TRAINING: dict[str, Any] = {
    "precision": "float32",
    "epochs": 1,
    "batch_size": 8,
    "max_length": 16,
    "learning_rate": 1e-4,  # keeps the probe, which finds entities
}
TYPES = ("token-classification", "classification", "regression")
_CASES = [next(case for case in CASES if case.type == name) for name in TYPES]
SHORT = " ".join(_CASES[0].rows(1, 1)[0]["tokens"])
LONG = " ".join([SHORT] * 60)


class Jobs:
    """Jobs of several types on one backbone, and the same head deltas by the library."""

    def __init__(self, service: Service, backbone: Path, folder: Path) -> None:
        self.service, self.ids = service, {}
        source = resolve_model(backbone)
        self._source, self._bare = source, load_bare_backbone(source, device=torch.device("cpu"))
        self._bank = HeadBank(self._bare.model)
        self._records: dict[str, TaskRecord] = {}
        for case in _CASES:
            rows = case.rows(64, 1)
            (folder / case.type).mkdir()
            dataset = service.upload(folder / case.type, train=rows)
            spec = {"model": backbone.name, "dataset": dataset, **SCORING, "training": TRAINING}
            self.ids[case.type] = service.post("/jobs", json=spec)["id"]
            service.work()
            delta = finetune(
                model=backbone, train=rows, task=case.task, **SCORING, **TRAINING
            ).delta
            self._add(case.type, delta)

    def _add(self, name: str, delta: HeadDelta) -> None:
        self._bank.add(name, delta)
        self._records[name] = TaskRecord.of(delta, self._bare.model.config)

    def ask(self, *inputs: Mapping[str, Any], of: str = TYPES[0]) -> list[Row]:
        path = f"/jobs/{self.ids[of]}/predict"
        return list(self.service.post(path, json={"inputs": inputs})["data"])

    def expected(self, given: Mapping[str, Any], *, of: str = TYPES[0]) -> Row:
        """Answer an input by the library, one window at a time."""
        record = self._records[of]
        (encoded,) = record.load_encoder(self._source, self._bare.model).read(
            [given], truncate=True
        )
        logits = [self._bank.forward(collate([each]), [of])[0] for each in encoded.samples]
        answer = {"job": self.ids[of], **record.task.read_answer(logits, encoded)}
        return dict(about(answer))


def about(answer: Any) -> Any:
    """Compare the numbers of an answer approximately."""
    if isinstance(answer, dict):
        return {name: about(entry) for name, entry in answer.items()}
    if isinstance(answer, list):
        return [about(entry) for entry in answer]
    return pytest.approx(answer, abs=1e-3) if isinstance(answer, float) else answer


def without_index(answer: Mapping[str, Any]) -> Row:
    return {name: value for name, value in answer.items() if name != "index"}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    folder = tmp_path_factory.mktemp("entities")
    backbone = save_bare_backbone(folder / "models" / "tiny-bert")
    with running_service(folder, backbones={backbone.name: backbone}) as service:
        yield Jobs(service, backbone, folder)


class TestLongTexts:
    def test_beside_short_ones_are_answered_as_by_the_library(self, jobs: Jobs):
        inputs = [{"text": SHORT}, {"text": LONG}, {"tokens": LONG.split()}, {"text": WORDS[40]}]
        answers = jobs.ask(*inputs)
        assert [each["index"] for each in answers] == [0, 1, 2, 3]
        for answer, given in zip(answers, inputs, strict=True):
            assert without_index(answer) == jobs.expected(given)
        assert len(answers[0]["entities"]) == 2
        assert len(answers[1]["entities"]) > 30
        assert answers[2]["entities"] == about(answers[1]["entities"])
        assert len(answers[2]["tags"]) == len(LONG.split())
        assert answers[1]["tags"] is None

    def test_are_not_cut_where_truncate_is_off(self, jobs: Jobs):
        path = f"/jobs/{jobs.ids[TYPES[0]]}/predict"
        body = {"inputs": [{"text": LONG}], "truncate": False}
        (answer,) = jobs.service.post(path, json=body)["data"]
        assert without_index(answer) == jobs.expected({"text": LONG})

    def test_of_the_most_characters_are_answered(self, jobs: Jobs):
        whole = (LONG + " ") * 200
        (answer,) = jobs.ask({"text": whole[:100_000]})
        assert answer["entities"][-1]["end"] > 99_900

    def test_of_the_most_words_are_answered(self, jobs: Jobs):
        (answer,) = jobs.ask({"tokens": ["w"] * 100_000})
        assert len(answer["tags"]) == 100_000


class TestErrors:
    @pytest.mark.parametrize(
        ("given", "param", "message"),
        [
            ({"tokens": []}, "tokens", "at least 1"),
            ({"tokens": ["w1", ""]}, "tokens.1", "at least 1"),
            ({"tokens": ["w1", " "]}, "tokens.1", "the word is empty"),
            ({"tokens": ["w" * 50_000, "w" * 50_001]}, "tokens", "100001 characters"),
            ({"tokens": ["w1", 5]}, "tokens.1", "string"),
            ({"tokens": ["w1", "a\0b"]}, "tokens.1", "NUL"),
            ({"tokens": "w1"}, "tokens", "list"),
            ({"tokens": ["w1"], "text": "w1"}, "", "text"),
            ({"text": "w1", "text_pair": "w2"}, "text_pair", "one text, not text_pair"),
            ({"text": " "}, "text", "text is empty"),
            ({"image": "aGVsbG8="}, "text", "a text or a list of words"),
        ],
    )
    def test_are_of_their_item_alone(self, given: Row, param: str, message: str, jobs: Jobs):
        first, wrong, last = jobs.ask({"text": SHORT}, given, {"tokens": SHORT.split()})
        is_long = "characters" in message
        assert wrong["error"]["code"] == ("text_too_long" if is_long else "invalid_input")
        assert wrong["error"]["param"] == f"inputs.1.{param}".rstrip(".")
        assert message in wrong["error"]["message"]
        assert first["entities"] == about(last["entities"])

    @pytest.mark.parametrize("of", TYPES[1:])
    def test_words_are_for_taggers_alone(self, of: str, jobs: Jobs):
        wrong, right = jobs.ask({"tokens": SHORT.split()}, {"text": SHORT}, of=of)
        assert wrong["error"]["param"] == "inputs.0.text"
        assert without_index(right) == jobs.expected({"text": SHORT}, of=of)


class TestSeveralJobs:
    @pytest.mark.parametrize("text", [SHORT, LONG])
    def test_answer_one_text_each_in_its_way(self, text: str, jobs: Jobs):
        given = {"text": text}
        item = {"jobs": [jobs.ids[name] for name in TYPES], "input": given}
        (answer,) = jobs.service.post("/predict", json={"inputs": [item]})["data"]
        expected = [jobs.expected(given, of=name) for name in TYPES]
        assert [without_index(each) for each in answer["answers"]] == expected

    def test_one_that_reads_another_input_fails_alone(self, jobs: Jobs):
        given = {"tokens": SHORT.split()}
        item = {"jobs": [jobs.ids[name] for name in TYPES], "input": given}
        other = {"job": jobs.ids["classification"], "input": {"text": SHORT}}
        shared, alone = jobs.service.post("/predict", json={"inputs": [item, other]})["data"]
        tagged, *refused = shared["answers"]
        assert without_index(tagged) == jobs.expected(given)
        assert [each["error"]["code"] for each in refused] == ["invalid_input"] * 2
        assert without_index(alone) == jobs.expected({"text": SHORT}, of="classification")
