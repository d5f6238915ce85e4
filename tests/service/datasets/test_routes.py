"""service.datasets.routes: uploads over HTTP, and clean-up after them."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from typing import Any, TypeAlias

import httpx2
import pytest
import sqlalchemy as sa

from service.app import build_app
from service.datasets import routes as module
from service.datasets.checking.conversion import convert
from store.errors import ArtifactStorageError, SettingsError
from store.storage import ArtifactStorage
from store.tables import Dataset, Job
from tests.repeated_rows import repeated_rows
from tests.service.gateways import (
    CSV,
    add_dataset_row,
    job_spec,
    opened,
    problem_of,
    served,
    settings_for,
)
from tests.waiting import eventually, patience


@pytest.fixture
def post(client, alice):
    def post(files=None, key=None, **fields):
        headers = alice.headers | ({} if key is None else {"Idempotency-Key": key})
        files = {"train": ("train.csv", CSV)} if files is None else files
        return client.post("/datasets", files=files, data=fields, headers=headers)

    return post


def left_over(settings) -> list[Path]:
    return list((settings.home / "uploads").glob("*/upload-*"))


@pytest.mark.process
class TestUpload:
    def test_answers_with_the_data_set(self, client, alice, settings, post):
        files = {"train": ("train.csv", CSV), "test": ("../../test.TSV", CSV.replace(b",", b"\t"))}
        answer = post(files, name="größe")
        assert answer.status_code == 201, answer.text
        dataset = answer.json()
        assert answer.headers["location"] == f"/datasets/{dataset['id']}"
        assert (dataset["object"], dataset["name"]) == ("dataset", "größe")
        assert dataset["splits"] == {"train": {"rows": 8}, "test": {"rows": 8}}
        assert set(dataset["columns"]) == {"text", "label"}
        assert dataset["created_at"].endswith("Z")
        assert client.get(answer.headers["location"], headers=alice.headers).json() == dataset
        listed = client.get("/datasets", headers=alice.headers).json()
        assert listed["data"] == [dataset]
        assert left_over(settings) == []

    def test_columns_keep_the_files_order_through_the_database(self, client, database, alice, post):
        path = post({"train": ("train.csv", b"text,label,a,z\nx,0,1,2\ny,1,1,2\n")}).headers[
            "location"
        ]
        with database.write() as session:
            row = session.scalars(sa.select(Dataset)).one()
            row.columns = {name: row.columns[name] for name in sorted(row.columns)}  # as Postgres
        columns = client.get(path, headers=alice.headers).json()["columns"]
        assert list(columns) == ["text", "label", "a", "z"]

    def test_may_be_a_json_list_or_squad(self, post):
        values = [{"start": 0, "end": 3, "labels": [label]} for label in ("person", "place")]
        results = [[{"result": [{"value": value, "type": "labels"}]}] for value in values]
        tasks = [{"data": {"text": "Ada"}, "annotations": each} for each in (*results, [])]
        answers: list[list[Any]] = [[{"text": "Ada", "answer_start": 0}], [], [], []]
        asked = [{"id": "q", "question": "Who?", "answers": each} for each in answers]
        article = {"title": "a", "paragraphs": [{"context": "Ada", "qas": asked}]}
        studio = post({"train": ("export.json", json.dumps(tasks).encode())})
        assert studio.status_code == 201, studio.text
        assert studio.json()["splits"] == {"train": {"rows": 2}}
        assert [note["code"] for note in studio.json()["notes"]] == ["rows_left_out"]
        squad = post({"train": ("dev-v2.0.JSON", json.dumps({"data": [article]}).encode())})
        assert squad.status_code == 201, squad.text
        assert squad.json()["splits"] == {"train": {"rows": 4}}
        assert list(squad.json()["columns"]) == ["id", "title", "question", "context", "answers"]

    def test_keeps_parquet_under_the_tenant(self, settings, database, alice, post):
        dataset_id = post().json()["id"]
        with database.read() as session:
            split = session.get(Dataset, dataset_id).splits["train"]
        stored = b"".join(
            ArtifactStorage(settings.artifacts_url).read(alice.tenant_id, split["sha256"])
        )
        assert (stored[:4], len(stored)) == (b"PAR1", split["bytes"])

    def test_can_be_trained_on(self, client, alice, post):
        answer = client.post("/jobs", json=job_spec(post().json()["id"]), headers=alice.headers)
        assert answer.status_code == 202, answer.text
        assert answer.json()["spec"]["task"]["label"] == "label"


class TestRefusals:
    @pytest.mark.process
    def test_a_bad_row_is_named(self, settings, database, post):
        problem = problem_of(post({"train": ("a.csv", b"text,label\nyes,1\n,0\n")}))
        assert (problem["status"], problem["code"]) == (422, "dataset_invalid")
        assert (problem["split"], problem["row"]) == ("train", 2)
        assert left_over(settings) == []
        with database.read() as session:
            assert session.scalars(sa.select(Dataset)).all() == []

    @pytest.mark.process
    @pytest.mark.parametrize(
        ("content", "row", "line", "reason"),
        [
            (b'[{"text": "a"},\n\n{"text": "b"', 2, 3, "the file ends at line 3, character 13"),
            (b'[{"text": "a"},\n5]', 2, 2, "must be a JSON object, not a whole number"),
            (b'{"text": ["a"],\n"label": [1]}', None, None, "a .json file must be a list of"),
        ],
    )
    def test_a_bad_json_file_is_described(self, post, content, row, line, reason):
        problem = problem_of(post({"train": ("a.json", content)}))
        assert (problem["status"], problem["code"]) == (422, "dataset_invalid")
        assert (problem.get("row"), problem.get("line")) == (row, line)
        assert reason in problem["detail"]

    @pytest.mark.parametrize(
        ("files", "fields", "param"),
        [
            ({"test": ("a.csv", CSV)}, {}, "train"),
            ({"train": ("a.csv", CSV), "other": ("a.csv", CSV)}, {}, "other"),
            ({"train": ("a.csv", CSV)}, {"colour": "red"}, "colour"),
            ({"train": ("a.csv", CSV)}, {"name": ""}, "name"),
            ({"train": ("a.csv", CSV)}, {"name": "a\x00"}, "name"),
            ({"train": ("a.csv", CSV)}, {"name": "x" * 129}, "name"),
            ({"train": ("a.exe", CSV)}, {}, "train"),
            ({"train": ("a.pkl", b"\x80\x04.")}, {}, "train"),
            ({"train": ("", CSV)}, {}, "train"),
        ],
    )
    def test_a_part_at_fault_is_named(self, settings, post, files, fields, param):
        problem = problem_of(post(files, **fields))
        assert (problem["status"], problem["param"]) == (422, param)
        assert left_over(settings) == []

    def test_a_body_that_is_no_form_is_refused(self, client, alice):
        answer = client.post("/datasets", json={}, headers=alice.headers)
        assert problem_of(answer)["code"] == "unsupported_media_type"

    def test_a_larger_one_than_allowed_is_refused(self, tmp_path, sqlite_url, alice):
        settings = settings_for(tmp_path / "home", sqlite_url, max_upload_bytes=100_000)

        def chunks():
            yield b'--x\r\ncontent-disposition: form-data; name="train"; filename="a.csv"\r\n\r\n'
            for _ in range(100):
                yield b"x" * 5000

        with served(build_app(settings)) as url, socket.create_connection(address(url)) as line:
            head = {"transfer-encoding": "chunked", **alice.headers}
            send_head(line, head)
            for chunk in chunks():
                line.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            line.sendall(b"0\r\n\r\n")
            assert line.recv(1 << 16).startswith(b"HTTP/1.1 413")
            assert left_over(settings) == []

    @pytest.mark.process
    @pytest.mark.parametrize(
        ("limit", "told"),
        [
            ({"converter_seconds": 0.01}, ("upload_too_slow", "0.01 seconds")),
            (
                {"converter_memory_bytes": 256 << 20},
                ("dataset_invalid", f"needs more than {256 << 20} bytes of memory"),
            ),
        ],
    )
    def test_one_that_takes_too_much_to_convert_is_refused(
        self, tmp_path, sqlite_url, alice, limit, told
    ):
        page = repeated_rows("x" * 120_000_000, rows=1, is_coded=False)
        with opened(settings_for(tmp_path / "home", sqlite_url, **limit)) as client:
            files = {"train": ("train.parquet", page)}
            problem = problem_of(client.post("/datasets", files=files, headers=alice.headers))
        assert (problem["status"], problem["code"]) == (422, told[0])
        assert told[1] in problem["detail"]

    @pytest.mark.process
    def test_one_more_at_a_time_than_a_tenant_may_have_is_refused(
        self, settings, alice, monkeypatch
    ):
        going_on = Event()

        async def wait_and_convert(*args, **options):
            assert await asyncio.to_thread(going_on.wait, patience(30))
            return await convert(*args, **options)

        monkeypatch.setattr(module, "convert", wait_and_convert)
        files = {"train": ("train.csv", CSV)}
        with (
            served(build_app(settings)) as url,
            ThreadPoolExecutor(8) as pool,
            httpx2.Client(base_url=url, headers=alice.headers, timeout=patience(60)) as client,
        ):
            posted = [pool.submit(client.post, "/datasets", files=files) for _ in range(8)]
            try:
                eventually(lambda: len(left_over(settings)) == 8)
                refused = client.post("/datasets", files=files)
            finally:
                going_on.set()
            problem = problem_of(refused)
            assert (problem["status"], problem["code"]) == (429, "too_many_uploads")
            assert {each.result().status_code for each in posted} == {201}
            assert client.post("/datasets", files=files).status_code == 201

    @pytest.mark.process
    def test_stored_bytes_have_a_quota(self, database, settings, post):
        with database.write() as session:
            session.execute(sa.text("UPDATE tenants SET max_bytes = 10"))
        problem = problem_of(post())
        assert (problem["status"], problem["code"]) == (403, "quota_exceeded")
        assert left_over(settings) == []

    def test_a_disk_without_room_is_no_client_error(self, post, monkeypatch):
        def fail(**_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(module.tempfile, "mkdtemp", fail)
        answer = post()
        assert (answer.status_code, answer.json()["code"]) == (503, "artifact_storage")

    @pytest.mark.process
    def test_an_unavailable_artifact_store_is_no_client_error(self, post, monkeypatch):
        def fail(*_: object, **__: object) -> None:
            raise ArtifactStorageError("the artifact store cannot be reached")

        monkeypatch.setattr(ArtifactStorage, "put", fail)
        answer = post(key="k")
        assert (answer.status_code, answer.json()["code"]) == (503, "artifact_storage")
        assert answer.headers["retry-after"]
        monkeypatch.undo()
        assert post(key="k").status_code == 201


class TestHangingUp:
    def test_leaves_nothing_behind(self, tmp_path, sqlite_url, database, alice):
        settings = settings_for(tmp_path / "home", sqlite_url)
        with served(build_app(settings)) as url:
            line = socket.create_connection(address(url))
            send_head(line, {"content-length": "9999999", **alice.headers})
            line.sendall(
                b'--x\r\ncontent-disposition: form-data; name="train"; filename="a.csv"\r\n'
            )
            line.sendall(b"\r\n" + b"a,b\n" * 500_000)
            eventually(lambda: any(folder.iterdir() for folder in left_over(settings)))
            line.close()
            eventually(lambda: left_over(settings) == [])
        with database.read() as session:
            assert session.scalars(sa.select(Dataset)).all() == []

    def test_a_folder_that_cannot_be_used_is_named_at_the_start(self, tmp_path, sqlite_url):
        settings = settings_for(tmp_path / "home", sqlite_url)
        settings.home.mkdir()
        (settings.home / "uploads").write_text("a file")
        with pytest.raises(SettingsError, match=r"HIFI_HOME=.*home"), opened(settings):
            pass


@pytest.fixture
def slow_file() -> bytes:
    """Return a small file whose rows take many seconds to check."""
    return repeated_rows("the same", rows=4_000_000)


class Conversions:
    """Counts the conversions that have begun and ended, with their real processes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = 0
        self.ended = 0
        monkeypatch.setattr(module, "convert", self._convert)

    async def _convert(self, *args, **options):
        self.begun += 1
        try:
            return await convert(*args, **options)
        finally:
            self.ended += 1


