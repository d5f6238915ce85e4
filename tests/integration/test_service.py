"""The whole embedded service: the main job from upload to merged model, and crashes."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.client import ApiError
from tests.integration.deployment import kill
from tests.integration.served import SPEC, Served, is_gone, work_events
from tests.waiting import patience

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("service"),
]


@dataclass(frozen=True)
class Main:
    """The main job, as its owner sees it."""

    dataset: str
    job: dict[str, Any]
    events: list[Any]
    hashes: dict[str, str]
    seconds_to_prediction: float  # after its end was seen, the backbone not in memory yet


@pytest.fixture(scope="module")
def main_job(service: Served, tmp_path_factory: pytest.TempPathFactory) -> Main:
    dataset = service.push(tmp_path_factory.mktemp("data"))
    job = service.client.jobs.create({**SPEC, "dataset": dataset})
    events = list(service.client.jobs.watch(job["id"]))
    ended = time.monotonic()
    service.client.jobs.predict(job["id"], [{"text": "the first"}])
    seconds = time.monotonic() - ended
    done = dict(service.client.jobs.get(job["id"]))
    assert done["status"] == "succeeded", done["error"]
    return Main(dataset, done, events, service.hashes(job["id"]), seconds)


@pytest.fixture(scope="module")
def merged(
    service: Served, main_job: Main, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Return the merged model of the main job."""
    folder = tmp_path_factory.mktemp("merged")
    service.client.jobs.download_merged(main_job.job["id"], folder / "merged.tar")
    with tarfile.open(folder / "merged.tar") as tar:
        tar.extractall(folder / "model", filter="data")
    yield folder / "model"
    shutil.rmtree(folder)


class TestMainJob:
    def test_is_watched_from_queue_to_end(self, service: Served, main_job: Main):
        kinds = [event["type"] for event in main_job.events]
        assert kinds[0] == kinds[-1] == "status"
        assert main_job.events[-1]["data"]["status"] == "succeeded"
        page = service.client.jobs.events(main_job.job["id"], limit=100)
        assert page["data"] == main_job.events

    def test_shows_scores_and_the_selected_heads(self, service: Served, main_job: Main):
        heads = service.client.jobs.heads(main_job.job["id"])
        assert [len(layer["importance"]) for layer in heads["layers"]] == [12] * 6
        assert [len(layer["selected"]) for layer in heads["layers"]] == [1] * 6
        assert heads["artifact"]["sha256"] == main_job.hashes["float32"]
        assert heads["trainable_parameters"] == main_job.job["selection"]["trainable_parameters"]

    @pytest.mark.parametrize("encoding", ["float32", "bfloat16", "int8"])
    def test_its_delta_matches_the_jobs_metadata(
        self, service: Served, main_job: Main, encoding: str, tmp_path: Path
    ):
        file = tmp_path / "delta.safetensors"
        service.client.jobs.download_delta(main_job.job["id"], file, encoding=encoding)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert digest == main_job.hashes[encoding]

    def test_the_dry_run_predicted_its_size(self, service: Served, main_job: Main):
        estimate = service.client.jobs.dry_run({**SPEC, "dataset": main_job.dataset})
        told = main_job.job["selection"]["trainable_parameters"]
        assert estimate["trainable_parameters"] == told
        size = main_job.job["artifact"]["bytes"]
        assert estimate["artifact"]["bytes"]["float32"] == pytest.approx(size, rel=0.03)
        assert estimate["seconds"] is not None

    def test_the_merged_model_answers_as_its_evaluation_did(
        self, main_job: Main, merged: Path, tmp_path: Path
    ):
        texts, labels = _validation(tmp_path)
        named = _labels(merged, texts)
        right = sum(name == label for name, label in zip(named, labels, strict=True))
        assert right / len(labels) == main_job.job["result"]["metrics"]["accuracy"]

    def test_it_predicts_as_the_merged_model(
        self, service: Served, main_job: Main, merged: Path, tmp_path: Path
    ):
        texts, _ = _validation(tmp_path)
        inputs = [{"text": text} for text in texts]
        answers = service.client.jobs.predict(main_job.job["id"], inputs)["data"]
        assert [answer["label"] for answer in answers] == _labels(merged, texts)

    def test_it_predicts_seconds_after_it_has_succeeded(self, main_job: Main):
        assert main_job.seconds_to_prediction < patience(20)

    def test_a_deleted_one_predicts_no_more(self, service: Served, main_job: Main):
        jobs = service.client.jobs
        spec = {**SPEC, "dataset": main_job.dataset, "training": {**SPEC["training"], "epochs": 1}}
        job_id = jobs.create(spec)["id"]
        list(jobs.watch(job_id))
        items = [{"job": name, "input": {"text": "a"}} for name in (job_id, main_job.job["id"])]
        assert all("label" in answer for answer in service.client.predict(items)["data"])
        jobs.delete(job_id)
        gone, there = service.client.predict(items)["data"]
        assert gone["error"]["code"] == "not_found"
        assert "label" in there
        with pytest.raises(ApiError) as caught:
            jobs.predict(job_id, [{"text": "a"}])
        assert caught.value.status == 404

    def test_the_lora_adapter_is_one(self, service: Served, main_job: Main, tmp_path: Path):
        file = tmp_path / "lora.tar"
        service.client.jobs.download_lora(main_job.job["id"], file)
        with tarfile.open(file) as tar:
            assert sorted(tar.getnames()) == ["adapter_config.json", "adapter_model.safetensors"]


