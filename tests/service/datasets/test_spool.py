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
