"""store.storage: blobs in a folder and on S3, held to the same tests."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from store.errors import ArtifactStorageError, BlobLostError, SettingsError
from store.storage import ArtifactStorage, Blob, StoredBlob, blobs
from tests.full_disk import fill, make_read_only
from tests.slow_store import Mood, SlowStore, slow_store
from tests.waiting import patience


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Run an S3 server; yield its endpoint."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - seconds, for these tests alone

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def aws(endpoint: str) -> dict[str, str]:
    """Set the variables that point to an S3 server."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }


@pytest.fixture(params=["folder", "s3"])
def storage(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ArtifactStorage:
    if request.param == "folder":
        return ArtifactStorage(str(tmp_path / "artifacts"))
    import boto3  # noqa: PLC0415 - comes with moto

    endpoint: str = request.getfixturevalue("s3")
    for name, value in aws(endpoint).items():
        monkeypatch.setenv(name, value)
    bucket = f"hifi-{os.getpid()}-{abs(hash(request.node.nodeid))}"
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket=bucket)
    return ArtifactStorage(f"s3://{bucket}/deltas")


def put(storage: ArtifactStorage, folder: Path, data: bytes, tenant: str = "ten_a") -> Blob:
    path = folder / "blob"
    path.write_bytes(data)
    return storage.put(tenant, path)


DATA = bytes(range(256)) * 50_000  # 12.8 MB: several parts on S3


class TestPut:
    def test_names_a_blob_by_its_content(self, storage: ArtifactStorage, tmp_path: Path):
        blob = put(storage, tmp_path, DATA)
        assert blob == Blob(sha256=hashlib.sha256(DATA).hexdigest(), bytes=len(DATA))
        assert b"".join(storage.read("ten_a", blob.sha256)) == DATA

    def test_twice_is_one_blob_with_a_new_time(self, storage: ArtifactStorage, tmp_path: Path):
        put(storage, tmp_path, b"data")
        (first,) = storage.list()
        put(storage, tmp_path, b"data")
        (second,) = storage.list()
        assert second.modified_at >= first.modified_at
        assert datetime.now(UTC) - second.modified_at < timedelta(minutes=1)

    def test_of_an_empty_file(self, storage: ArtifactStorage, tmp_path: Path):
        blob = put(storage, tmp_path, b"")
        assert b"".join(storage.read("ten_a", blob.sha256)) == b""


def streamed(storage: ArtifactStorage, sha256: str, start: int, end: int) -> bytes:
    """Read a part of a blob of tenant ``ten_a`` on an event loop."""

    async def read() -> bytes:
        parts = storage.stream("ten_a", sha256, start=start, end=end)
        return b"".join([part async for part in parts])

    return asyncio.run(read())


class TestStream:
    @pytest.mark.parametrize(
        ("start", "end"), [(0, 1), (0, 300), (1000, len(DATA)), (9_000_000, 9_000_010), (0, 0)]
    )
    def test_a_range(self, storage: ArtifactStorage, tmp_path: Path, start: int, end: int):
        blob = put(storage, tmp_path, DATA)
        assert streamed(storage, blob.sha256, start, end) == DATA[start:end]

    def test_a_missing_blob_is_lost(self, storage: ArtifactStorage, tmp_path: Path):
        put(storage, tmp_path, b"another")
        with pytest.raises(BlobLostError, match="is not in the artifact store"):
            streamed(storage, "0" * 64, 0, 10)

    def test_a_shorter_blob_is_damaged(self, storage: ArtifactStorage, tmp_path: Path):
        blob = put(storage, tmp_path, b"data")
        with pytest.raises(BlobLostError, match="damaged"):
            streamed(storage, blob.sha256, 0, 10)
        with pytest.raises(ArtifactStorageError):
            streamed(storage, blob.sha256, 10, 20)

    def test_needs_no_thread(self, tmp_path: Path):
        storage = ArtifactStorage(str(tmp_path / "artifacts"))
        blob = put(storage, tmp_path, DATA)
        before = threading.active_count()

        async def read() -> int:
            most = 0
            async for _ in storage.stream("ten_a", blob.sha256, start=0, end=len(DATA)):
                most = max(most, threading.active_count())
            return most

        assert asyncio.run(read()) == before


