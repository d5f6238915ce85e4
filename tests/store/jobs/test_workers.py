"""store.jobs.workers: live workers, and known backbones."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa

from store.database.connection import Database, database_now
from store.errors import NotFoundError
from store.jobs.workers import (
    LIVE_SECONDS,
    beat,
    get_backbone,
    leave,
    list_backbones,
    live_workers,
    put_backbone,
    register,
)
from store.tables import Worker
from tests.store.queues import MINILM


def sign_on(database: Database, worker_id: str) -> None:
    register(database, worker_id=worker_id, device="cpu", backbones=["minilm"], allows_hub=False)


def live(database: Database) -> int:
    with database.read() as session:
        return len(live_workers(session))


class TestWorkers:
    def test_are_live_while_they_are_seen(self, database: Database):
        sign_on(database, "w1")
        sign_on(database, "w2")
        assert live(database) == 2
        with database.write() as session:
            old = database_now(session) - timedelta(seconds=LIVE_SECONDS + 1)
            session.execute(sa.update(Worker).values(seen_at=old))
        assert live(database) == 0
        beat(database, "w1")
        assert live(database) == 1

    def test_sign_off(self, database: Database):
        sign_on(database, "w1")
        assert beat(database, "w1")
        leave(database, "w1")
        assert not beat(database, "w1")
        assert live(database) == 0


class TestBackbones:
    def test_are_written_once_and_renewed(self, database: Database):
        put_backbone(database, MINILM)
        put_backbone(database, replace(MINILM, fingerprint="sha256:cd"))
        with database.read() as session:
            row = get_backbone(session, "minilm")
        assert (row.fingerprint, row.task_heads) == ("sha256:cd", MINILM.task_heads)
        assert {name: getattr(row, name) for name in vars(MINILM)} == {
            **vars(MINILM),
            "fingerprint": "sha256:cd",
        }

    def test_reported_by_several_workers_at_once_are_one(self, database: Database):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: put_backbone(database, MINILM), range(16)))
        with database.read() as session:
            assert len(list_backbones(session, after=None, limit=9).rows) == 1

    def test_are_listed_by_id_in_pages(self, database: Database):
        for name in ("c", "a", "b"):
            put_backbone(database, replace(MINILM, id=name))
        with database.read() as session:
            first = list_backbones(session, after=None, limit=2)
            second = list_backbones(session, after="b", limit=2)
        assert ([row.id for row in first.rows], first.has_more) == (["a", "b"], True)
        assert ([row.id for row in second.rows], second.has_more) == (["c"], False)

    def test_unknown_ones_are_not_found(self, database: Database):
        with database.read() as session:
            with pytest.raises(NotFoundError, match="llama"):
                get_backbone(session, "llama")
            with pytest.raises(NotFoundError):
                list_backbones(session, after="llama", limit=2)