def _validation(folder: Path) -> tuple[list[str], list[str]]:
    """Return texts and labels of the main job's validation split."""
    from pyarrow import parquet  # noqa: PLC0415 - for these tests alone

    from tests.integration.jobs import write_splits  # noqa: PLC0415

    rows = parquet.read_table(write_splits(folder)[1]).to_pydict()
    return rows["text"], [str(label) for label in rows["label"]]


def _labels(model: Path, texts: list[str]) -> list[str]:
    """Predict with plain transformers."""
    import torch  # noqa: PLC0415 - for these tests alone
    from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: PLC0415

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSequenceClassification.from_pretrained(model).eval()
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        predicted = network(**inputs).logits.argmax(-1).tolist()
    return [network.config.id2label[index] for index in predicted]


class TestIdempotency:
    def test_fifty_posts_with_one_key_are_one_job(self, service: Served, main_job: Main):
        ids: list[str] = []
        start = threading.Barrier(50)

        def post() -> None:
            start.wait()
            job = service.client.jobs.create(
                {**SPEC, "dataset": main_job.dataset, "name": "fifty"}, idempotency_key="fifty"
            )
            ids.append(job["id"])

        threads = [threading.Thread(target=post) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(ids) == 50
        assert len(set(ids)) == 1
        listed = service.client.jobs.list(limit=100)["data"]
        assert [job["name"] for job in listed].count("fifty") == 1
        service.client.jobs.cancel(ids[0])


class TestCrash:
    def test_of_the_gateway_is_invisible_to_clients(self, service: Served, main_job: Main):
        job = service.client.jobs.create({**SPEC, "dataset": main_job.dataset})
        seen: list[Any] = []
        for event in service.client.jobs.watch(job["id"]):
            seen.append(event)
            if len(seen) in (2, 6, 20):
                kill([service.part("--only gateway")])
                again = service.client.jobs.create(
                    {**SPEC, "dataset": main_job.dataset, "name": "posted to a killed gateway"},
                    idempotency_key=f"key-{len(seen)}",
                )
                # A worker may have claimed it by then.
                cancelled = service.client.jobs.cancel(again["id"])["status"]
                assert cancelled in ("cancelled", "cancelling")
        assert [event["id"] for event in seen] == [
            event["id"] for event in service.client.jobs.events(job["id"], limit=100)["data"]
        ]
        assert service.hashes(job["id"]) == main_job.hashes

    @pytest.mark.parametrize("phases", [("validating", "step"), ("selection", "metrics")])
    def test_of_everything_at_once_changes_nothing(
        self, service: Served, main_job: Main, phases: tuple[str, str]
    ):
        job = service.client.jobs.create({**SPEC, "dataset": main_job.dataset})
        watch = service.client.jobs.watch(job["id"])
        seen = []
        for phase in phases:
            for event in watch:
                seen.append(event)
                if phase in (event["type"], event["data"].get("status")):
                    break
            service.kill_everything()
            service.start_again()
            service.wait_until_ready()
        seen.extend(watch)
        assert seen[-1]["data"]["status"] == "succeeded"
        ids = [event["id"] for event in seen]
        assert len(ids) == len(set(ids))
        assert sorted(work_events(seen), key=str) == sorted(work_events(main_job.events), key=str)
        assert service.hashes(job["id"]) == main_job.hashes


class TestShutdown:
    def test_hands_the_job_back_and_exits_with_0(self, service: Served, main_job: Main):
        job = service.client.jobs.create({**SPEC, "dataset": main_job.dataset})
        for event in service.client.jobs.watch(job["id"]):
            if event["type"] == "step":
                break
        parts = service.parts()
        assert service.stop() == 0
        assert all(is_gone(pid) for pid in parts)
        service.start_again()
        service.wait_until_ready()
        *_, last = service.client.jobs.watch(job["id"])
        assert last["data"]["status"] == "succeeded"
        assert service.client.jobs.get(job["id"])["attempt"] == 1
        assert service.hashes(job["id"]) == main_job.hashes


class TestRefusals:
    def test_name_the_field(self, service: Served, main_job: Main):
        with pytest.raises(ApiError) as caught:
            service.client.jobs.create({**SPEC, "dataset": main_job.dataset, "k": 13})
        assert (caught.value.status, caught.value.param) == (422, "k")
