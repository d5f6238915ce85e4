"""store.predictions: who is claimed next, what a lease may write, and what is freed at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from store.datasets import Split, add_dataset, delete_dataset
from store.errors import (
    DatasetInUseError,
    IllegalTransitionError,
    LeaseLostError,
    NotFoundError,
    QuotaExceededError,
    SpaceExceededError,
)
from store.predictions.actions import (
    NewPrediction,
    cancel,
    delete,
    get_prediction,
    list_predictions,
    submit,
)
from store.predictions.claims import ClaimedPrediction, PredictionLease, claim_next
from store.predictions.spec import PredictingJob, PredictionSpec
from store.states import PredictionStatus as S
from store.storage import Blob
from store.storage.space import used_bytes
from store.tables import Prediction, UnnamedBlob
from tests.store.queues import add_tenant

if TYPE_CHECKING:
    from store.database.connection import Database

RESULT = Blob(sha256="a" * 64, bytes=7)
SPEC = PredictionSpec(
    split="train",
    format="jsonl",
    truncate=True,
    jobs=[PredictingJob(id="job_1", type="classification", columns={"text": "sentence"})],
)


def add(database: Database, tenant: str, *, max_queued: int = 9, max_bytes: int = 1000) -> str:
    blob = Blob(sha256="1" * 64, bytes=10)
    with database.write() as session:
        dataset = add_dataset(
            session,
            tenant,
            name=None,
            splits={"train": Split(blob=blob, rows=5)},
            columns={"sentence": "string"},
            profile={},
            max_bytes=1 << 40,
        ).id
    new = NewPrediction(name=None, dataset_id=dataset, spec=SPEC, total_rows=5, result_bytes=20)
    with database.write() as session:
        return submit(session, tenant, new, max_queued=max_queued, max_bytes=max_bytes).id


def claim(database: Database, *, seconds: float = 60.0, most_each: int = 9) -> ClaimedPrediction:
    claimed = claim_next(database, lease_seconds=seconds, most_each=most_each)
    assert claimed is not None
    return claimed


def status(database: Database, tenant: str, identifier: str) -> S:
    with database.read() as session:
        return get_prediction(session, tenant, identifier).status


class TestClaimNext:
    def test_serves_the_tenant_with_fewer_running_first(self, database: Database):
        busy, other = add_tenant(database, "busy"), add_tenant(database, "other")
        first, _ = add(database, busy), add(database, busy)
        theirs = add(database, other)

        assert [claim(database).id, claim(database).id] == [first, theirs]
        assert claim_next(database, lease_seconds=60, most_each=1) is None
        assert claim(database, most_each=2).tenant_id == busy
        assert claim_next(database, lease_seconds=60, most_each=9) is None

    def test_a_lost_one_continues_after_its_parts_and_its_old_process_is_refused(
        self, database: Database
    ):
        tenant = add_tenant(database, "a")
        identifier = add(database, tenant)
        old = claim(database, seconds=-1.0)
        lost = PredictionLease(database, old, seconds=-1.0)
        lost.keep_part(RESULT, rows=2, rows_per_second=1.0)

        again = claim(database)

        assert (again.id, again.fence) == (identifier, old.fence + 1)
        assert again.parts == [{"rows": 2, "sha256": RESULT.sha256, "bytes": 7}]
        with pytest.raises(LeaseLostError):
            lost.keep_part(RESULT, rows=2, rows_per_second=1.0)

    def test_one_that_ends_three_processes_fails(self, database: Database):
        tenant = add_tenant(database, "a")
        identifier = add(database, tenant)
        for _ in range(3):
            claim(database, seconds=-1.0)
        assert claim_next(database, lease_seconds=60, most_each=9) is None
        with database.read() as session:
            error = get_prediction(session, tenant, identifier).error
        assert error is not None
        assert error["code"] == "worker_lost"

    def test_a_lost_one_that_was_to_be_cancelled_is_cancelled(self, database: Database):
        tenant = add_tenant(database, "a")
        identifier = add(database, tenant)
        claim(database, seconds=-1.0)
        with database.write() as session:
            cancel(session, tenant, identifier)
        assert claim_next(database, lease_seconds=60, most_each=9) is None
        assert status(database, tenant, identifier) is S.CANCELLED


class TestLease:
    def test_success_frees_the_reservation_and_counts_the_result(self, database: Database):
        tenant = add_tenant(database, "a")
        identifier = add(database, tenant)
        with database.read() as session:
            assert used_bytes(session, tenant) == 30
        PredictionLease(database, claim(database), seconds=60).succeed(RESULT)

        assert status(database, tenant, identifier) is S.SUCCEEDED
        with database.read() as session:
            assert used_bytes(session, tenant) == 17

        with database.write() as session:
            delete(session, tenant, identifier)
        with database.read() as session:
            assert session.scalars(sa.select(UnnamedBlob.sha256)).all() == [RESULT.sha256]
            assert session.scalars(sa.select(Prediction.id)).all() == []

    def test_a_handed_back_one_waits_again(self, database: Database):
        tenant = add_tenant(database, "a")
        identifier = add(database, tenant)
        PredictionLease(database, claim(database), seconds=60).hand_back()
        assert status(database, tenant, identifier) is S.QUEUED
        assert claim(database).id == identifier

    @pytest.mark.parametrize("end", ["succeed", "fail", "hand_back"])
    def test_ends_cancelled_if_its_owner_wants_that(self, database: Database, end: str):
        tenant = add_tenant(database, "a")
        identifier = add(database, tenant)
        lease = PredictionLease(database, claim(database), seconds=60)
        with database.write() as session:
            cancel(session, tenant, identifier)
        assert lease.renew() is S.CANCELLING
        arguments = {"succeed": [RESULT], "fail": [], "hand_back": []}[end]
        words = {"code": "c", "message": "m"} if end == "fail" else {}
        getattr(lease, end)(*arguments, **words)
        assert status(database, tenant, identifier) is S.CANCELLED


class TestActions:
    def test_quotas_hold(self, database: Database):
        tenant = add_tenant(database, "a")
        add(database, tenant, max_queued=1)
        with pytest.raises(QuotaExceededError, match="max_queued"):
            add(database, tenant, max_queued=1)
        with pytest.raises(SpaceExceededError):
            add(database, tenant, max_bytes=40)

    def test_a_running_one_keeps_its_dataset_and_cannot_be_deleted(self, database: Database):
        tenant = add_tenant(database, "a")
        identifier = add(database, tenant)
        claimed = claim(database)
        with database.write() as session, pytest.raises(IllegalTransitionError, match="cancel it"):
            delete(session, tenant, identifier)
        with database.write() as session, pytest.raises(DatasetInUseError, match=identifier):
            delete_dataset(session, tenant, claimed.dataset_id)

    def test_a_waiting_one_is_cancelled_at_once_and_once(self, database: Database):
        tenant = add_tenant(database, "a")
        identifier = add(database, tenant)
        with database.write() as session:
            assert cancel(session, tenant, identifier).status is S.CANCELLED
        with database.write() as session, pytest.raises(IllegalTransitionError):
            cancel(session, tenant, identifier)

    def test_another_tenant_finds_none(self, database: Database):
        mine, other = add_tenant(database, "a"), add_tenant(database, "b")
        identifier = add(database, mine)
        for act in (get_prediction, cancel, delete):
            with database.write() as session, pytest.raises(NotFoundError):
                act(session, other, identifier)
        with database.read() as session:
            assert list_predictions(session, other, limit=9).rows == []
            assert [row.id for row in list_predictions(session, mine, limit=9).rows] == [identifier]
