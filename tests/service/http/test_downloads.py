from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from service.http import problems
from service.http.downloads import (
    answer_with_file,
    content_disposition,
    file_name,
    has_already,
    requested_span,
)
from store.errors import ArtifactStorageError, ProblemError
from store.storage import Blob

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

CONTENT = bytes(range(10))
ETAG = f'"{"a" * 64}"'


class TestFileName:
    @pytest.mark.parametrize(
        ("name", "safe"),
        [
            ("mrpc", "mrpc.tar"),
            ("Paraphrase, großes Modell 2", "Paraphrase, großes Modell 2.tar"),
            ("../../etc/passwd", "_.._etc_passwd.tar"),
            ('a\\b:c*d?e"f<g>h|i%j;k', "a_b_c_d_e_f_g_h_i_j_k.tar"),
            ("line\r\nSet-Cookie: x", "lineSet-Cookie_ x.tar"),
            ("invoice\u202egpj.exe", "invoicegpj.exe.tar"),
            (".hidden. ", "hidden.tar"),
            ("\ud800", "job_1.tar"),
            ("\u200b\x00", "job_1.tar"),
            ("...", "job_1.tar"),
            ("", "job_1.tar"),
            (None, "job_1.tar"),
        ],
    )
    def test_keeps_what_is_safe_to_keep(self, name: str | None, safe: str):
        assert file_name(name, fallback="job_1", suffix=".tar") == safe

    def test_of_a_long_name_is_cut_before_the_suffix(self):
        name = file_name("x" * 5000, fallback="job_1", suffix=".safetensors")
        assert len(name) < 120
        assert name.endswith("x.safetensors")

    @given(st.text())
    def test_of_any_text_makes_a_header_of_one_line_of_ascii(self, name: str):
        header = content_disposition(file_name(name, fallback="job_1", suffix=".tar"))
        assert header.isascii()
        assert header.isprintable()
        assert header.startswith('attachment; filename="')
        assert header.count('"') == 2


class TestContentDisposition:
    def test_of_plain_ascii_needs_no_second_name(self):
        assert content_disposition("mrpc.tar") == 'attachment; filename="mrpc.tar"'

    def test_of_other_characters_gives_both_names(self):
        assert content_disposition("größe 1.tar") == (
            "attachment; filename=\"gr__e 1.tar\"; filename*=UTF-8''gr%C3%B6%C3%9Fe%201.tar"
        )


class TestRequestedSpan:
    @pytest.mark.parametrize(
        ("header", "span"),
        [
            ("bytes=0-0", range(1)),
            ("bytes=2-5", range(2, 6)),
            ("bytes=2-", range(2, 10)),
            ("bytes=2-9", range(2, 10)),
            ("bytes=2-1000", range(2, 10)),
            (f"bytes=2-{'9' * 5000}", range(2, 10)),
            ("bytes=0002-0005", range(2, 6)),
            ("bytes=-3", range(7, 10)),
            ("bytes=-10", range(10)),
            ("bytes=-1000", range(10)),
            (f"bytes=-{'9' * 5000}", range(10)),
            ("Bytes = 1 - 2", range(1, 3)),
        ],
    )
    def test_of_one_range_is_it(self, header: str, span: range):
        assert requested_span(header, size=10) == span

    @pytest.mark.parametrize(
        "header",
        [
            *(None, "", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=1", "bytes=5-2"),
            *("bytes=0-1,3-4", "lines=0-1", "bytes=0x1-2", "bytes=-1-2", "bytes=²-³"),
        ],
    )
    def test_of_several_or_none_is_the_whole_file(self, header: str | None):
        assert requested_span(header, size=10) is None

    @pytest.mark.parametrize(
        "header", ["bytes=10-", "bytes=10-20", "bytes=-0", f"bytes={'9' * 5000}-"]
    )
    def test_past_the_end_is_refused(self, header: str):
        with pytest.raises(ProblemError) as caught:
            requested_span(header, size=10)
        assert caught.value.status == 416
        assert caught.value.headers == {"Content-Range": "bytes */10"}

    @given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 20))
    def test_is_what_a_slice_gives(self, first: int, last: int, size: int):
        content = bytes(range(size))
        if first >= size or last < first:
            return
        span = requested_span(f"bytes={first}-{last}", size=size)
        assert span is not None
        assert content[span.start : span.stop] == content[first : last + 1]


