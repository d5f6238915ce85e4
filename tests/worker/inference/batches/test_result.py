"""worker.inference.batches.result: parts, and results as Parquet and as JSON lines."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from store.predictions.spec import Format, PredictingJob, PredictionSpec
from worker.inference.batches.result import read_parts, write_part, write_result

GOOD = {"label": "x", "score": 0.5, "scores": {"x": 0.5, "y": 0.5}}
BAD = {"error": {"code": "invalid_input", "message": "no text", "param": None}}


def spec(kind: Format, *types: str) -> PredictionSpec:
    jobs = [PredictingJob(id=f"job_{n}", type=type_, columns={}) for n, type_ in enumerate(types)]
    return PredictionSpec(split="train", format=kind, truncate=True, jobs=jobs)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    columns: dict[str, Any] = {"t": ["a", "b"], "raw": [b"\x00", None], "at": [moment, None]}
    parquet.write_table(pa.table(columns), tmp_path / "source.parquet")
    return tmp_path / "source.parquet"


def test_parts_are_read_in_order_and_equal_answers_give_equal_bytes(tmp_path: Path):
    paths = [tmp_path / name for name in "abc"]
    for path, rows in zip(paths, ([[GOOD], [BAD]], [[BAD]], [[GOOD], [BAD]]), strict=True):
        write_part(path, rows)
    assert list(read_parts(paths[:2])) == [[GOOD], [BAD], [BAD]]
    assert paths[0].read_bytes() == paths[2].read_bytes()


def test_parquet_has_the_columns_of_each_job(source: Path, tmp_path: Path):
    answers = iter([[GOOD, {"value": 1.5}], [BAD, BAD]])
    out = tmp_path / "out"
    kinds = ("classification", "regression")
    write_result(out, source=source, answers=answers, spec=spec("parquet", *kinds))
    rows = parquet.read_table(out).to_pylist()
    assert rows[0]["t"] == "a"
    assert rows[0]["predicted_label.job_0"] == "x"
    assert json.loads(rows[0]["predicted_scores.job_0"]) == GOOD["scores"]
    assert rows[0]["predicted_value.job_1"] == 1.5
    assert rows[1]["predicted_error.job_1"] == "no text (invalid_input)"
    assert rows[1]["predicted_label.job_0"] is None


def test_json_lines_have_what_json_has_not(source: Path, tmp_path: Path):
    out = tmp_path / "out"
    answers = iter([[GOOD], [BAD]])
    write_result(out, source=source, answers=answers, spec=spec("jsonl", "classification"))
    first, second = map(json.loads, out.read_text().splitlines())
    assert first["raw"] == "AA=="
    assert first["at"].startswith("2026-01-02T00:00:00")
    assert first["predicted_label"] == "x"
    assert second["predicted_error"] == BAD["error"]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("count", [1, 3])
def test_refuses_another_number_of_answers(source: Path, tmp_path: Path, kind: Format, count: int):
    answers = iter([[GOOD]] * count)
    with pytest.raises(ValueError, match=r"answers|shorter|length|longer"):
        write_result(
            tmp_path / "out", source=source, answers=answers, spec=spec(kind, "classification")
        )