class TestRead:
    def test_a_missing_blob_is_refused_before_the_first_byte(
        self, storage: ArtifactStorage, tmp_path: Path
    ):
        put(storage, tmp_path, b"another")
        with pytest.raises(BlobLostError, match="is not in the artifact store"):
            storage.read("ten_a", "0" * 64)

    def test_another_tenants_blob_is_not_there(self, storage: ArtifactStorage, tmp_path: Path):
        blob = put(storage, tmp_path, b"secret")
        with pytest.raises(ArtifactStorageError):
            storage.read("ten_b", blob.sha256)

    def test_a_folder_that_may_be_unmounted_loses_nothing(self, tmp_path: Path):
        made, empty = tmp_path / "made", tmp_path / "empty"
        empty.mkdir()  # where a disk may have to be mounted first
        for folder, error in ((made, BlobLostError), (empty, ArtifactStorageError)):
            storage = ArtifactStorage(str(folder))
            put(storage, tmp_path, b"another")
            with pytest.raises(ArtifactStorageError) as caught:
                storage.read("ten_a", "a" * 64)
            assert type(caught.value) is error

    def test_a_missing_bucket_loses_nothing(self, s3: str, monkeypatch: pytest.MonkeyPatch):
        for name, value in aws(s3).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ArtifactStorageError) as caught:
            ArtifactStorage("s3://no-such-bucket/deltas").read("ten_a", "a" * 64)
        assert not isinstance(caught.value, BlobLostError)


class TestFetch:
    def test_copies_a_blob(self, storage: ArtifactStorage, tmp_path: Path):
        blob = put(storage, tmp_path, DATA)
        storage.fetch("ten_a", blob.sha256, to=tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == DATA

    def test_a_damaged_blob_is_refused_and_no_file_left(self, tmp_path: Path):
        storage = ArtifactStorage(str(tmp_path / "artifacts"))
        blob = put(storage, tmp_path, b"data")
        (tmp_path / "artifacts" / "ten_a" / blob.sha256).write_bytes(b"dada")
        (tmp_path / "out").mkdir()
        with pytest.raises(BlobLostError, match="damaged"):
            storage.fetch("ten_a", blob.sha256, to=tmp_path / "out" / "copy")
        assert list((tmp_path / "out").iterdir()) == []


class TestList:
    def test_names_every_blob(self, storage: ArtifactStorage, tmp_path: Path):
        blobs = [put(storage, tmp_path, bytes([n]), tenant) for n, tenant in enumerate("aab")]
        listed = {(each.tenant_id, each.sha256) for each in storage.list()}
        assert listed == {(t, blob.sha256) for t, blob in zip("aab", blobs, strict=True)}
        assert all(isinstance(each, StoredBlob) for each in storage.list())

    def test_of_nothing_is_empty(self, storage: ArtifactStorage):
        assert list(storage.list()) == []
        storage.check()


class TestModifiedAt:
    def test_is_when_a_blob_was_stored_last(self, storage: ArtifactStorage, tmp_path: Path):
        blob = put(storage, tmp_path, b"data")
        (listed,) = storage.list()
        assert storage.modified_at("ten_a", blob.sha256) == listed.modified_at
        assert storage.modified_at("ten_b", blob.sha256) is None
        assert storage.modified_at("ten_a", "0" * 64) is None


class TestDelete:
    def test_removes_a_blob_and_is_content_without_one(
        self, storage: ArtifactStorage, tmp_path: Path
    ):
        blob = put(storage, tmp_path, b"data")
        for _ in range(2):
            storage.delete("ten_a", blob.sha256)
        assert list(storage.list()) == []


class TestFolder:
    def test_is_private(self, tmp_path: Path):
        folder = tmp_path / "artifacts"
        storage = ArtifactStorage(str(folder))
        for _ in range(2):
            blob = put(storage, tmp_path, b"data")
        storage.fetch("ten_a", blob.sha256, to=tmp_path / "copy")
        made = [folder, tmp_path / "copy", *folder.rglob("*")]
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in made}
        assert modes == {
            "artifacts": 0o700,
            "copy": 0o600,
            ".hifi-artifacts": 0o600,
            "ten_a": 0o700,
            blob.sha256: 0o600,
        }


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowStore]:
    """Run an S3 server that can hang; shorten the limits of time."""
    monkeypatch.setattr(blobs, "_STREAM_SECONDS", 0.3)
    with slow_store() as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        yield store