Slow: TypeAlias = Iterator[tuple[str, Conversions, list[socket.socket]]]


@pytest.mark.process
class TestTurns:
    @pytest.fixture
    def slow(self, settings, slow_file, alice, monkeypatch) -> Slow:
        """Serve a gateway that converts slow uploads of one tenant, more than it may at once."""
        conversions = Conversions(monkeypatch)
        with served(build_app(settings)) as url, ExitStack() as stack:
            lines = [stack.enter_context(socket.create_connection(address(url))) for _ in range(4)]
            for line in lines:
                send_file(line, slow_file, alice.headers)
            eventually(lambda: conversions.begun == 2)
            eventually(lambda: len(left_over(settings)) == 4)
            yield url, conversions, lines

    def test_one_tenants_slow_uploads_delay_no_others(self, slow, bob):
        url, conversions, _ = slow
        files = {"train": ("train.csv", CSV)}
        answer = httpx2.post(
            f"{url}/datasets", files=files, headers=bob.headers, timeout=patience(60)
        )
        assert answer.status_code == 201
        assert (conversions.begun, conversions.ended) == (3, 1)  # the others still run or wait

    def test_those_of_a_caller_who_hangs_up_end(self, slow, settings):
        _, conversions, lines = slow
        for line in lines:
            line.close()
        eventually(lambda: left_over(settings) == [])
        assert conversions.begun == conversions.ended


