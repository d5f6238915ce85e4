"""worker.inference.app: the files of ``hifi merge`` for the right caller, and nothing left."""

from __future__ import annotations

import io
import shutil
import tarfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
import pytest
from starlette.requests import Request
from starlette.testclient import TestClient
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hifi.cli import main
from hifi.deltas.delta import HeadDelta
from store.resources.turns import Turns
from store.settings import Settings
from tests.tiny_deltas import save_bare_backbone
from tests.waiting import eventually, patience
from worker.inference import app as module
from worker.inference import merging
from worker.inference.app import MAX_REQUESTS, build_app
from worker.inference.executor import Executor

if TYPE_CHECKING:
    from tests.worker.inference.conftest import Home

MOST_EACH = MAX_REQUESTS // 2  # of one tenant that is alone


def unpack(content: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        files = {member.name: archive.extractfile(member) for member in archive}
    return {name: file.read() for name, file in files.items() if file is not None}


def check_problem(response: Any, status: int, code: str) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert (document["status"], document["code"]) == (status, code)
    assert str(Path.cwd()) not in response.text
    return document["detail"]


class TestMerged:
    def test_is_file_by_file_what_the_command_writes(
        self, client: TestClient, home: Home, order: dict, delta_file: Path, tmp_path: Path
    ):
        response = client.post("/merged", json=order)
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/x-tar"
        assert int(response.headers["content-length"]) == len(response.content)
        out, model = tmp_path / "merged", home.settings.models / "tiny-bert"
        command = ["merge", "--delta", str(delta_file), "--model", str(model), "--out", str(out)]
        assert main(command) == 0
        expected = {path.name: path.read_bytes() for path in out.iterdir()}
        files = unpack(response.content)
        assert files == expected
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= files.keys()
        assert not any(str(tmp_path).encode() in content for content in files.values())

    def test_is_the_same_bytes_every_time(self, client: TestClient, order: dict):
        first, second = (client.post("/merged", json=order).content for _ in range(2))
        assert first == second

    def test_plain_transformers_loads_it(
        self, client: TestClient, order: dict, delta_file: Path, backbone: Path, tmp_path: Path
    ):
        with tarfile.open(fileobj=io.BytesIO(client.post("/merged", json=order).content)) as tar:
            tar.extractall(tmp_path / "merged", filter="data")
        merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
        expected = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=2)
        HeadDelta.load(delta_file).merge(expected)
        weights = expected.state_dict()
        assert all(weights[name].equal(value) for name, value in merged.state_dict().items())
        assert AutoTokenizer.from_pretrained(tmp_path / "merged").model_max_length == 32

    def test_leaves_nothing_on_disk(self, home: Home, order: dict):
        with TestClient(build_app(home.settings)) as client:
            assert client.post("/merged", json=order).status_code == 200
            assert home.left_behind == []
        assert list((home.settings.home / "inference").iterdir()) == []

    def test_the_packaged_backbone_goes_by_its_name(self, client: TestClient, order: dict):
        # The delta is another backbone's, so finding this one shows as a mismatch.
        response = client.post("/merged", json={**order, "model": "all-MiniLM-L6-v2"})
        check_problem(response, 409, "backbone_mismatch")


