"""service.client.uploads: files are sent in pieces, and from the start on a retry."""

from __future__ import annotations

import re
import tracemalloc

import pytest

from service.client import LocalFileError
from service.client.uploads import open_form
from tests.service.stub_server import document, hang_up

DATASET = {"id": "ds_1", "object": "dataset"}


@pytest.fixture
def files(tmp_path):
    """Write two splits; return their paths."""
    train, validation = tmp_path / "train.jsonl", tmp_path / "validation.jsonl"
    train.write_bytes(b'{"text": "a"}\n')
    validation.write_bytes(b'{"text": "b"}\n')
    return train, validation


def parts(asked):
    """Return the parts of a multipart body: name to content."""
    boundary = re.search("boundary=(.*)", asked.headers["content-type"])[1].encode()
    found = {}
    for part in asked.body.split(b"--" + boundary)[1:-1]:
        head, _, body = part.partition(b"\r\n\r\n")
        found[re.search(rb'name="(\w+)"', head)[1].decode()] = body.removesuffix(b"\r\n")
    return found


class TestPush:
    def test_sends_the_files_and_the_name(self, client, stub, files):
        stub.on("POST", "/datasets", document(DATASET, status=201))
        train, validation = files
        assert client.datasets.push(train, validation=validation, name="films") == DATASET
        assert parts(stub.asked[0]) == {
            "name": b"films",
            "train": train.read_bytes(),
            "validation": validation.read_bytes(),
        }

    def test_a_repetition_sends_the_whole_files_again_under_the_same_key(self, client, stub, files):
        stub.on("POST", "/datasets", hang_up, document(DATASET, status=201))
        client.datasets.push(files[0])
        first, second = stub.asked
        assert parts(first) == parts(second) == {"train": files[0].read_bytes()}
        assert first.headers["idempotency-key"] == second.headers["idempotency-key"]

    def test_reports_progress(self, client, stub, files):
        stub.on("POST", "/datasets", document(DATASET, status=201))
        told = []
        client.datasets.push(
            files[0], validation=files[1], on_progress=lambda *sizes: told.append(sizes)
        )
        total = sum(path.stat().st_size for path in files)
        assert told[-1] == (total, total)

    def test_a_missing_file_is_named_before_anything_is_sent(self, client, stub, tmp_path):
        with pytest.raises(LocalFileError, match=r"missing\.jsonl: No such file"):
            client.datasets.push(tmp_path / "missing.jsonl")
        assert stub.asked == []

    def test_a_folder_is_no_file(self, client, tmp_path):
        with pytest.raises(LocalFileError, match="Is a directory"):
            client.datasets.push(tmp_path)

    def test_a_big_file_is_never_whole_in_memory(self, tmp_path):
        big = tmp_path / "train.csv"
        with big.open("wb") as file:
            file.truncate(64 << 20)
        from httpx2._multipart import MultipartStream  # noqa: PLC0415 - what the client sends by

        tracemalloc.start()
        with open_form({"train": big}, fields={}) as form:
            stream = MultipartStream(data=form["data"], files=form["files"])
            assert stream.get_content_length() > 64 << 20
            assert sum(len(chunk) for chunk in stream.iter_chunks()) > 64 << 20
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 4 << 20
