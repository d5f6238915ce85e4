"""service.jobs.estimates: against what the library trains and writes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hifi import finetune
from service.jobs.admission import Admission
from service.jobs.estimates import Rates, estimate, estimate_at, measure_rates
from store.jobs.spec import TaskFields
from store.states import JobStatus
from store.tables import Backbone, Job
from tests.store.queues import NEW
from tests.tiny_tasks import image_rows, text_rows
from worker.engine.descriptions import describe_backbone

if TYPE_CHECKING:
    from store.database.connection import Database
    from tests.service.gateways import Member

UNKNOWN = Rates(samples_per_second=None, selection_seconds=None)


def admission(
    backbone: Backbone | None,
    *,
    task: str = "classification",
    labels: int | None = 2,
    rows: int | None = 100,
    **spec: Any,
) -> Admission:
    """Return an admitted job."""
    document: dict[str, Any] = {
        "k": 3,
        "budget": None,
        "strategy": "layer-wise",
        "n_samples": 50,
        "training": {"epochs": 3, "batch_size": 32},
        **spec,
    }
    new_job = replace(NEW, spec=document)
    return Admission(
        new_job=new_job,
        backbone=backbone,
        task=TaskFields.model_validate({"type": task}),
        train_rows=rows,
        num_labels=labels,
    )


def described(path: Path) -> Backbone:
    """Return the row that a worker writes for a backbone."""
    return Backbone(**vars(describe_backbone(path.name, path)))


TEXTS, NUMBERS = text_rows(8), [{**row, "label": row["label"] + 0.5} for row in text_rows(8)]


class TestSizes:
    @pytest.mark.parametrize(
        ("model", "task", "rows", "labels", "choice"),
        [
            ("minilm", "classification", TEXTS, 2, (3, "layer-wise")),
            ("minilm", "classification", text_rows(8, labels=(1, 2, 3, 4)), 4, (12, "mid-top")),
            ("minilm", "regression", NUMBERS, 1, (1, "layer-wise")),
            ("minilm", "classification", TEXTS, 2, (7, "budget")),
            ("stories260K-llama", "classification", TEXTS, 2, (2, "mid-top")),
            ("vit-cifar10-4L4H64", "image-classification", image_rows(8), 2, (2, "layer-wise")),
        ],
    )
    def test_are_those_of_the_library(  # noqa: PLR0917 - one table
        self, model, task, rows, labels, choice, request: pytest.FixtureRequest, tmp_path: Path
    ):
        count, strategy = choice
        counts = {"k": None, "budget": None, "budget" if strategy == "budget" else "k": count}
        if model == "minilm":
            path = request.getfixturevalue("minilm_path")
        else:
            path = request.getfixturevalue("test_data") / "models" / model
        result = finetune(
            model=path,
            train=rows,
            task=task,
            **counts,
            strategy=strategy,
            n_samples=2,
            epochs=1,
            batch_size=8,
            max_length=16,
        )
        told = estimate_at(
            admission(described(path), task=task, labels=labels, **counts, strategy=strategy),
            rates=UNKNOWN,
        )
        assert told.trainable_parameters == result.trainable_parameters
        assert told.fraction == pytest.approx(result.fraction, rel=1e-9)
        assert told.artifact is not None
        for encoding, size in told.artifact.bytes.items():
            result.delta.save(tmp_path / encoding, encoding=encoding)
            assert size == pytest.approx((tmp_path / encoding).stat().st_size, rel=0.03)
        assert set(told.artifact.bytes) == {"float32", "bfloat16", "int8"}

    @pytest.mark.parametrize("unknown", [{"labels": None}, {"backbone": None}])
    def test_that_are_unknown_are_null(self, unknown: dict[str, Any], minilm_path: Path):
        backbone = unknown.get("backbone", described(minilm_path))
        told = estimate_at(admission(backbone, labels=unknown.get("labels", 2)), rates=UNKNOWN)
        assert (told.trainable_parameters, told.fraction, told.artifact) == (None, None, None)
        assert told.steps == 12

    def test_of_files_that_no_worker_has_measured_are_null(self, minilm_path: Path):
        backbone = described(minilm_path)
        kept = {"base": 0, "per_label": 385}  # as workers of earlier versions wrote it
        backbone.task_heads = {"classification": kept}
        told = estimate_at(admission(backbone), rates=UNKNOWN)
        assert (told.trainable_parameters, told.artifact) == (666_050, None)


class TestSteps:
    @pytest.mark.parametrize(("rows", "steps"), [(1, 3), (32, 3), (33, 6), (None, None)])
    def test_are_those_of_all_epochs(self, rows: int | None, steps: int | None):
        assert estimate_at(admission(None, rows=rows), rates=UNKNOWN).steps == steps


class TestSeconds:
    def test_are_selection_and_training(self):
        rates = Rates(samples_per_second=10.0, selection_seconds=0.1)
        assert estimate_at(admission(None), rates=rates).seconds == 50 * 0.1 + 300 / 10

    def test_are_null_where_nothing_was_measured(self):
        assert estimate_at(admission(None), rates=UNKNOWN).seconds is None
        rates = Rates(samples_per_second=10.0, selection_seconds=0.1)
        assert estimate_at(admission(None, rows=None), rates=rates).seconds is None


class TestRates:
    def test_are_the_median_of_the_last_finished_jobs(self, database: Database, alice: Member):
        speeds = [1000.0, 1.0, 2.0, 30.0, 40.0, 50.0]  # the first is too long ago
        self.finish(database, alice, speeds)
        with database.read() as session:
            assert measure_rates(session, "minilm") == Rates(
                samples_per_second=30.0, selection_seconds=0.3
            )
            assert measure_rates(session, "other") == UNKNOWN
            assert estimate(session, admission(None)).seconds == 50 * 0.3 + 300 / 30

    def test_of_results_without_a_speed_are_not_known(self, database: Database, alice: Member):
        self.finish(database, alice, [None])
        with database.read() as session:
            assert measure_rates(session, "minilm").samples_per_second is None

    @staticmethod
    def finish(database: Database, owner: Member, speeds: list[float | None]) -> None:
        now = datetime.now(UTC)
        with database.write() as session:
            for place, speed in enumerate(speeds):
                session.add(
                    Job(
                        id=f"job_{place}",
                        tenant_id=owner.tenant_id,
                        status=JobStatus.SUCCEEDED,
                        meta={},
                        spec={"n_samples": 100},
                        model="minilm",
                        created_at=now,
                        token_at=now,
                        finished_at=now + timedelta(seconds=place),
                        result={
                            "samples_per_second": speed,
                            "selection_seconds": 30.0 if place else 1e6,
                        },
                    )
                )