class TestRefusals:
    def test_another_backbone(self, client: TestClient, home: Home, order: dict):
        save_bare_backbone(home.settings.models / "other", seed=1)
        response = client.post("/merged", json={**order, "model": "other"})
        assert "fingerprint" in check_problem(response, 409, "backbone_mismatch")
        assert home.left_behind == []

    def test_a_backbone_that_is_not_here(self, client: TestClient, order: dict):
        response = client.post("/merged", json={**order, "model": "gone"})
        assert "'gone'" in check_problem(response, 404, "model_not_found")

    def test_a_backbone_that_is_broken(self, client: TestClient, home: Home, order: dict):
        (home.settings.models / "tiny-bert" / "model.safetensors").write_bytes(b"nonsense")
        check_problem(client.post("/merged", json=order), 404, "model_not_found")

    def test_a_backbone_without_a_tokenizer(self, client: TestClient, home: Home, order: dict):
        (home.settings.models / "tiny-bert" / "tokenizer.json").unlink()
        check_problem(client.post("/merged", json=order), 404, "model_not_found")
        assert home.left_behind == []

    @pytest.mark.parametrize(
        "model",
        [
            *("../tiny-bert", "tiny-bert/../tiny-bert", "/etc", "./tiny-bert", "..", ".", ""),
            *(
                "a/b/c",
                "~",
                "~/x",
                "a\\b",
                "a\0b",
                "a b",
                "é",
                "x" * 201,
                "tiny-bert\n",
                "owner/..",
            ),
        ],
    )
    @pytest.mark.parametrize("revision", [None, "0" * 40])
    def test_a_path(self, client: TestClient, order: dict, model: str, revision: str | None):
        response = client.post("/merged", json={**order, "model": model, "revision": revision})
        check_problem(response, 422, "invalid_request")
        assert response.json()["param"] == "model"

    def test_a_folder_of_the_working_directory(
        self, client: TestClient, order: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        shutil.copytree(tmp_path / "models" / "tiny-bert", tmp_path / "here" / "owner" / "tiny")
        monkeypatch.chdir(tmp_path / "here")
        for model in ("owner", "owner/tiny"):
            response = client.post("/merged", json={**order, "model": model})
            check_problem(response, 404, "model_not_found")

    def test_a_hub_id_where_the_hub_is_off(
        self, client: TestClient, order: dict, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(huggingface_hub, "snapshot_download", None)  # calling it would fail
        ask = {**order, "model": "owner/tiny", "revision": "0" * 40}
        check_problem(client.post("/merged", json=ask), 404, "model_not_found")

    def test_a_delta_that_is_not_in_the_store(self, client: TestClient, order: dict):
        response = client.post("/merged", json={**order, "sha256": "0" * 64})
        check_problem(response, 503, "blob_lost")
        assert int(response.headers["retry-after"]) > 0

    def test_the_delta_of_another_tenant(self, client: TestClient, order: dict):
        assert client.post("/merged", json=order).status_code == 200  # it is in the cache now
        response = client.post("/merged", json={**order, "tenant": "ten_2"})
        check_problem(response, 503, "blob_lost")

    def test_a_blob_that_is_no_delta(
        self, client: TestClient, home: Home, order: dict, tmp_path: Path
    ):
        (tmp_path / "blob").write_bytes(b"no delta at all")
        digest = home.put(tmp_path / "blob")
        check_problem(
            client.post("/merged", json={**order, "sha256": digest}), 422, "delta_invalid"
        )

    def test_a_delta_that_does_not_say_its_task(
        self, client: TestClient, home: Home, order: dict, delta_file: Path, tmp_path: Path
    ):
        delta = HeadDelta.load(delta_file)
        free = tmp_path / "free.safetensors"
        replace(delta, metadata=replace(delta.metadata, task=None)).save(free)
        ask = {**order, "sha256": home.put(free)}
        check_problem(client.post("/merged", json=ask), 422, "delta_invalid")

    def test_a_full_disk(
        self, client: TestClient, home: Home, order: dict, monkeypatch: pytest.MonkeyPatch
    ):
        def no_space(folder: Path, **_: Any) -> None:
            (folder / "config.json").write_text("half of i")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(merging, "write_merged_model", no_space)
        check_problem(client.post("/merged", json=order), 503, "disk_full")
        assert home.left_behind == []

    def test_a_model_beyond_the_memory(
        self, client: TestClient, order: dict, monkeypatch: pytest.MonkeyPatch
    ):
        def fail(*_: Any, **__: Any) -> None:
            raise MemoryError

        with monkeypatch.context() as patched:
            patched.setattr(merging, "write_merged_model", fail)
            check_problem(client.post("/merged", json=order), 503, "out_of_memory")
        assert client.post("/merged", json=order).status_code == 200

    def test_an_unexpected_error(
        self, client: TestClient, order: dict, monkeypatch: pytest.MonkeyPatch
    ):
        def fail(*_: Any, **__: Any) -> None:
            raise RuntimeError("secret")

        monkeypatch.setattr(merging, "write_merged_model", fail)
        response = client.post("/merged", json=order)
        check_problem(response, 500, "internal_error")
        assert "secret" not in response.text
        monkeypatch.undo()
        assert client.post("/merged", json=order).status_code == 200

    @pytest.mark.parametrize(
        "change",
        [
            *({"tenant": value} for value in ("../x", "", "a/b", 5, None)),
            *({"sha256": value} for value in ("../../x", "0" * 63, "G" * 64, None)),
            *({"revision": value} for value in ("main", "../x", "", 5)),
            *({"job": value} for value in ("a b", None)),
            {"path": "/etc"},
        ],
    )
    def test_an_invalid_field(self, client: TestClient, order: dict, change: dict):
        response = client.post("/merged", json={**order, **change})
        check_problem(response, 422, "invalid_request")
        assert response.json()["param"] == next(iter(change))

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 10_000, b"null"])
    def test_no_json(self, client: TestClient, body: bytes):
        check_problem(client.post("/merged", content=body), 422, "invalid_request")

    def test_a_body_that_is_too_large(self, client: TestClient):
        check_problem(client.post("/merged", content=b" " * 20_000), 413, "body_too_large")

    def test_other_paths_and_methods(self, client: TestClient):
        check_problem(client.get("/merge"), 404, "not_found")
        check_problem(client.get("/merged"), 405, "method_not_allowed")


