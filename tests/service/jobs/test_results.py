from __future__ import annotations

import asyncio
import hashlib
import io
import tarfile
import threading
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from service.app import build_app
from store.states import JobStatus
from store.storage import ArtifactStorage
from tests.service.gateways import (
    Member,
    add_member,
    asked_and_left,
    opened,
    problem_of,
    served,
    settings_for,
)
from tests.service.work import FILES, finished_job, heads_of, running_job, select
from tests.waiting import eventually, patience

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.requests import Request
    from starlette.testclient import TestClient

    from store.database.connection import Database
    from store.settings import Settings

PATHS = ("heads", "heads/delta", "heads/lora", "merged")
SECONDS = 10


@pytest.fixture
def storage(settings: Settings) -> ArtifactStorage:
    return ArtifactStorage(settings.artifacts_url)


@pytest.fixture
def finished(database: Database, storage: ArtifactStorage, alice: Member) -> str:
    return finished_job(database, storage, alice.tenant_id, name="mrpc")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class TestEveryResult:
    @pytest.mark.parametrize("path", PATHS)
    def test_is_not_ready_before_it_is_there(
        self, client: TestClient, database: Database, alice: Member, path: str
    ):
        job_id, lease = running_job(database, alice.tenant_id)
        if path != "heads":
            select(lease, job_id)
        answer = client.get(f"/jobs/{job_id}/{path}", headers=alice.headers)
        problem = problem_of(answer)
        assert (problem["status"], problem["code"]) == (409, "not_ready")
        assert "yet" in problem["detail"]
        lease.fail(code="out_of_memory", message="too large")
        answer = client.get(f"/jobs/{job_id}/{path}", headers=alice.headers)
        if path != "heads":
            assert "never" in problem_of(answer)["detail"]

    @pytest.mark.parametrize("path", PATHS)
    def test_is_for_the_owner_alone(
        self, client: TestClient, bob: Member, finished: str, path: str
    ):
        theirs = problem_of(client.get(f"/jobs/{finished}/{path}", headers=bob.headers))
        none = problem_of(client.get(f"/jobs/job_{'x' * 24}/{path}", headers=bob.headers))
        assert (theirs["status"], theirs["code"]) == (404, "not_found")
        assert theirs["detail"] == none["detail"].replace("x" * 24, finished[4:])
        assert problem_of(client.get(f"/jobs/{finished}/{path}"))["status"] == 401


class TestHeads:
    def test_are_there_as_soon_as_selection_is_done(
        self, client: TestClient, database: Database, alice: Member
    ):
        job_id, lease = running_job(database, alice.tenant_id)
        select(lease, job_id)
        answer = client.get(f"/jobs/{job_id}/heads", headers=alice.headers)
        assert answer.status_code == 200
        document = {**heads_of(job_id), "score": "pagerank", "budget": None, "artifact": None}
        for layer in document["layers"]:
            layer["values"] = layer["importance"]
        assert answer.json() == document

    def test_are_those_of_another_score_beside_the_papers(
        self, client: TestClient, database: Database, alice: Member
    ):
        job_id, lease = running_job(database, alice.tenant_id)
        stored = {**heads_of(job_id), "score": "gradient", "k": None, "budget": 4}
        stored["layers"] = [{**layer, "values": [9.0, 1, 8, 2]} for layer in stored["layers"]]
        lease.advance(JobStatus.SELECTING, message="scoring the heads")
        lease.keep_selection(selection={}, heads=stored)
        answer = client.get(f"/jobs/{job_id}/heads", headers=alice.headers)
        assert answer.status_code == 200
        assert answer.json() == {**stored, "artifact": None}

    def test_name_the_artifact_when_it_is_there(
        self, client: TestClient, alice: Member, finished: str
    ):
        artifact = client.get(f"/jobs/{finished}/heads", headers=alice.headers).json()["artifact"]
        whole = FILES["float32"]
        assert artifact == {
            "bytes": len(whole),
            "sha256": sha256(whole),
            "url": f"/jobs/{finished}/heads/delta",
        }
        assert client.get(artifact["url"], headers=alice.headers).content == whole


