"""Every task type in every place; docs/task-types.md has a table of these tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import PeftModel

from hifi import HeadBank, HeadTuner, finetune, select_heads
from hifi.backbones.devices import resolve_device
from hifi.backbones.models import resolve_model
from hifi.cli import main
from hifi.data.margins import standard_error
from hifi.data.settings import Hyperparameters
from hifi.data.splits import load_split
from hifi.data.task_types import find_task_type, task_types
from hifi.deltas.loading import load_backbone, load_bare_backbone, write_merged_model
from hifi.errors import DataError
from hifi.serving.prediction import TaskRecord, collate
from hifi.tasks import TaskSpec, infer
from hifi.training.preparation import prepare
from tests.in_process import Service, running_service
from tests.root import ROOT
from tests.task_types.cases import CASES, Answer, Case, Row
from tests.tiny_deltas import save_bare_backbone
from tests.tiny_tasks import save_image_model, write_rows

if TYPE_CHECKING:
    from hifi.training.finetuning import FinetuneResult

EACH = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
SCORING: dict[str, Any] = {"k": 2, "n_samples": 10}
TRAINING: dict[str, Any] = {
    "precision": "float32",
    "epochs": 4,
    "batch_size": 8,
    "max_length": 32,
    "learning_rate": 0.01,
}
SETTINGS = {**SCORING, **TRAINING}
# States of a tiny random model hardly vary, so that its probe's weights are in the hundreds.
CLOSE = 1e-3


class Made:
    """What the tests share: backbones on disk, and a fine-tune of each case."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.backbones = {
            "text": save_bare_backbone(folder / "models" / "tiny-bert"),
            "image": save_image_model(folder / "models" / "tiny-vit"),
        }
        self.tuned = cache(self._tune)
        self.merged = cache(self._merge)

    def backbone(self, case: Case) -> Path:
        return self.backbones[case.reads]

    def train(self, case: Case) -> list[Row]:
        return case.rows(64, 1)

    def validation(self, case: Case) -> list[Row]:
        return case.rows(24, 2)

    def _tune(self, case: Case) -> FinetuneResult:
        return finetune(
            model=self.backbone(case),
            train=self.train(case),
            validation=self.validation(case),
            task=case.task,
            **SETTINGS,
        )

    def _merge(self, case: Case) -> Path:
        """Write the merged model of a case, and return its folder."""
        folder = self.folder / f"merged-{case.name}"
        delta = self.tuned(case).delta
        backbone = load_backbone(delta, model=str(self.backbone(case)), revision=None)
        write_merged_model(folder, delta=delta, backbone=backbone)
        return folder

    def plain_answers(self, case: Case) -> list[Answer]:
        """Return the answers of the merged model by a plain pipeline, to the validation rows."""
        return case.pipeline(self.merged(case), self.validation(case))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("task-types"))


@pytest.fixture(scope="module")
def service(made: Made) -> Iterator[Service]:
    backbones = {path.name: path for path in made.backbones.values()}
    with running_service(made.folder, backbones=backbones) as running:
        yield running