@pytest.mark.process
class TestIdempotency:
    def test_the_same_files_make_one_data_set(self, database, post):
        first, second = (post(key="k", name="a") for _ in range(2))
        assert first.status_code == 201
        assert first.content == second.content
        assert second.headers["idempotent-replayed"] == "true"
        with database.read() as session:
            assert len(session.scalars(sa.select(Dataset)).all()) == 1

    @pytest.mark.parametrize(
        ("files", "fields"),
        [
            ({"train": ("train.csv", CSV + b"more,1\n")}, {"name": "a"}),
            ({"train": ("train.csv", CSV), "test": ("t.csv", CSV)}, {"name": "a"}),
            ({"train": ("train.tsv", CSV)}, {"name": "a"}),
            ({"train": ("train.csv", CSV)}, {"name": "b"}),
            ({"train": ("train.csv", CSV)}, {}),
        ],
    )
    def test_others_are_refused(self, post, files, fields):
        post(key="k", name="a")
        problem = problem_of(post(files, key="k", **fields))
        assert (problem["status"], problem["code"]) == (422, "idempotency_key_reused")

    def test_the_files_name_does_not_matter(self, post):
        post(key="k")
        answer = post({"train": ("another name.CSV", CSV)}, key="k")
        assert answer.headers["idempotent-replayed"] == "true"


