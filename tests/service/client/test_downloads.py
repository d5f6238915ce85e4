"""service.client.downloads: a file arrives complete and verified, or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from service.client import ApiError, DamagedDownloadError, LocalFileError, UnreachableError
from service.client.downloads import ATTEMPTS
from tests.service.stub_server import broken_off, problem, reply

BODY = bytes(range(256)) * 40
SHA256 = hashlib.sha256(BODY).hexdigest()
ETAG = f'"{SHA256}"'
PATH = "/jobs/job_1/heads/delta"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "delta.safetensors"


def rest(at, *, body=BODY, etag=ETAG):
    """Answer a request for the bytes from ``at`` on."""
    return reply(
        body[at:],
        status=206,
        etag=etag,
        content_range=f"bytes {at}-{len(body) - 1}/{len(body)}",
    )


class TestDownload:
    def test_writes_what_the_server_has(self, client, stub, out):
        stub.on("GET", PATH, reply(BODY, etag=ETAG))
        done = client.jobs.download_delta("job_1", out, encoding="int8")
        assert (done.path, done.bytes, done.sha256) == (out, len(BODY), SHA256)
        assert out.read_bytes() == BODY
        assert stub.asked[0].path == f"{PATH}?encoding=int8"
        assert list(out.parent.iterdir()) == [out]

    def test_resumes_where_it_broke(self, client, stub, out):
        stub.on(
            "GET",
            PATH,
            broken_off(BODY, after=5000, etag=ETAG),
            broken_off(
                BODY[5000:],
                after=1000,
                status=206,
                etag=ETAG,
                content_range=f"bytes 5000-{len(BODY) - 1}/{len(BODY)}",
            ),
            rest(6000),
        )
        told = []
        done = client.jobs.download_delta(
            "job_1", out, on_progress=lambda *sizes: told.append(sizes)
        )
        assert (out.read_bytes(), done.sha256) == (BODY, SHA256)
        assert [asked.headers.get("range") for asked in stub.asked] == [
            None,
            "bytes=5000-",
            "bytes=6000-",
        ]
        assert stub.asked[1].headers["if-range"] == ETAG
        assert told[-1] == (len(BODY), len(BODY))

    def test_restarts_if_the_servers_file_has_changed(self, client, stub, out):
        other = b"other" * 1000
        etag = f'"{hashlib.sha256(other).hexdigest()}"'
        stub.on("GET", PATH, broken_off(BODY, after=5000, etag=ETAG), reply(other, etag=etag))
        client.jobs.download_delta("job_1", out)
        assert out.read_bytes() == other

    def test_a_file_without_an_etag_restarts(self, client, stub, out):
        stub.on("GET", "/jobs/job_1/merged", broken_off(BODY, after=5000), reply(BODY))
        client.jobs.download_merged("job_1", out)
        assert out.read_bytes() == BODY
        assert "range" not in stub.asked[1].headers

    def test_a_hash_mismatch_is_refused_and_leaves_no_file(self, client, stub, out):
        out.write_bytes(b"before")
        stub.on("GET", PATH, reply(b"x" + BODY[1:], etag=ETAG))
        with pytest.raises(DamagedDownloadError, match=SHA256):
            client.jobs.download_delta("job_1", out)
        assert out.read_bytes() == b"before"
        assert list(out.parent.iterdir()) == [out]

    def test_a_connection_that_always_breaks_is_given_up(self, client, stub, out):
        stub.on("GET", "/jobs/job_1/heads/lora", broken_off(BODY, after=0))
        with pytest.raises(UnreachableError):
            client.jobs.download_lora("job_1", out)
        assert len(stub.asked) <= ATTEMPTS
        assert list(out.parent.iterdir()) == []

    def test_as_long_as_bytes_come_it_is_not_given_up(self, client, stub, out):
        pieces = range(0, len(BODY), 1000)
        stub.on(
            "GET",
            PATH,
            *(
                broken_off(
                    BODY[at:],
                    after=1000,
                    status=206 if at else 200,
                    etag=ETAG,
                    content_range=f"bytes {at}-{len(BODY) - 1}/{len(BODY)}",
                )
                for at in pieces[:-1]
            ),
            rest(pieces[-1]),
        )
        client.jobs.download_delta("job_1", out)
        assert out.read_bytes() == BODY
        assert len(stub.asked) > ATTEMPTS

    def test_a_busy_server_is_retried(self, client, stub, out, slept):
        busy = problem(503, "unavailable", "another model is being merged", retry_after="3")
        stub.on("GET", "/jobs/job_1/merged", busy, busy, reply(BODY))
        client.jobs.download_merged("job_1", out)
        assert (out.read_bytes(), slept) == (BODY, [3.0, 3.0])

    def test_one_that_stays_busy_is_given_up(self, client, stub, out):
        stub.on("GET", "/jobs/job_1/merged", problem(503, "unavailable", "no inference process"))
        with pytest.raises(ApiError, match="no inference process"):
            client.jobs.download_merged("job_1", out)
        assert len(stub.asked) == ATTEMPTS

    def test_a_refusal_leaves_nothing(self, client, stub, out):
        stub.on("GET", PATH, problem(409, "not_ready", "the job is training"))
        with pytest.raises(ApiError) as raised:
            client.jobs.download_delta("job_1", out)
        assert raised.value.code == "not_ready"
        assert list(out.parent.iterdir()) == []

    @pytest.mark.parametrize("folder", [".", "/", ""])
    def test_a_folder_as_target_fails_before_any_request(
        self, client, stub, out, monkeypatch, folder
    ):
        monkeypatch.chdir(out.parent)
        with pytest.raises(LocalFileError, match="folder"):
            client.jobs.download_delta("job_1", Path(folder))
        assert stub.asked == []

    def test_a_missing_folder_fails_before_any_request(self, client, stub, out):
        with pytest.raises(LocalFileError, match="cannot write"):
            client.jobs.download_delta("job_1", out.parent / "missing" / "x")
        assert stub.asked == []
