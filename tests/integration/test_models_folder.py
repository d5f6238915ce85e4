"""Backbones that are copied into a running service, and removed again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.client import ApiError
from tests.integration.served import Served, served
from tests.tiny_tasks import save_text_model
from tests.waiting import eventually, patience

pytestmark = [pytest.mark.process, pytest.mark.timeout(1200)]
SECONDS = 10.0
FAULT_SECONDS = 20.0  # only then is a folder that cannot be used no longer one that is being copied
SPEC = {"k": 1, "n_samples": 16, "training": {"epochs": 1, "batch_size": 32, "max_length": 16}}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("served")) as service:
        yield service


def listed(service: Served) -> set[str]:
    return {backbone["id"] for backbone in service.client.models.list()["data"]}


def unavailable(service: Served) -> dict[str, tuple[str, str]]:
    entries = service.client.models.list()["unavailable"]
    return {entry["id"]: (entry["status"], entry["reason"]) for entry in entries}


def test_a_copied_backbone_is_offered_used_and_withdrawn(service: Served, tmp_path: Path):
    eventually(lambda: listed(service), seconds=120)  # the process that reads models has started
    models = Path(service.deployment.home) / "models"
    models.mkdir(exist_ok=True)
    names = {0: "dull", 1: "bright"}
    shutil.copytree(save_text_model(tmp_path / "m", id2label=names), models / "own-head")
    broken = save_text_model(tmp_path / "broken")
    (broken / "tokenizer.json").unlink()
    shutil.copytree(broken, models / "broken")
    eventually(lambda: "own-head" in listed(service), seconds=SECONDS)
    eventually(
        lambda: unavailable(service).get("broken", ("",))[0] == "unusable", seconds=FAULT_SECONDS
    )
    assert "tokenizer" in unavailable(service)["broken"][1]
    assert str(models) not in unavailable(service)["broken"][1]

    dataset = service.push(tmp_path)
    with pytest.raises(ApiError, match=r"the model 'broken' cannot be used: .*tokenizer"):
        service.client.jobs.create({**SPEC, "model": "broken", "dataset": dataset})
    job = service.client.jobs.create({**SPEC, "model": "own-head", "dataset": dataset})
    list(service.client.jobs.watch(job["id"]))
    done = service.client.jobs.get(job["id"])
    assert done["status"] == "succeeded"
    assert "labels_by_number" in [warning["code"] for warning in done["warnings"]]
    (answer,) = service.client.jobs.predict(
        job["id"], [{"text": "rich"}], timeout_seconds=min(300, patience(60))
    )["data"]
    assert set(answer["scores"]) == set(names.values())

    shutil.rmtree(models / "own-head")
    eventually(lambda: "own-head" not in listed(service), seconds=SECONDS)
    with pytest.raises(ApiError, match="no model 'own-head'"):
        service.client.jobs.create({**SPEC, "model": "own-head", "dataset": dataset})