class TestHub:
    @pytest.fixture
    def home(self, home: Home) -> Home:
        update = {"allow_hub": True}
        return replace(home, settings=home.settings.model_copy(update=update))

    def test_a_pinned_model_is_downloaded_at_its_commit(
        self, client: TestClient, home: Home, order: dict, monkeypatch: pytest.MonkeyPatch
    ):
        asked: list[tuple[str, str]] = []

        def snapshot_download(hub_id: str, *, revision: str, **_: Any) -> str:
            asked.append((hub_id, revision))
            return str(home.settings.models / "tiny-bert")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        ask = {**order, "model": "owner/tiny", "revision": "0" * 40}
        assert client.post("/merged", json=ask).status_code == 200
        assert asked == [("owner/tiny", "0" * 40)]

    def test_one_that_cannot_be_had(self, client: TestClient, order: dict):
        ask = {**order, "model": "owner/tiny", "revision": "0" * 40}  # tests are offline
        check_problem(client.post("/merged", json=ask), 404, "model_not_found")


class TestToken:
    @pytest.fixture
    def home(self, home: Home) -> Home:
        settings = Settings(
            home=home.settings.home,
            models=home.settings.models,
            infer_token="sesame",  # noqa: S106 - the test's own
        )
        return replace(home, settings=settings)

    @pytest.mark.parametrize(
        "header",
        [None, "", "Bearer", "Bearer ", "Bearer sesam", "Bearer sesame2", "Basic sesame", "sesame"],
    )
    def test_is_checked_before_anything_else(self, client: TestClient, header: str | None):
        headers = {} if header is None else {"Authorization": header}
        response = client.post("/merged", content=b"nonsense", headers=headers)
        detail = check_problem(response, 401, "unauthorized")
        assert "sesame" not in detail
        assert response.headers["www-authenticate"] == "Bearer"

    def test_is_accepted(self, client: TestClient, order: dict):
        headers = {"Authorization": "Bearer sesame"}
        assert client.post("/merged", json=order, headers=headers).status_code == 200

    def test_non_ascii_bytes_are_a_wrong_token(self, client: TestClient):
        headers = {"Authorization": b"Bearer \xff\xe9"}
        check_problem(client.post("/merged", content=b"", headers=headers), 401, "unauthorized")

    def test_health_reports_a_dead_thread(self, client: TestClient, monkeypatch):
        monkeypatch.setattr(Executor, "is_alive", False)
        check_problem(client.get("/healthz"), 503, "executor_ended")

    def test_health_is_public(self, client: TestClient):
        assert client.get("/healthz").json() == {"status": "ok"}