@pytest.fixture
def signed_in(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands use the service."""
    monkeypatch.setenv("HIFI_URL", service.url)
    monkeypatch.setenv("HIFI_API_KEY", service.member.secret)


def about(answer: Any) -> Any:
    """Compare the numbers of an answer approximately."""
    if isinstance(answer, dict):
        return {name: about(entry) for name, entry in answer.items()}
    if isinstance(answer, list):
        return [about(entry) for entry in answer]
    return pytest.approx(answer, abs=CLOSE) if isinstance(answer, float) else answer


def test_every_type_has_a_case():
    assert list(dict.fromkeys(case.type for case in CASES)) == [each.name for each in task_types()]


@EACH
def test_finetune(case: Case, made: Made):
    result, declared = made.tuned(case), find_task_type(case.type)
    assert result.metrics.keys() == {*declared.metrics, "loss"}
    assert result.metrics[declared.metrics[0]] > 0.9
    assert (result.delta.metadata.task or {})["type"] == case.type


@EACH
def test_own_loop(case: Case, made: Made):
    ready = prepare(
        resolve_model(str(made.backbone(case))),
        spec=TaskSpec.of(case.task),
        train=made.train(case),
        validation=None,
        settings=Hyperparameters(**TRAINING),
        device=resolve_device("cpu"),
    )
    model, task = ready.loaded.model, ready.data.task
    batches = [ready.data.train.batch(range(start, start + 8)) for start in range(0, 32, 8)]
    selection = select_heads(model, [dict(batch.inputs) for batch in batches], k=2)
    tuner = HeadTuner(model, selection, task_head=ready.loaded.task_head_modules)
    optimizer = torch.optim.AdamW(tuner.parameters(), lr=0.01)
    losses = []
    for batch in batches * 3:
        loss = task.loss(task.logits_of(model(**batch.inputs)), batch.targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-4:]) < sum(losses[:4])
    delta = tuner.delta(task={"type": case.type})
    assert delta.metadata.labels == (None if task.labels is None else list(task.labels))
    plain = tuner.detach().eval()
    again = case.head.from_pretrained(made.backbone(case), config=plain.config).eval()
    delta.merge(again)
    own, merged = plain.state_dict(), again.state_dict()
    assert own.keys() == merged.keys()
    assert all(own[name].equal(merged[name]) for name in own)


@EACH
def test_hifi_tune(case: Case, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    columns = {name: value for name, value in case.task.items() if name != "type"}
    words = [word for name, value in columns.items() for word in (f"--{name}", *_listed(value))]
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    train = write_rows(tmp_path / "train", made.train(case))
    validation = write_rows(tmp_path / "validation", made.validation(case))
    out = tmp_path / "task.safetensors"
    files = ["--train", str(train), "--validation", str(validation), "--out", str(out)]
    command = ["tune", "--model", str(made.backbone(case)), "--task", case.type]
    assert main([*command, *words, *options, *files, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    expected = made.tuned(case)
    assert document["result"]["metrics"] == dict(expected.metrics)
    expected.delta.save(tmp_path / "expected.safetensors")
    assert out.read_bytes() == (tmp_path / "expected.safetensors").read_bytes()


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


@EACH
def test_inference_of_the_columns(case: Case, made: Made):
    found = infer(TaskSpec(), load_split(made.train(case), split="train"))
    expected = TaskSpec.of(case.task)
    assert (found.type, found.columns) == (case.inferred, expected.columns)


@EACH
@pytest.mark.process  # the child that checks uploads
def test_bad_rows(case: Case, made: Made, service: Service, tmp_path: Path):
    row, reason = case.bad
    rows = [*made.train(case), row]
    with pytest.raises(DataError, match=reason) as caught:
        finetune(model=made.backbone(case), train=rows, task=case.task, **SETTINGS)
    assert caught.value.row == len(rows)
    path = write_rows(tmp_path / "train", rows)
    files = {"train": (path.name, path.read_bytes())}
    answer = service.client.post("/datasets", files=files)
    assert answer.status_code == 422
    assert reason in answer.json()["detail"]
    assert f"row {len(rows)}" in answer.json()["detail"]


@EACH
def test_yardsticks_and_head_start(case: Case, made: Made):
    result, declared = made.tuned(case), find_task_type(case.type)
    assert result.yardsticks.keys() == {"majority", "probe"}
    for metrics in result.yardsticks.values():
        assert metrics.keys() == result.metrics.keys()
    metric = declared.metrics[0]
    margin = standard_error(len(made.validation(case)))
    assert result.metrics[metric] >= result.yardsticks["probe"][metric] - margin
    assert result.yardsticks["probe"]["loss"] < result.yardsticks["majority"]["loss"]


@EACH
def test_report(case: Case, made: Made):
    report = made.tuned(case).report
    if not case.reported:
        assert report is None
        return
    assert report is not None
    assert tuple(scores.label for scores in report.per_class) == case.reported
    assert all(scores.support for scores in report.per_class)


@EACH
def test_mixed_batches(case: Case, made: Made):
    """A batch of this type, of another task and of none, against merged models alone."""
    other = finetune(
        model=made.backbone(case),
        train=case.rows(16, 3),
        task=case.task,
        **{**SETTINGS, "epochs": 1, "seed": 5},
    )
    source = resolve_model(str(made.backbone(case)))
    bare = load_bare_backbone(source, device=torch.device("cpu")).model
    bank = HeadBank(bare)
    bank.add("mine", made.tuned(case).delta)
    bank.add("other", other.delta)
    record = TaskRecord.of(made.tuned(case).delta, bare.config)
    inputs = [dict(case.input(row)) for row in made.validation(case)]
    encoded = record.load_encoder(source, bare).read(inputs, truncate=True)
    names = ["mine", "other", None]
    samples = [sample for given in encoded for sample in given.samples for _ in names]
    logits = iter(bank.forward(collate(samples), names * (len(samples) // 3))[::3])
    answers = [
        record.task.read_answer(list(islice(logits, len(given.samples))), given)
        for given in encoded
    ]
    assert answers == about(made.plain_answers(case))


@EACH
def test_merge(case: Case, made: Made):
    """The plain pipeline of a merged model is as good as the fine-tune was measured."""
    result, rows = made.tuned(case), made.validation(case)
    answers = made.plain_answers(case)
    assert len(answers) == len(rows)
    merged = case.head.from_pretrained(made.merged(case))
    assert merged.config.problem_type == find_task_type(case.type).problem_type
    labels = result.delta.metadata.labels
    if labels is not None:
        assert merged.config.id2label == dict(enumerate(labels))


@EACH
def test_lora(case: Case, made: Made, tmp_path: Path):
    delta, folder = made.tuned(case).delta, made.backbone(case)
    backbone = load_backbone(delta, model=str(folder), revision=None)
    delta.to_lora(tmp_path / "adapter", backbone.model)
    merged = case.head.from_pretrained(made.merged(case)).eval()
    fresh = load_backbone(delta, model=str(folder), revision=None).model
    adapted = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    ready = prepare(
        resolve_model(str(folder)),
        spec=TaskSpec.of(case.task),
        train=made.train(case),
        validation=None,
        settings=Hyperparameters(**TRAINING),
        device=resolve_device("cpu"),
    )
    inputs = ready.data.train.batch(range(8)).inputs
    logits_of = ready.data.task.logits_of
    with torch.no_grad():
        own, expected = (logits_of(model(**inputs)) for model in (adapted, merged))
    assert own.allclose(expected, atol=CLOSE)


@EACH
@pytest.mark.process  # as above
def test_service(case: Case, made: Made, service: Service, tmp_path: Path):
    """A job whose task is inferred: dry run, result, and predictions as of the merged model."""
    splits = {"train": made.train(case), "validation": made.validation(case)}
    dataset = service.upload(tmp_path, **splits)
    spec = {"model": made.backbone(case).name, "dataset": dataset, **SCORING, "training": TRAINING}
    estimate = service.post("/jobs?dry_run=true", json=spec)
    assert estimate["spec"]["task"]["type"] == case.type
    # How many samples long texts make is known once they are tokenised.
    has_windows = find_task_type(case.type).reads_windows
    assert (estimate["steps"] is None) == has_windows
    undecided = {name: value for name, value in TRAINING.items() if name != "epochs"}
    estimate = service.post("/jobs?dry_run=true", json={**spec, "training": undecided})
    assert (estimate["spec"]["training"]["epochs"] is None) == has_windows
    assert estimate["trainable_parameters"] == made.tuned(case).trainable_parameters
    job = service.post("/jobs", json=spec)["id"]
    service.work()
    document = service.get(f"/jobs/{job}")
    assert document["status"] == "succeeded", document
    result, expected = document["result"], made.tuned(case)
    assert result["metrics"] == dict(expected.metrics)
    report = expected.report
    assert result["report"] == (None if report is None else report.to_json())
    assert result["yardsticks"]["probe"] == dict(expected.yardsticks["probe"])
    inputs = [case.input(row) for row in splits["validation"]]
    answers = service.post(f"/jobs/{job}/predict", json={"inputs": inputs})["data"]
    plain = made.plain_answers(case)
    expected_answers = [{"index": i, "job": job, **each} for i, each in enumerate(plain)]
    assert answers == about(expected_answers)
    whole = service.post("/predict", json={"inputs": [{"job": job, "input": inputs[0]}]})
    assert whole["data"] == about(expected_answers[:1])


@EACH
@pytest.mark.process  # as above
@pytest.mark.usefixtures("signed_in")
def test_command_line(
    case: Case, made: Made, service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """``hifi jobs submit``, ``show`` and ``predict`` on a file of training rows."""
    splits = {"train": made.train(case), "validation": made.validation(case)}
    dataset = service.upload(tmp_path, **splits)
    model, settings = made.backbone(case).name, {**SCORING, **TRAINING}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    submit = ["jobs", "submit", "--model", model, "--dataset", dataset, *options]
    assert main([*submit, "--json"]) == 0
    job = json.loads(capsys.readouterr().out)["id"]
    service.work()
    assert main(["jobs", "show", job]) == 0
    shown = capsys.readouterr().out
    assert f"{case.type} of" in shown
    assert ("split, " in shown) == bool(case.reported)
    rows = write_rows(tmp_path / "rows", splits["validation"])
    predict = ["jobs", "predict", job, "--file", str(rows)]
    assert main([*predict, "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)["data"]
    plain = made.plain_answers(case)
    assert [{name: each[name] for name in plain[0]} for each in answers] == about(plain)


# What docs/task-types.md calls each of these tests.
PLACES = {
    "`finetune`": test_finetune,
    "your own training loop": test_own_loop,
    "`hifi tune`": test_hifi_tune,
    "the task inferred from the columns": test_inference_of_the_columns,
    "bad rows refused by name, at an upload too": test_bad_rows,
    "yardsticks, and a start from the probe": test_yardsticks_and_head_start,
    "a report of each class": test_report,
    "batches that mix tasks": test_mixed_batches,
    "merged into a plain model, with its `pipeline`": test_merge,
    "LoRA adapter for stock PEFT": test_lora,
    "jobs: dry run, result, predictions": test_service,
    "`hifi jobs submit`, `show` and `predict`": test_command_line,
}


def table() -> list[str]:
    """Return the rows of the documentation's table: a mark for each test of a type in a place."""
    rows = [["", *(case.name for case in CASES)], ["---"] * (len(CASES) + 1)]
    for words, test in PLACES.items():
        has_any = test is not test_report
        marks = ["✓" if has_any or case.reported else "none" for case in CASES]
        rows.append([words, *marks])
    return [f"| {' | '.join(row)} |".replace("|  |", "| |").replace(" --- ", "---") for row in rows]


class TestDocumentation:
    def test_has_the_table_of_these_tests(self):
        page = (ROOT / "docs" / "task-types.md").read_text(encoding="utf-8")
        assert "\n".join(table()) in page

    def test_names_every_test_of_a_place(self):
        marked = {name for name, found in globals().items() if hasattr(found, "pytestmark")}
        assert {test.__name__ for test in PLACES.values()} == marked - {"TestDocumentation"}
