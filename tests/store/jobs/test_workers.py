"""store.jobs.workers: live workers, and known backbones."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa

from store.database.connection import Database, database_now
from store.errors import NotFoundError
from store.jobs.workers import (
    LIVE_SECONDS,
    BackboneDescription,
    beat,
    change_offer,
    find_unavailable,
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

    def test_a_page_follows_an_id_that_is_gone(self, database: Database):
        for name in ("a", "c"):
            put_backbone(database, replace(MINILM, id=name))
        with database.read() as session:
            page = list_backbones(session, after="b", limit=2)
        assert [row.id for row in page.rows] == ["c"]

    def test_unknown_ones_are_not_found(self, database: Database):
        with database.read() as session, pytest.raises(NotFoundError, match="llama"):
            get_backbone(session, "llama")


def described(name: str, **changes: Any) -> BackboneDescription:
    return replace(MINILM, id=name, **changes)


def offer(
    database: Database,
    worker_id: str,
    *names: str,
    unavailable: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    backbones = [described(name) for name in names]
    change_offer(database, worker_id, backbones=backbones, unavailable=unavailable or {})


def listed(database: Database) -> list[str]:
    with database.read() as session:
        return [row.id for row in list_backbones(session, after=None, limit=9).rows]


class TestOffers:
    def test_are_listed_and_withdrawn(self, database: Database):
        sign_on(database, "w1")
        offer(database, "w1", "b", "a")
        assert listed(database) == ["a", "b"]
        offer(database, "w1", "b")
        assert listed(database) == ["b"]
        with database.read() as session:
            assert session.scalars(sa.select(Worker.backbones)).one() == ["b"]

    def test_of_other_workers_are_kept_even_of_those_that_are_away(self, database: Database):
        for worker in ("w1", "w2"):
            sign_on(database, worker)
            offer(database, worker, "shared", worker)
        with database.write() as session:
            old = database_now(session) - timedelta(seconds=LIVE_SECONDS + 1)
            session.execute(sa.update(Worker).where(Worker.id == "w2").values(seen_at=old))
        offer(database, "w1")
        assert listed(database) == ["shared", "w2"]
        leave(database, "w2")
        offer(database, "w1")
        assert listed(database) == []

    def test_renew_the_description(self, database: Database):
        sign_on(database, "w1")
        offer(database, "w1", "a")
        changed = [described("a", fingerprint="sha256:cd")]
        change_offer(database, "w1", backbones=changed, unavailable={})
        with database.read() as session:
            assert get_backbone(session, "a").fingerprint == "sha256:cd"

    def test_of_a_worker_that_is_not_registered_change_nothing(self, database: Database):
        put_backbone(database, described("a"))
        offer(database, "w9", "b")
        assert listed(database) == ["a"]

    def test_at_once_lose_nothing(self, database: Database):
        names = [f"w{number}" for number in range(6)]
        for name in names:
            sign_on(database, name)

        def work(name: str) -> None:
            for _ in range(5):
                offer(database, name, name)

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, names))
        assert listed(database) == names


class TestUnavailable:
    UNUSABLE: ClassVar = {"status": "unusable", "reason": "it is broken"}
    READING: ClassVar = {"status": "reading", "reason": "a worker is reading it"}

    def found(self, database: Database) -> Mapping[str, Mapping[str, str]]:
        with database.read() as session:
            return find_unavailable(session)

    def test_are_those_of_live_workers(self, database: Database):
        sign_on(database, "w1")
        offer(database, "w1", "good", unavailable={"z": self.UNUSABLE, "a": self.READING})
        assert self.found(database) == {"a": self.READING, "z": self.UNUSABLE}
        assert list(self.found(database)) == ["a", "z"]
        leave(database, "w1")
        assert self.found(database) == {}

    def test_one_that_another_worker_can_use_is_left_out(self, database: Database):
        for worker in ("w1", "w2", "w3"):
            sign_on(database, worker)
        offer(database, "w1", unavailable={"a": self.UNUSABLE, "b": self.UNUSABLE})
        offer(database, "w2", unavailable={"a": self.READING})
        assert self.found(database) == {"a": self.READING, "b": self.UNUSABLE}
        offer(database, "w3", "a")
        assert self.found(database) == {"b": self.UNUSABLE}

    def test_of_a_worker_of_an_earlier_version_there_are_none(self, database: Database):
        sign_on(database, "w1")
        assert self.found(database) == {}
