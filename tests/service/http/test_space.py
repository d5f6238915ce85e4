"""service.http.space: uploads count before their first byte, and space is free at once."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from contextlib import asynccontextmanager
from http.client import HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from service.app import build_app
from service.http import space as module
from service.http.space import Space
from store.errors import SpaceExceededError
from store.idempotency import RequestKey, begin
from store.storage import ArtifactStorage
from store.storage.space import end_expired, used_bytes
from store.storage.unnamed import remove_unnamed
from store.tables import Reservation, UnnamedBlob
from tests.service.gateways import CSV, Member, problem_of, served
from tests.store.queues import add_tenant
from tests.waiting import eventually, eventually_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.testclient import TestClient

    from store.database.connection import Database
    from store.settings import Settings

LIMIT = 20_000
FILES = {"train": ("train.csv", CSV)}


@pytest.fixture(autouse=True)
def quota(database: Database, alice: Member) -> None:
    with database.write() as session:
        session.execute(
            sa.text("UPDATE tenants SET max_bytes = :limit WHERE id = :id"),
            {"limit": LIMIT, "id": alice.tenant_id},
        )


def used(database: Database, member: Member) -> int:
    with database.read() as session:
        return used_bytes(session, member.tenant_id)


def stored(settings: Settings) -> int:
    """Count the bytes of all blobs."""
    folder = Path(settings.artifacts_url)
    return sum(path.stat().st_size for path in folder.glob("ten_*/*"))


def rows(name: str, count: int) -> bytes:
    """Make a CSV file that Parquet cannot compress."""
    lines = (f"{name} {os.urandom(50).hex()},{row % 2}\n" for row in range(count))
    return b"text,label\n" + "".join(lines).encode()


class TestRefusal:
    @pytest.mark.parametrize("length", [LIMIT + 1, None])
    def test_comes_before_any_byte_is_stored(
        self, settings: Settings, database: Database, alice: Member, length: int | None
    ):
        """The body never comes: a gateway that waited for it would not answer."""
        with database.write() as session:
            session.execute(
                sa.insert(Reservation).values(
                    id="res_other", tenant_id=alice.tenant_id, bytes=1 if length else LIMIT
                )
            )
        size = {"content-length": f"{LIMIT}"} if length else {"transfer-encoding": "chunked"}
        with served(build_app(settings)) as url, connected(url) as line:
            send_head(line, {**size, "expect": "100-continue", **alice.headers})
            assert refusal(line) == (403, "quota_exceeded")
        assert not list((settings.home / "uploads").glob("*"))

    def test_of_a_body_without_a_length_comes_when_the_quota_is_reached(
        self, settings: Settings, database: Database, alice: Member
    ):
        with served(build_app(settings)) as url, connected(url) as line:
            send_head(line, {"transfer-encoding": "chunked", **alice.headers})
            head = b'--x\r\ncontent-disposition: form-data; name="train"; filename="a.csv"\r\n\r\n'
            for chunk in (head, b"x" * LIMIT):
                line.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            assert refusal(line) == (403, "quota_exceeded")
        eventually(lambda: used(database, alice) == 0)

    @pytest.mark.process
    def test_leaves_nothing(
        self, client: TestClient, settings: Settings, database: Database, alice: Member
    ):
        """Twenty refused uploads of all kinds."""
        big = {"train": ("a.csv", rows("big", 500))}
        invalid = {"train": ("a.csv", b"text,label\nyes,1\n,0\n")}
        for _ in range(4):
            answer = client.post("/datasets", files=big, headers=alice.headers)
            assert problem_of(answer)["code"] == "quota_exceeded"
            answer = client.post("/datasets", files=invalid, headers=alice.headers)
            assert problem_of(answer)["code"] == "dataset_invalid"
            assert (stored(settings), used(database, alice)) == (0, 0)


@pytest.mark.process
class TestUpload:
    def test_and_delete_again_and_again_stays_within_the_quota(
        self, client: TestClient, settings: Settings, database: Database, alice: Member
    ):
        for number in range(6):
            files = {"train": ("a.csv", rows(f"{number}", 100))}
            answer = client.post("/datasets", files=files, headers=alice.headers)
            assert answer.status_code == 201, answer.text
            size = answer.json()["bytes"]
            assert size > LIMIT / 5
            assert stored(settings) == used(database, alice) == size
            path = answer.headers["location"]
            assert client.delete(path, headers=alice.headers).status_code == 204
            assert (stored(settings), used(database, alice)) == (0, 0)

    def test_repeated_with_its_key_is_answered_although_the_quota_is_used_up(
        self, client: TestClient, database: Database, alice: Member
    ):
        headers = {**alice.headers, "Idempotency-Key": "k"}
        first = client.post("/datasets", files=FILES, headers=headers)
        with database.write() as session:
            session.execute(
                sa.text("UPDATE tenants SET max_bytes = :limit"), {"limit": first.json()["bytes"]}
            )
        again = client.post("/datasets", files=FILES, headers=headers)
        assert (again.status_code, again.content) == (201, first.content)
        other = client.post("/datasets", files=FILES, headers=alice.headers)
        assert problem_of(other)["code"] == "quota_exceeded"
        assert used(database, alice) == first.json()["bytes"]

    def test_whose_row_cannot_be_written_leaves_nothing(
        self,
        client: TestClient,
        settings: Settings,
        database: Database,
        alice: Member,
        monkeypatch: pytest.MonkeyPatch,
    ):
        def fail(*_: object, **__: object) -> None:
            raise sa.exc.OperationalError("", {}, OSError("away"))

        monkeypatch.setattr("service.datasets.routes.add_dataset", fail)
        answer = client.post("/datasets", files=FILES, headers=alice.headers)
        assert answer.status_code == 503
        assert (stored(settings), used(database, alice)) == (0, 0)


@asynccontextmanager
async def opened_space(database: Database, settings: Settings) -> AsyncIterator[Space]:
    space = Space(database, ArtifactStorage(settings.artifacts_url), settings=settings)
    yield space
    await space.close()


class TestSpace:
    def test_is_renewed_while_an_upload_takes_long(
        self,
        database: Database,
        settings: Settings,
        alice: Member,
        monkeypatch: pytest.MonkeyPatch,
    ):
        monkeypatch.setattr(module, "_RENEWAL_SECONDS", 0.01)
        faults = [sa.exc.ProgrammingError("", {}, Exception("no such table"))]  # once

        def renew(*args: Any) -> None:
            if faults:
                raise faults.pop()
            renew_in_earnest(*args)

        renew_in_earnest = module.renew
        monkeypatch.setattr(module, "renew", renew)

        async def hold() -> None:
            async with (
                opened_space(database, settings) as space,
                space.hold(alice.tenant_id, key=None, declared=100),
            ):
                with database.read() as session:
                    first = session.scalars(sa.select(Reservation.expires_at)).one()

                def is_renewed() -> bool:
                    with database.read() as session:
                        return session.scalars(sa.select(Reservation.expires_at)).one() > first

                await eventually_async(is_renewed)
            assert used(database, alice) == 0

        asyncio.run(hold())

    def test_of_parallel_repeats_is_exceeded_by_one(
        self, database: Database, settings: Settings, alice: Member
    ):
        key = RequestKey(tenant_id=alice.tenant_id, method="POST", path="/datasets", key="k")
        with database.write() as session:
            begin(session, key, request_sha256="0", lock_seconds=60)

        async def hold() -> None:
            async with (
                opened_space(database, settings) as space,
                space.hold(alice.tenant_id, key=key, declared=10 * LIMIT),
            ):
                with pytest.raises(SpaceExceededError):
                    async with space.hold(alice.tenant_id, key=key, declared=1):
                        pytest.fail("a second one is received")

        asyncio.run(hold())

    def test_that_is_used_up_names_no_number_for_a_body_of_unknown_size(
        self, database: Database, settings: Settings, alice: Member
    ):
        async def hold() -> None:
            async with (
                opened_space(database, settings) as space,
                space.hold(alice.tenant_id, key=None, declared=LIMIT),
                space.hold(alice.tenant_id, key=None, declared=None),
            ):
                pytest.fail("it is received")

        with pytest.raises(SpaceExceededError, match="reserved and more are needed"):
            asyncio.run(hold())

    def test_is_freed_in_the_background_if_the_store_hangs(
        self,
        database: Database,
        settings: Settings,
        alice: Member,
        monkeypatch: pytest.MonkeyPatch,
    ):
        monkeypatch.setattr(module, "_FREE_SECONDS", 0.1)
        other = add_tenant(database, "other")
        with database.write() as session:
            for tenant in (alice.tenant_id, other):
                session.execute(
                    sa.insert(UnnamedBlob).values(tenant_id=tenant, sha256="a" * 64, bytes=7)
                )
        answering = asyncio.Event()
        removed: list[str] = []
        delete = slow_delete(answering, alice.tenant_id, removed)
        monkeypatch.setattr(ArtifactStorage, "delete", delete)

        async def free() -> None:
            async with opened_space(database, settings) as space:
                await space.free(alice.tenant_id)
                await space.free(alice.tenant_id)
                await space.free(other)
                assert removed == [other]
                answering.set()
                await eventually_async(lambda: used(database, alice) == 0)

        asyncio.run(free())


def slow_delete(answering: asyncio.Event, hanging: str, removed: list[str]):
    def delete(_storage: ArtifactStorage, tenant_id: str, _sha256: str) -> None:
        if tenant_id == hanging:
            eventually(answering.is_set)
        removed.append(tenant_id)

    return delete


@pytest.fixture(autouse=True)
def nothing_left(database: Database, settings: Settings) -> Iterator[None]:
    """Check that no reservation and no blob is left that nothing would remove."""
    yield
    end_expired(database)
    remove_unnamed(database, ArtifactStorage(settings.artifacts_url))
    with database.read() as session:
        assert not session.scalars(sa.select(UnnamedBlob)).all()


def connected(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)))


def refusal(line: socket.socket) -> tuple[int, str]:
    """Read an answer; return its status and code."""
    answer = HTTPResponse(line)
    answer.begin()
    return answer.status, json.loads(answer.read())["code"]


def send_head(line: socket.socket, headers: dict[str, str]) -> None:
    everything = {
        "host": "127.0.0.1",
        "content-type": "multipart/form-data; boundary=x",
        **headers,
    }
    lines = [f"{name}: {value}" for name, value in everything.items()]
    line.sendall("\r\n".join(["POST /datasets HTTP/1.1", *lines, "", ""]).encode())