class TestHangingServer:
    @pytest.mark.parametrize("mood", ["silent", "stalled", "dripping"])
    def test_ends_a_stream_in_time_and_leaves_the_connection(
        self, slow: SlowStore, tmp_path: Path, mood: Mood
    ):
        storage = ArtifactStorage(slow.url)
        blob = put(storage, tmp_path, DATA[:4_000_000])
        slow.mood = lambda _method, _key: mood
        started = time.monotonic()
        with pytest.raises(ArtifactStorageError, match="no answer in time"):
            streamed(storage, blob.sha256, 0, blob.bytes)
        assert time.monotonic() - started < patience(3)

    def test_is_asked_by_the_tenants_whose_blobs_work(self, slow: SlowStore, tmp_path: Path):
        storage = ArtifactStorage(slow.url)
        mine, theirs = (put(storage, tmp_path, b"data", f"ten_{name}") for name in "ab")
        slow.mood = lambda _method, key: "silent" if key.startswith("ten_a") else "well"
        for _ in range(3):
            with pytest.raises(ArtifactStorageError, match="no answer in time"):
                streamed(storage, mine.sha256, 0, 4)
        started = time.monotonic()
        with pytest.raises(ArtifactStorageError, match="failed 3 times in a row"):
            streamed(storage, mine.sha256, 0, 4)
        with pytest.raises(ArtifactStorageError, match="failed 3 times in a row"):
            storage.fetch("ten_a", mine.sha256, to=tmp_path / "copy")
        assert time.monotonic() - started < 0.3
        assert b"".join(storage.read("ten_b", theirs.sha256)) == b"data"

    def test_a_blob_that_breaks_off_is_read_again(self, slow: SlowStore, tmp_path: Path):
        storage = ArtifactStorage(slow.url)
        blob = put(storage, tmp_path, b"data")
        moods = iter(["broken"])
        slow.mood = lambda _method, _key: next(moods, "well")  # type: ignore[assignment]
        assert streamed(storage, blob.sha256, 0, 4) == b"data"


class TestCheckWritable:
    def test_leaves_nothing(self, storage: ArtifactStorage, tmp_path: Path):
        put(storage, tmp_path, b"data")
        storage.check_writable()
        assert len(list(storage.list())) == 1
        assert not list(tmp_path.rglob(".hifi-probe*"))

    def test_fails_where_nothing_can_be_put(self, slow: SlowStore):
        storage = ArtifactStorage(slow.url)
        storage.check_writable()
        slow.mood = lambda method, _key: "refusing" if method == "PUT" else "well"
        storage.check()
        with pytest.raises(ArtifactStorageError, match="cannot store anything") as caught:
            storage.check_writable()
        assert str(slow.port) in str(caught.value)
        assert caught.value.detail == "the artifact store is unavailable; retry later"

    def test_fails_where_a_disk_may_have_to_be_mounted(self, tmp_path: Path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(ArtifactStorageError, match="does not look like the") as caught:
            ArtifactStorage(str(tmp_path / "empty")).check_writable()
        assert str(tmp_path) not in caught.value.detail

    @pytest.mark.parametrize(
        ("spoil", "reason"), [(fill, "No space left"), (make_read_only, "Read-only file system")]
    )
    def test_fails_on_a_disk_that_is_full_or_read_only(
        self, full_disk: Path, spoil: Callable[[Path], object], reason: str
    ):
        storage = ArtifactStorage(str(full_disk / "artifacts"))
        spoil(full_disk)
        storage.check()
        with pytest.raises(ArtifactStorageError, match=reason):
            storage.check_writable()


class TestFailures:
    @pytest.mark.parametrize("url", ["ftp://host/x", "s3://", "nonsense://"])
    def test_an_invalid_store_url_is_refused(self, url: str):
        with pytest.raises(SettingsError):
            ArtifactStorage(url)

    def test_a_folder_that_is_gone_is_an_error_in_one_line(self, tmp_path: Path):
        storage = ArtifactStorage(str(tmp_path / "artifacts"))
        blob = put(storage, tmp_path, b"data")
        (tmp_path / "artifacts" / "ten_a" / blob.sha256).unlink()
        with pytest.raises(ArtifactStorageError) as caught:
            storage.read("ten_a", blob.sha256)
        assert "\n" not in str(caught.value)

    def test_a_server_that_is_away_is_an_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        with pytest.raises(ArtifactStorageError):
            put(ArtifactStorage("s3://bucket/x"), tmp_path, b"data")