class TestDelta:
    @pytest.mark.parametrize("encoding", ["float32", "bfloat16", "int8"])
    def test_is_the_file_that_was_stored(
        self, client: TestClient, alice: Member, finished: str, encoding: str
    ):
        content = FILES[encoding]
        answer = client.get(
            f"/jobs/{finished}/heads/delta", params={"encoding": encoding}, headers=alice.headers
        )
        assert answer.status_code == 200
        assert answer.content == content
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["etag"] == f'"{sha256(content)}"'
        suffix = "" if encoding == "float32" else f".{encoding}"
        name = f"mrpc{suffix}.safetensors"
        assert answer.headers["content-disposition"] == f'attachment; filename="{name}"'

    def test_is_float32_by_default(self, client: TestClient, alice: Member, finished: str):
        answer = client.get(f"/jobs/{finished}/heads/delta", headers=alice.headers)
        assert answer.content == FILES["float32"]

    @pytest.mark.parametrize("encoding", ["lora", "float16", "", "FLOAT32", "../secret"])
    def test_has_no_other_encoding(
        self, client: TestClient, alice: Member, finished: str, encoding: str
    ):
        answer = client.get(
            f"/jobs/{finished}/heads/delta", params={"encoding": encoding}, headers=alice.headers
        )
        problem = problem_of(answer)
        assert (problem["status"], problem["code"]) == (422, "invalid_request")
        assert problem["param"] == "encoding"

    def test_comes_in_parts(self, client: TestClient, alice: Member, finished: str):
        whole = FILES["float32"]
        cut = 2_000_001
        path = f"/jobs/{finished}/heads/delta"
        first = client.get(path, headers={**alice.headers, "Range": f"bytes=0-{cut - 1}"})
        rest = client.get(
            path,
            headers={
                **alice.headers,
                "Range": f"bytes={cut}-",
                "If-Range": first.headers["etag"],
            },
        )
        assert (first.status_code, rest.status_code) == (206, 206)
        assert first.content + rest.content == whole
        behind = client.get(path, headers={**alice.headers, "Range": f"bytes={len(whole)}-"})
        problem = problem_of(behind)
        assert (problem["status"], problem["code"]) == (416, "range_not_satisfiable")
        assert behind.headers["content-range"] == f"bytes */{len(whole)}"

    def test_is_not_sent_again(self, client: TestClient, alice: Member, finished: str):
        path = f"/jobs/{finished}/heads/delta"
        etag = client.head(path, headers=alice.headers).headers["etag"]
        answer = client.get(path, headers={**alice.headers, "If-None-Match": etag})
        assert (answer.status_code, answer.content) == (304, b"")

    def test_answers_head_without_a_body(self, client: TestClient, alice: Member, finished: str):
        answer = client.head(f"/jobs/{finished}/heads/delta", headers=alice.headers)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-length"] == str(len(FILES["float32"]))

    def test_is_named_after_the_job_in_any_language(
        self, client: TestClient, database: Database, storage: ArtifactStorage, alice: Member
    ):
        name = '../größe"\r\nX-Evil: 1'
        job_id = finished_job(database, storage, alice.tenant_id, name=name)
        answer = client.get(f"/jobs/{job_id}/heads/delta", headers=alice.headers)
        assert "x-evil" not in answer.headers
        assert answer.headers["content-disposition"] == (
            'attachment; filename="_gr__e_X-Evil_ 1.safetensors"; '
            "filename*=UTF-8''_gr%C3%B6%C3%9Fe_X-Evil_%201.safetensors"
        )

    def test_of_a_job_without_a_name_has_its_id(
        self, client: TestClient, database: Database, storage: ArtifactStorage, alice: Member
    ):
        job_id = finished_job(database, storage, alice.tenant_id)
        answer = client.get(f"/jobs/{job_id}/heads/delta", headers=alice.headers)
        assert f'filename="{job_id}.safetensors"' in answer.headers["content-disposition"]

    def test_a_lost_blob_fails_before_the_first_byte(
        self, client: TestClient, storage: ArtifactStorage, alice: Member, finished: str
    ):
        storage.delete(alice.tenant_id, sha256(FILES["float32"]))
        answer = client.get(f"/jobs/{finished}/heads/delta", headers=alice.headers)
        assert answer.status_code == 503
        assert answer.json()["code"] == "blob_lost"
        assert "retry-after" in answer.headers


class TestLora:
    def test_is_the_tar_that_was_stored(self, client: TestClient, alice: Member, finished: str):
        path = f"/jobs/{finished}/heads/lora"
        answer = client.get(path, headers=alice.headers)
        assert (answer.status_code, answer.content) == (200, FILES["lora"])
        assert answer.headers["content-type"] == "application/x-tar"
        assert answer.headers["etag"] == f'"{sha256(FILES["lora"])}"'
        assert 'filename="mrpc-lora.tar"' in answer.headers["content-disposition"]
        part = client.get(path, headers={**alice.headers, "Range": "bytes=-5"})
        assert (part.status_code, part.content) == (206, FILES["lora"][-5:])