class TestDelete:
    def test_removes_it(self, client, alice, database):
        path = f"/datasets/{add_dataset_row(database, alice)}"
        answer = client.delete(path, headers=alice.headers)
        assert (answer.status_code, answer.content) == (204, b"")
        assert problem_of(client.get(path, headers=alice.headers))["status"] == 404
        assert problem_of(client.delete(path, headers=alice.headers))["status"] == 404

    def test_is_refused_while_a_live_job_needs_it(self, client, alice, database):
        dataset = add_dataset_row(database, alice)
        job = client.post("/jobs", json=job_spec(dataset), headers=alice.headers).json()
        answer = client.delete(f"/datasets/{dataset}", headers=alice.headers)
        problem = problem_of(answer)
        assert (problem["status"], problem["code"]) == (409, "dataset_in_use")
        client.post(f"/jobs/{job['id']}/cancel", headers=alice.headers)
        answer = client.delete(f"/datasets/{dataset}", headers=alice.headers)
        assert answer.status_code == 204
        with database.read() as session:
            assert session.scalars(sa.select(Job.id)).all() == [job["id"]]


class TestList:
    def test_pages_are_newest_first(self, client, alice, database):
        added = [add_dataset_row(database, alice, name=str(number)) for number in range(3)]
        page = client.get("/datasets?limit=2", headers=alice.headers).json()
        assert [dataset["id"] for dataset in page["data"]] == [added[2], added[1]]
        assert page["has_more"]
        rest = client.get(f"/datasets?after={page['last_id']}", headers=alice.headers).json()
        assert [dataset["id"] for dataset in rest["data"]] == [added[0]]


def address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)


def send_head(line: socket.socket, headers: dict[str, str]) -> None:
    all_headers = {
        "host": "127.0.0.1",
        "content-type": "multipart/form-data; boundary=x",
        **headers,
    }
    lines = [f"{name}: {value}" for name, value in all_headers.items()]
    line.sendall("\r\n".join(["POST /datasets HTTP/1.1", *lines, "", ""]).encode())


def send_file(line: socket.socket, content: bytes, headers: dict[str, str]) -> None:
    start = b'--x\r\ncontent-disposition: form-data; name="train"; filename="a.parquet"\r\n\r\n'
    body = start + content + b"\r\n--x--\r\n"
    send_head(line, {"content-length": str(len(body)), **headers})
    line.sendall(body)