class TestTurns:
    """Each merge takes a model's memory: one runs, a few wait, the rest are refused."""

    def test_one_at_a_time_few_wait_and_more_are_refused(
        self, home: Home, order: dict, monkeypatch: pytest.MonkeyPatch
    ):
        gate, lock = threading.Event(), threading.Lock()
        running, most = 0, 0
        whole = module.merge

        def slow(*args: Any, **kwargs: Any) -> tuple[Path, int]:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            gate.wait(patience(30))
            with lock:
                running -= 1
            return whole(*args, **kwargs)

        monkeypatch.setattr(module, "merge", slow)
        statuses: list[int] = []
        with TestClient(build_app(home.settings)) as client:

            def ask() -> None:
                statuses.append(client.post("/merged", json=order).status_code)

            threads = [threading.Thread(target=ask) for _ in range(MOST_EACH + 2)]
            for thread in threads:
                thread.start()
            while len(statuses) < 2:
                assert any(thread.is_alive() for thread in threads)
            assert statuses == [429, 429]
            refused = client.post("/merged", json=order)
            check_problem(refused, 429, "too_many_requests")
            assert int(refused.headers["retry-after"]) > 0
            assert client.get("/healthz").status_code == 200
            gate.set()
            for thread in threads:
                thread.join()
            assert sorted(statuses) == [200] * MOST_EACH + [429, 429]
            assert most == 1
            assert client.post("/merged", json=order).status_code == 200

    def test_one_tenant_leaves_room_and_turns_for_others(
        self, home: Home, order: dict, delta_file: Path, monkeypatch: pytest.MonkeyPatch
    ):
        gate, begun = threading.Event(), []
        whole = module.merge

        def slow(asked: Any, **kwargs: Any) -> tuple[Path, int]:
            begun.append(asked.tenant)
            gate.wait(patience(30))
            return whole(asked, **kwargs)

        async def take(self: Turns, tenant: str) -> None:
            asking.append(tenant)
            await wait(self, tenant)

        asking: list[str] = []
        wait = Turns.take
        monkeypatch.setattr(Turns, "take", take)
        monkeypatch.setattr(module, "merge", slow)
        sha256 = home.put(delta_file, tenant="ten_2")
        statuses: list[int] = []
        with TestClient(build_app(home.settings)) as client:

            def ask(asked: dict) -> threading.Thread:
                post = lambda: statuses.append(client.post("/merged", json=asked).status_code)  # noqa: E731
                thread = threading.Thread(target=post)
                thread.start()
                return thread

            threads = [ask(order) for _ in range(MOST_EACH + 1)]
            eventually(lambda: statuses == [429])
            threads.append(ask({**order, "tenant": "ten_2", "sha256": sha256}))
            eventually(lambda: "ten_2" in asking)
            gate.set()
            for thread in threads:
                thread.join()
        assert sorted(statuses) == [200] * (MOST_EACH + 1) + [429]
        assert begun.index("ten_2") <= 2  # the tenant that waited before it had one more turn

    def test_a_refusal_frees_its_place(self, client: TestClient, order: dict):
        for _ in range(MAX_REQUESTS + 1):
            client.post("/merged", json={**order, "model": "gone"})
        assert client.post("/merged", json=order).status_code == 200


class TestHangUp:
    def test_while_waiting_costs_no_merge(
        self, client: TestClient, order: dict, monkeypatch: pytest.MonkeyPatch
    ):
        async def is_gone(_: Any) -> bool:
            return True

        monkeypatch.setattr(Request, "is_disconnected", is_gone)
        monkeypatch.setattr(module, "merge", None)  # calling it would fail
        for _ in range(MAX_REQUESTS + 1):
            assert client.post("/merged", json=order).status_code == 499
