"""service.jobs.hub: names pinned to commits, asked of a stand-in for the hub."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from service.jobs import hub
from service.jobs.hub import is_hub_id
from store.errors import ProblemError
from tests.waiting import eventually, patience

COMMIT = "0123456789abcdef" * 2 + "01234567"
FILES = {
    "models/good/model": ["config.json", "model.safetensors"],
    "models/good/parts": ["config.json", "model.safetensors.index.json"],
    "models/bad/pickled": ["config.json", "pytorch_model.bin"],
    "models/bad/empty": ["README.md"],
    "datasets/nyu-mll/glue": ["mrpc/train.parquet"],
    "datasets/glue": ["mrpc/train.parquet"],
    "models/no/commit": ["model.safetensors"],
    "datasets/no/commit": ["train.parquet"],
}


class Answers(BaseHTTPRequestHandler):
    """A stand-in for the hub's API."""

    def do_GET(self) -> None:
        """Answer as the hub does."""
        asked.append((self.path, self.headers.get("authorization")))
        name = self.path.removeprefix("/api/").partition("?")[0]
        name, _, revision = name.partition("/revision/")
        if name == "models/slow/model":
            given_up.wait(patience(60))
            return
        if name == "models/odd/model":
            self.reply(200, b"<html>")
        elif name == "models/down/model":
            self.reply(503, b"{}")
        elif name in FILES and revision in ("", "main", COMMIT):
            siblings = [{"rfilename": file} for file in FILES[name]]
            _, _, identifier = name.partition("/")
            sha = None if identifier == "no/commit" else COMMIT
            document = {"id": identifier, "sha": sha, "siblings": siblings, "private": False}
            self.reply(
                200, json.dumps({**document, "tags": [], "downloads": 1, "likes": 1}).encode()
            )
        else:
            code = "RevisionNotFound" if name in FILES else "RepoNotFound"
            self.reply(404, b"{}", code=code)

    def reply(self, status: int, body: bytes, *, code: str | None = None) -> None:
        """Send an answer."""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if code is not None:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


asked: list[tuple[str, str | None]] = []
given_up = threading.Event()  # the caller of the slow model has given up


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def online(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow the hub's client to connect, to the stand-in only."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "hf_the_operators_own")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    asked.clear()


def refusal(call) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        call()
    assert caught.value.status == 422
    return caught.value


class TestNames:
    @pytest.mark.parametrize("name", ["google/bert", "a/b", "nyu-mll/glue_2.0", "0x/1-a"])
    def test_that_could_be_the_hubs(self, name: str):
        assert is_hub_id(name)

    @pytest.mark.parametrize(
        "name",
        [
            *("bert", "", "a/b/c", "/a/b", "a/", "/a", "../a", "a/..", "a/..b", "./a", "~a/b"),
            *("a/b\n", "a\\b/c", "a/ b", "ü/b", "a/b?x=1", "a/b#c", "a/b@main", "http://a/b"),
            "a/%2e%2e",
        ],
    )
    def test_that_could_not(self, name: str):
        assert not is_hub_id(name)


class TestModels:
    @pytest.mark.parametrize("name", ["good/model", "good/parts"])
    def test_are_pinned_to_a_commit(self, name: str):
        assert hub.pin_model(name) == COMMIT

    def test_the_operators_token_stays_at_home(self):
        hub.pin_model("good/model")
        assert {token for _, token in asked} == {None}

    @pytest.mark.parametrize(
        ("name", "code"),
        [
            ("bad/pickled", "pickled_weights"),
            ("bad/empty", "model_not_found"),
            ("not/there", "model_not_found"),
            ("odd/model", "hub_unavailable"),
            ("down/model", "hub_unavailable"),
        ],
    )
    def test_that_cannot_be_had(self, name: str, code: str):
        error = refusal(lambda: hub.pin_model(name))
        assert (error.code, error.param) == (code, "model")

    def test_are_not_waited_for(self, monkeypatch: pytest.MonkeyPatch):
        assert hub._SECONDS <= 5
        monkeypatch.setattr(hub, "_SECONDS", 0.2)
        error = refusal(lambda: hub.pin_model("slow/model"))
        eventually(lambda: asked)  # else it would be seen by the next test
        assert not given_up.is_set()
        given_up.set()
        assert error.code == "hub_unavailable"


class TestDatasets:
    @pytest.mark.parametrize("name", ["nyu-mll/glue", "glue"])
    @pytest.mark.parametrize("revision", [None, "main", COMMIT])
    def test_are_pinned_to_a_commit(self, name: str, revision: str | None):
        assert hub.pin_dataset(name, revision=revision) == COMMIT

    @pytest.mark.parametrize(("name", "revision"), [("nyu-mll/glue", "gone"), ("not/there", None)])
    def test_that_are_not_there(self, name: str, revision: str | None):
        error = refusal(lambda: hub.pin_dataset(name, revision=revision))
        assert (error.code, error.param) == ("dataset_not_found", "dataset.hub")


class TestNoCommit:
    def test_is_an_error_for_a_repository_without_one(self):
        error = refusal(lambda: hub.pin_model("no/commit"))
        assert (error.code, error.param) == ("hub_unavailable", "model")
        error = refusal(lambda: hub.pin_dataset("no/commit", revision=None))
        assert (error.code, error.param) == ("hub_unavailable", "dataset.hub")


class TestAway:
    def test_connection_refused(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        for call in (
            lambda: hub.pin_model("good/model"),
            lambda: hub.pin_dataset("nyu-mll/glue", revision=None),
        ):
            assert refusal(call).code == "hub_unavailable"

    def test_offline(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert refusal(lambda: hub.pin_model("good/model")).code == "hub_unavailable"
