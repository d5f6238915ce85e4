"""Batch predictions with real processes: the result, SIGKILL, and a job that is deleted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from service.client import ApiError
from tests.integration.deployment import kill
from tests.integration.served import SPEC, Served

ROWS = 9000  # five parts of one job


pytestmark = [pytest.mark.process, pytest.mark.matrix]


@pytest.fixture(scope="module")
def job(service: Served, tmp_path_factory: pytest.TempPathFactory) -> str:
    dataset = service.push(tmp_path_factory.mktemp("splits"))
    return finished_job(service, dataset)


def finished_job(service: Served, dataset: str, **changes: Any) -> str:
    identifier = service.client.jobs.create({**SPEC, "dataset": dataset, **changes})["id"]
    for _ in service.client.jobs.watch(identifier):
        pass
    assert service.client.jobs.get(identifier)["status"] == "succeeded"
    return identifier


def rows_file(service: Served, job: str, folder: Path, *, rows: int) -> tuple[str, list[Any]]:
    """Push rows of the job's column, one too long; return the data set's id and the rows."""
    (column,) = service.client.jobs.get(job)["spec"]["task"]["text"]
    made = [{"key": n, column: f"row {n} is about words"} for n in range(rows)]
    made[1][column] = "too many words " * 20
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in made))
    return str(service.client.datasets.push(path)["id"]), made


def end_of(service: Served, prediction: str) -> Any:
    *_, last = service.client.predictions.watch(prediction)
    return last


def test_a_killed_process_resumes_and_nothing_is_lost(service: Served, job: str, tmp_path: Path):
    dataset, rows = rows_file(service, job, tmp_path, rows=ROWS)
    posted = service.client.predictions.create(
        dataset, [job], result_format="jsonl", truncate=False
    )
    assert posted["status"] == "queued"
    with pytest.raises(ApiError, match="still reads"):
        service.client.datasets.delete(dataset)

    seen = service.deployment.wait_for(
        lambda: service.client.predictions.get(posted["id"])["progress"]["rows"],
        message="a first part",
    )
    assert seen < ROWS
    kill([service.part("infer")])
    done = end_of(service, posted["id"])

    assert (done["status"], done["progress"]["rows"]) == ("succeeded", ROWS)
    found = service.client.predictions.download(posted["id"], tmp_path / "out.jsonl")
    assert found.sha256 == done["artifact"]["sha256"]
    answered = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    column = next(name for name in rows[0] if name != "key")
    kept = [{"key": row["key"], column: row[column]} for row in answered]
    assert kept == rows
    assert answered[1]["predicted_error"]["code"] == "text_too_long"
    assert not any("predicted_error" in row for n, row in enumerate(answered) if n != 1)
    (asked,) = service.client.jobs.predict(job, [{"text": rows[0][column]}])["data"]
    assert answered[0]["predicted_label"] == asked["label"]
    assert answered[0]["predicted_score"] == pytest.approx(asked["score"], abs=1e-4)


def test_several_jobs_answer_in_columns_of_their_own(service: Served, job: str, tmp_path: Path):
    other = finished_job(service, service.client.jobs.get(job)["spec"]["dataset"], k=2)
    dataset, rows = rows_file(service, job, tmp_path, rows=20)
    prediction = service.client.predictions.create(
        dataset, [job, other], truncate=False, name="both"
    )

    done = end_of(service, prediction["id"])
    assert done["status"] == "succeeded", done
    service.client.predictions.download(prediction["id"], tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.num_rows == len(rows)
    for each in (job, other):
        assert table[f"predicted_label.{each}"].null_count == 1
        assert table[f"predicted_error.{each}"].null_count == len(rows) - 1

    service.client.predictions.delete(prediction["id"])
    service.client.jobs.delete(other)
    with pytest.raises(ApiError) as refused:
        service.client.predictions.create(dataset, [other])
    assert refused.value.status == 404


def test_a_running_one_is_cancelled(service: Served, job: str, tmp_path: Path):
    dataset, _ = rows_file(service, job, tmp_path, rows=ROWS)
    prediction = service.client.predictions.create(dataset, [job])["id"]
    service.deployment.wait_for(
        lambda: service.client.predictions.get(prediction)["status"] == "running",
        message="a running prediction",
    )
    service.client.predictions.cancel(prediction)
    done = end_of(service, prediction)
    assert (done["status"], done["artifact"]) == ("cancelled", None)


def test_answers_of_a_job_that_is_deleted_carry_its_error(
    service: Served, job: str, tmp_path: Path
):
    other = finished_job(service, service.client.jobs.get(job)["spec"]["dataset"])
    dataset, _ = rows_file(service, job, tmp_path, rows=ROWS)
    prediction = service.client.predictions.create(dataset, [other], result_format="jsonl")["id"]
    service.deployment.wait_for(
        lambda: service.client.predictions.get(prediction)["progress"]["rows"],
        message="a first part",
    )
    service.client.jobs.delete(other)
    assert end_of(service, prediction)["status"] == "succeeded"
    service.client.predictions.download(prediction, tmp_path / "out.jsonl")
    answered = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(answered) == ROWS
    assert "predicted_label" in answered[0]
    assert answered[-1]["predicted_error"]["code"] == "job_deleted"
