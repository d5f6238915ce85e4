"""service.datasets.spool: multipart bodies are written to files; other bodies are refused."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest
from starlette.requests import ClientDisconnect, Request

from service.datasets.spool import Form, receive_form
from store.errors import ArtifactStorageError, ProblemError

BOUNDARY = b"xyz"
FILES = ("train", "test")


def part(disposition: str, content: bytes = b"") -> bytes:
    head = f"content-disposition: form-data; {disposition}\r\n\r\n".encode()
    return b"--" + BOUNDARY + b"\r\n" + head + content + b"\r\n"


def body(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--" + BOUNDARY + b"--\r\n"


def receive(
    content: bytes, folder: Path, *, step: int = 1 << 20, media_type: str | None = None
) -> Form:
    """Send a body in pieces of ``step`` bytes."""
    header = media_type or f"multipart/form-data; boundary={BOUNDARY.decode()}"
    pieces = [content[start : start + step] for start in range(0, len(content), step)]
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    return run(messages, folder, header)


def run(messages: list[dict[str, object]], folder: Path, header: str) -> Form:
    left = iter(messages)

    async def next_message() -> dict[str, object]:
        return next(left)

    scope = {"type": "http", "headers": [(b"content-type", header.encode("latin-1"))]}
    request = Request(scope, next_message)
    return asyncio.run(receive_form(request, folder=folder, files=FILES, fields=("name",)))


class TestReceiving:
    @pytest.mark.parametrize("step", [1, 7, 64, 1 << 20])
    def test_files_and_fields_arrive_in_pieces_of_any_size(self, tmp_path, step, monkeypatch):
        monkeypatch.setattr("service.datasets.spool._CHUNK_BYTES", step)
        content = bytes(range(256)) * 8 + b"\r\n--xy"
        form = receive(
            body(
                part('name="train"; filename="a.csv"', content),
                part('name="name"', "größe".encode()),
                part('name="test"; filename=""', b""),
            ),
            tmp_path,
            step=step,
        )
        assert form.fields == {"name": "größe"}
        assert form.files["train"].path.read_bytes() == content
        assert form.files["train"].sha256 == hashlib.sha256(content).hexdigest()
        assert form.files["test"].path.read_bytes() == b""
        assert [file.filename for file in form.files.values()] == ["a.csv", ""]

    @pytest.mark.parametrize(
        ("parameter", "name"),
        [
            ('filename="größe.csv"', "größe.csv"),  # curl, browsers
            ("filename*=UTF-8''gr%C3%B6%C3%9Fe.csv", "größe.csv"),
            ("filename*=utf-8'de'gr%C3%B6%C3%9Fe.csv", "größe.csv"),
            ("filename*=ISO-8859-1''gr%F6%DFe.csv", "größe.csv"),
            ("filename=\"gr__e\"; filename*=UTF-8''gr%C3%B6%C3%9Fe.csv", "größe.csv"),
            ("filename*=UTF-8''gr%C3%B6%C3%9Fe.csv; filename=\"gr__e\"", "größe.csv"),
            ('filename="=?UTF-8?B?Z3LDtsOfZS5jc3Y=?="', "größe.csv"),
            ('filename="=?UTF-8?Q?gr=C3=B6=C3=9Fe.csv?="', "größe.csv"),
            ('filename="=?UTF-8?B?Z3LDtsOfZS5j?= =?UTF-8?B?c3Y=?="', "größe.csv"),
            ('filename*0="gr"; filename*1="oss.csv"', "gross.csv"),
            ("filename=plain.csv", "plain.csv"),
            ('filename="a;b\\"c.csv"', 'a;b"c.csv'),
            ('filename="C:\\data\\x.csv"', "C:\\data\\x.csv"),
        ],
    )
    def test_a_files_name_is_decoded(self, tmp_path, parameter: str, name: str):
        form = receive(body(part(f'name="train"; {parameter}', b"x")), tmp_path)
        assert form.files["train"].filename == name

    @pytest.mark.parametrize(
        ("parameter", "name"),
        [
            ("filename*=no-charset''a%FF.csv", "a\xff.csv"),
            ("filename*=zlib''x%9C.csv", "x\x9c.csv"),
            ("filename*=%00''a.csv", "a.csv"),
            ("filename*=a.csv", "a.csv"),
            ("filename*=UTF-8''%FF%00.csv", "\ufffd\x00.csv"),
            ("filename*=UTF-8''..%2F..%2Fetc%2Fpasswd", "../../etc/passwd"),
            ('filename="=?no-charset?B?YQ==?=.csv"', "=?no-charset?B?YQ==?=.csv"),
            ('filename="=?UTF-8?B?=FF?="', "=?UTF-8?B?=FF?="),
            ("filename*=", ""),
            ('filename="' + "=?" * 1000 + '.csv"', "=?" * 1000 + ".csv"),
            ("filename=" + "%FF" * 1000 + ".csv", "%FF" * 1000 + ".csv"),
        ],
    )
    def test_a_name_that_cannot_be_decoded_harms_nothing(self, tmp_path, parameter, name):
        form = receive(body(part(f'name="train"; {parameter}', b"x")), tmp_path)
        assert form.files["train"].filename == name
        assert [file.name for file in tmp_path.iterdir()] == ["train"]

    @pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a\x00b", "C:\\x", "\xff"])
    def test_no_path_is_made_of_a_file_name(self, tmp_path, name):
        receive(body(part(f'name="train"; filename="{name}"', b"x")), tmp_path)
        assert [file.name for file in tmp_path.iterdir()] == ["train"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("parts", "param"),
        [
            ([part('name="other"', b"x")], "other"),
            ([part('name="other"; filename="a"', b"x")], "other"),
            ([part('name="../train"; filename="a"', b"x")], "../train"),
            ([part('name="train"', b"x")], "train"),
            ([part('name="name"; filename="a"', b"x")], "name"),
            ([part('name="name"', b"x")] * 2, "name"),
            ([part('name="train"; filename="a"', b"x")] * 2, "train"),
            ([part('name="name"', b"x" * 1025)], "name"),
            ([part('name="name"', b"\xff")], "name"),
            ([part('filename="a"', b"x")], ""),
            ([part("", b"x")] * 10_000, ""),
            ([part('name="train"; filename="a"', b"x")] * 10_000, "train"),
        ],
    )
    def test_a_part_that_is_not_expected_is_named(self, tmp_path, parts, param):
        with pytest.raises(ProblemError) as caught:
            receive(body(*parts), tmp_path)
        assert (caught.value.code, caught.value.status) == ("invalid_request", 422)
        assert caught.value.param == param

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"nonsense",
            b"--xyz",
            part('name="train"; filename="a"', b"cut off"),
            b"--xyz\r\n" + b"x-header: y\r\n" * 20 + b"\r\n--xyz--\r\n",
            b"--xyz\r\nx: " + b"y" * 10_000 + b"\r\n\r\n--xyz--\r\n",
            b"--xyz\r\n\x00: y\r\n\r\n--xyz--\r\n",
            b"a preamble" * 1000 + b"\r\n--xyz--\r\n",
            b"--xyz\r\n" + b"y" * (1 << 20),
            b"\r\n" * (1 << 19),
        ],
    )
    def test_a_body_that_is_no_form_is_refused(self, tmp_path, content):
        with pytest.raises(ProblemError) as caught:
            receive(content, tmp_path)
        assert (caught.value.code, caught.value.status) == ("invalid_multipart", 400)

    @pytest.mark.parametrize(
        ("media_type", "code"),
        [
            ("application/json", "unsupported_media_type"),
            (" ", "unsupported_media_type"),
            ("multipart/mixed; boundary=xyz", "unsupported_media_type"),
            ("multipart/form-data", "invalid_multipart"),
            ("multipart/form-data; boundary=", "invalid_multipart"),
            ("multipart/form-data; boundary=" + "x" * 300, "invalid_multipart"),
        ],
    )
    def test_another_type_is_refused(self, tmp_path, media_type, code):
        with pytest.raises(ProblemError) as caught:
            receive(body(), tmp_path, media_type=media_type)
        assert caught.value.code == code

    def test_a_full_disk_is_no_client_error(self, tmp_path):
        folder = tmp_path / "gone"
        with pytest.raises(ArtifactStorageError):
            receive(body(part('name="train"; filename="a"', b"x")), folder)

    def test_a_client_that_hangs_up_is_noticed(self, tmp_path):
        start = part('name="train"; filename="a"', b"x")
        messages = [
            {"type": "http.request", "body": start, "more_body": True},
            {"type": "http.disconnect"},
        ]
        with pytest.raises(ClientDisconnect):
            run(messages, tmp_path, "multipart/form-data; boundary=xyz")