class TestHasAlready:
    @pytest.mark.parametrize(
        "header", [ETAG, f"W/{ETAG}", "*", f'"other", {ETAG}', f' "a,b" ,W/{ETAG} ']
    )
    def test_recognises_its_own_etag(self, header: str):
        assert has_already(header, etag=ETAG)

    @pytest.mark.parametrize("header", [None, "", '"other"', "a" * 64, ETAG[:-2] + '"'])
    def test_rejects_any_other_etag(self, header: str | None):
        assert not has_already(header, etag=ETAG)


def client_of(read: object = None) -> TestClient:
    async def slices(start: int, end: int) -> AsyncIterator[bytes]:
        for at in range(start, end, 3):
            yield CONTENT[at : min(at + 3, end)]

    async def answer(request: Request) -> Response:
        return await answer_with_file(
            request,
            Blob(sha256="a" * 64, bytes=10),
            read=read or slices,  # type: ignore[arg-type]
            name="x.bin",
            media_type="application/octet-stream",
        )

    app = Starlette(routes=[Route("/", answer)])
    problems.install(app)  # type: ignore[arg-type]
    return TestClient(app, raise_server_exceptions=False)


class TestAnswerWithFile:
    def test_sends_all_of_it(self):
        answer = client_of().get("/")
        assert (answer.status_code, answer.content) == (200, CONTENT)
        assert answer.headers["etag"] == ETAG
        assert answer.headers["accept-ranges"] == "bytes"
        assert answer.headers["content-length"] == "10"
        assert answer.headers["content-disposition"] == 'attachment; filename="x.bin"'
        assert "content-range" not in answer.headers

    def test_sends_a_part(self):
        answer = client_of().get("/", headers={"Range": "bytes=2-5"})
        assert (answer.status_code, answer.content) == (206, CONTENT[2:6])
        assert answer.headers["content-range"] == "bytes 2-5/10"
        assert answer.headers["content-length"] == "4"
        assert answer.headers["etag"] == ETAG

    def test_sends_the_whole_for_several_ranges(self):
        answer = client_of().get("/", headers={"Range": "bytes=0-1,3-4"})
        assert (answer.status_code, answer.content) == (200, CONTENT)

    def test_refuses_a_range_past_the_end(self):
        answer = client_of().get("/", headers={"Range": "bytes=10-"})
        assert answer.status_code == 416
        assert answer.headers["content-range"] == "bytes */10"
        assert answer.json()["code"] == "range_not_satisfiable"

    def test_resumes_the_same_file_only(self):
        same = client_of().get("/", headers={"Range": "bytes=8-", "If-Range": ETAG})
        assert (same.status_code, same.content) == (206, CONTENT[8:])
        for other in ('"other"', f"W/{ETAG}", "Wed, 21 Oct 2015 07:28:00 GMT"):
            answer = client_of().get("/", headers={"Range": "bytes=8-", "If-Range": other})
            assert (answer.status_code, answer.content) == (200, CONTENT)

    def test_sends_nothing_the_caller_already_has(self):
        answer = client_of().get("/", headers={"If-None-Match": ETAG, "Range": "bytes=99-"})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == ETAG

    def test_answers_head_without_a_body(self):
        whole, head = client_of().get("/"), client_of().head("/", headers={"Range": "bytes=2-5"})
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers == whole.headers

    @pytest.mark.parametrize("at", ["opening", "first bytes"])
    def test_an_unavailable_store_fails_before_any_byte(self, at: str):
        def fail(_start: int, _end: int) -> AsyncIterator[bytes]:
            raise ArtifactStorageError("away")

        async def fail_late(_start: int, _end: int) -> AsyncIterator[bytes]:
            raise ArtifactStorageError("away")
            yield b""

        answer = client_of(fail if at == "opening" else fail_late).get("/")
        assert answer.status_code == 503
        assert answer.json()["code"] == "artifact_storage"