class Inference:
    """A fake inference process that merges nothing and records its requests."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.is_slow = self.is_endless = False
        self.answer: Response | None = None
        self.gone = threading.Event()
        self.app = Starlette(routes=[Route("/merged", self._merged, methods=["POST"])])

    async def _merged(self, request: Request) -> Response:
        self.asked.append(await request.json())
        if self.is_slow:
            await self._wait_for_the_caller_to_go(request)
            return Response()
        return self.answer or StreamingResponse(self._tar())

    async def _wait_for_the_caller_to_go(self, request: Request) -> None:
        async with asyncio.timeout(patience(SECONDS)):
            await request.receive()
        self.gone.set()

    async def _tar(self) -> AsyncIterator[bytes]:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("config.json"))
        try:
            yield buffer.getvalue()
            while self.is_endless:
                yield b"\0" * 65536
                await asyncio.sleep(0.001)
        finally:
            self.gone.set()


@pytest.fixture
def inference() -> Inference:
    return Inference()


@pytest.fixture
def merging(
    settings: Settings,
    database: Database,  # noqa: ARG001 - made first
    inference: Inference,
) -> Iterator[str]:
    """Yield the URL of a gateway with a fake inference process."""
    with served(inference.app) as url:
        app = build_app(settings.model_copy(update={"infer_url": url}))
        with served(app) as gateway:
            yield gateway


class TestMerged:
    def test_comes_from_the_inference_process(
        self, merging: str, inference: Inference, alice: Member, finished: str
    ):
        answer = httpx2.get(f"{merging}/jobs/{finished}/merged", headers=alice.headers)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/x-tar"
        assert 'filename="mrpc-merged.tar"' in answer.headers["content-disposition"]
        with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
            assert tar.getnames() == ["config.json"]
        assert inference.asked == [
            {
                "tenant": alice.tenant_id,
                "job": finished,
                "model": "minilm",
                "revision": None,
                "sha256": sha256(FILES["float32"]),
            }
        ]

    def test_passes_errors_on(
        self, merging: str, inference: Inference, alice: Member, finished: str
    ):
        said = {"code": "fingerprint_mismatch", "detail": "made for another backbone"}
        inference.answer = JSONResponse(said, status_code=409)
        answer = httpx2.get(f"{merging}/jobs/{finished}/merged", headers=alice.headers)
        problem = problem_of(answer)
        assert (problem["status"], problem["code"]) == (409, "fingerprint_mismatch")

    def test_reports_an_unavailable_inference_process(
        self, tmp_path: Path, sqlite_url: str, database: Database
    ):
        alice = add_member(database, "carol")
        settings = settings_for(
            tmp_path / "home", sqlite_url, infer_url=f"unix://{tmp_path}/nobody"
        )
        storage = ArtifactStorage(settings.artifacts_url)
        job_id = finished_job(database, storage, alice.tenant_id)
        with opened(settings) as client:
            answer = client.get(f"/jobs/{job_id}/merged", headers=alice.headers)
        assert answer.status_code == 503
        assert answer.json()["code"] == "inference_unavailable"
        assert int(answer.headers["retry-after"]) > 0

    def test_one_more_than_a_tenant_may_be_sent_is_refused(
        self, merging: str, inference: Inference, alice: Member, finished: str
    ):
        inference.is_endless = True
        url = f"{merging}/jobs/{finished}/merged"

        def ask() -> httpx2.Response:
            request = client.build_request("GET", url, headers=alice.headers)
            return client.send(request, stream=True)

        with httpx2.Client(timeout=patience(SECONDS)) as client:
            open_ones = [ask() for _ in range(4)]
            assert [answer.status_code for answer in open_ones] == [200] * 4
            refused = ask()
            refused.read()
            problem = problem_of(refused)
            assert (problem["status"], problem["code"]) == (429, "too_many_merges")
            assert len(inference.asked) == 4
            open_ones[0].close()

            def status() -> int:
                again = ask()
                again.close()
                return again.status_code

            assert eventually(lambda: (answer := status()) != 429 and answer) == 200

    @pytest.mark.parametrize("when", ["while it waits", "while it reads"])
    def test_is_given_up_when_the_caller_goes(
        self, merging: str, inference: Inference, alice: Member, finished: str, when: str
    ):
        inference.is_slow = when == "while it waits"
        inference.is_endless = not inference.is_slow
        url = f"{merging}/jobs/{finished}/merged"
        if inference.is_slow:
            with asked_and_left(url, headers=alice.headers):
                eventually(lambda: inference.asked)
        else:
            with httpx2.stream("GET", url, headers=alice.headers) as answer:
                assert next(answer.iter_raw())
        assert inference.gone.wait(patience())
