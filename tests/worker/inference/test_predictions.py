"""worker.inference.predictions: errors per input, deadlines, and limits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hifi.serving.bank import HeadBank
from store.errors import ArtifactStorageError, ProblemError
from store.resources.turns import Places
from store.storage import ArtifactStorage
from tests.tiny_deltas import save_bare_backbone
from tests.waiting import eventually, patience
from tests.worker.inference.asking import (
    TEXT,
    UNDER_WAY,
    WAIT,
    WAITING,
    Background,
    Gate,
    HangingStorage,
    ask,
    body,
    check_idle,
    codes,
    distinct,
    measured,
    predict,
    serve,
)
from tests.worker.inference.conftest import order_of
from tests.worker.inference.test_app import check_problem
from tests.worker.inference.tuned import Tuned, image, tune
from worker.inference import executor, predictions
from worker.inference.executor import NotPlacedError

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    from tests.worker.inference.conftest import Home


class TestNewBackbones:
    def test_one_that_is_copied_later_is_served(self, client: TestClient, home: Home):
        folder = home.settings.models / "later"
        other = save_bare_backbone(folder, seed=3)
        tuned = tune(other, seed=9)
        (answer,) = ask(client, home.order(tuned), TEXT, timeout_seconds=patience(WAIT))
        tuned.check(answer, TEXT)

    def test_changed_weights_are_loaded_for_the_deltas_that_were_tuned_on_them(
        self, client: TestClient, home: Home, tasks: dict[str, Tuned]
    ):
        old = home.order(tasks["two"])
        assert codes(ask(client, old, TEXT)) == [None]
        folder = save_bare_backbone(home.settings.models / "tiny-bert", seed=3)
        assert codes(ask(client, old, TEXT)) == [None]  # nothing asked for the new weights yet
        tuned = tune(folder, seed=9)
        (answer,) = ask(client, home.order(tuned), TEXT)
        tuned.check(answer, TEXT)
        assert codes(ask(client, old, TEXT)) == ["backbone_mismatch"]
        (answer,) = ask(client, home.order(tuned), TEXT)
        tuned.check(answer, TEXT)


class TestErrors:
    def test_are_of_their_input_alone(
        self, client: TestClient, home: Home, tasks: dict[str, Tuned]
    ):
        names = ("two", "pair", "image")
        orders = [home.order(tasks[name]) for name in names]
        broken = image(3)[:-40]
        cases: list[tuple[int, dict, str | None, str | None]] = [
            (0, TEXT, None, None),
            (0, {"text": ""}, "invalid_input", "text"),
            (0, {"text": " \n\u00a0"}, "invalid_input", "text"),
            (0, {}, "invalid_input", "text"),
            (0, {"image": image(3)}, "invalid_input", "image"),
            (0, {**TEXT, "text_pair": "w1"}, "invalid_input", "text_pair"),
            (0, {**TEXT, "image": image(3)}, "invalid_input", "image"),
            (1, TEXT, "invalid_input", "text_pair"),
            (1, {**TEXT, "text_pair": ""}, "invalid_input", "text_pair"),
            (1, {**TEXT, "text_pair": "w1"}, None, None),
            (2, TEXT, "invalid_input", "text"),
            (2, {}, "invalid_input", "image"),
            (2, {"image": ""}, "invalid_image", "image"),
            (2, {"image": "%%%"}, "invalid_image", "image"),
            (2, {"image": "ä"}, "invalid_image", "image"),
            (2, {"image": broken}, "invalid_image", "image"),
            (2, {"image": image(3)}, None, None),
            (0, {"text": "w9"}, None, None),
        ]
        answers = predict(client, orders, [(place, given) for place, given, *_ in cases])
        for answer, (place, given, code, param) in zip(answers, cases, strict=True):
            if code is None:
                tasks[names[place]].check(answer, given)
                continue
            assert answer.keys() == {"error"}
            assert (answer["error"]["code"], answer["error"]["param"]) == (code, param)
            assert answer["error"]["message"]
        check_idle(client)

    def test_too_long_without_truncation(
        self, client: TestClient, home: Home, tasks: dict[str, Tuned]
    ):
        orders = [home.order(tasks[name]) for name in ("two", "pair")]
        fits, over = {"text": "w1 " * 30}, {"text": "w1 " * 31}  # of 32, with [CLS] and [SEP]
        pairs = [{"text": "w1 " * 10, "text_pair": "w2 " * n} for n in (3, 4)]  # of 16
        items = [(0, fits), (0, over), (1, pairs[0]), (1, pairs[1])]
        answers = predict(client, orders, items, truncate=False)
        assert codes(answers) == [None, "text_too_long", None, "text_too_long"]
        assert [a["error"]["param"] for a in answers if "error" in a] == ["text", "text"]
        assert codes(predict(client, orders, items)) == [None] * 4

    def test_of_a_head_delta_are_of_its_inputs_alone(
        self, client: TestClient, home: Home, tasks: dict[str, Tuned], tmp_path: Path
    ):
        (tmp_path / "blob").write_bytes(b"no delta at all")
        save_bare_backbone(home.settings.models / "other", seed=1)
        good, delta = home.order(tasks["two"]), tasks["two"].delta
        task = dict(delta.metadata.task or {})

        def changed(**entries: Any) -> dict:
            metadata = replace(delta.metadata, **entries)
            return home.order(Tuned(replace(delta, metadata=metadata), tasks["two"].folder))

        no_head = Tuned(replace(delta, task_head={}), tasks["two"].folder)
        cases = {
            "blob_lost": [order_of("0" * 64), {**good, "tenant": "ten_2"}],
            "backbone_mismatch": [{**good, "model": "other"}, {**good, "model": "tiny-vit"}],
            "model_not_found": [{**good, "model": "gone"}],
            "delta_invalid": [
                order_of(home.put(tmp_path / "blob")),
                home.order(no_head),
                changed(task=None),
                changed(labels=None),
                changed(labels=["a", "b", "c"]),
                changed(task={**task, "type": "image-classification", "image": "i"}),
                changed(task={**task, "type": "unheard-of"}),
                *(changed(task={**task, "text": text}) for text in (None, "ab", [], ["a"] * 3)),
                *(changed(task={**task, "max_length": size}) for size in (2, 129, 1 << 30)),
                changed(task={**task, "pad_token_id": 10_000}),
            ],
        }
        expected = [code for code, orders in cases.items() for _ in orders]
        orders = [*(order for orders in cases.values() for order in orders), good]
        answers = predict(client, orders, [(place, TEXT) for place in range(len(orders))])
        assert codes(answers) == [*expected, None]
        tasks["two"].check(answers[-1], TEXT)
        assert str(home.settings.home) not in json.dumps(answers)
        check_idle(client)

    @pytest.mark.parametrize(
        ("where", "what", "error", "code"),
        [
            (ArtifactStorage, "fetch", ArtifactStorageError("secret"), "artifact_storage"),
            (HeadBank, "pack", RuntimeError("secret"), "internal_error"),
        ],
        ids=["a store that cannot be reached", "what nobody foresaw"],
    )
    def test_of_the_server_reveal_no_secret(
        self,
        client: TestClient,
        home: Home,
        tasks: dict[str, Tuned],
        monkeypatch: pytest.MonkeyPatch,
        *,
        where: type,
        what: str,
        error: Exception,
        code: str,
    ):
        def fail(*_: Any, **__: Any) -> None:
            raise error

        order = home.order(tasks["two"])
        with monkeypatch.context() as patch:
            patch.setattr(where, what, fail)
            (answer,) = ask(client, order, TEXT)
        assert answer["error"]["code"] == code
        assert "secret" not in answer["error"]["message"]
        assert codes(ask(client, order, TEXT)) == [None]


class TestTenants:
    def test_do_not_see_each_others_deltas(
        self, client: TestClient, home: Home, tasks: dict[str, Tuned]
    ):
        order = home.order(tasks["two"])
        assert codes(ask(client, order, TEXT)) == [None]  # on disk, and on the device
        for _ in range(2):
            assert codes(ask(client, {**order, "tenant": "ten_2"}, TEXT)) == ["blob_lost"]
        assert codes(ask(client, order, TEXT)) == [None]

    def test_with_equal_deltas_each_have_their_own(
        self, client: TestClient, home: Home, tasks: dict[str, Tuned]
    ):
        orders = [home.order(tasks["two"], tenant=name) for name in ("ten_1", "ten_2")]
        assert orders[0]["sha256"] == orders[1]["sha256"]
        for answer in predict(client, orders, [(0, TEXT), (1, TEXT)]):
            tasks["two"].check(answer, TEXT)
        assert measured(client)['hifi_inference_deltas{tier="device"}'] == 2

    def test_a_retuned_job_gives_its_new_answers(
        self, client: TestClient, home: Home, tasks: dict[str, Tuned]
    ):
        for name in ("two", "same"):  # of one job's id: the content is the key
            (answer,) = ask(client, home.order(tasks[name]), TEXT)
            tasks[name].check(answer, TEXT)


class TestLittleRoom:
    """More head deltas than fit on the device: all are answered."""

    @pytest.mark.parametrize("room", [1, 2, 3])
    def test_one_request_for_many(self, home: Home, backbone: Path, room: int):
        orders, tuned = distinct(home, backbone, count=8)
        with serve(home) as client:
            ask(client, orders[0], TEXT)
            size = int(measured(client)['hifi_inference_delta_bytes{tier="device"}'])
        with serve(home, infer_device_bytes=room * size) as client:
            items = [(place, TEXT) for place in range(8)]
            for _ in range(2):
                for place, answer in enumerate(predict(client, orders, items)):
                    tuned[place].check(answer, TEXT)
                figures = measured(client)
                assert figures['hifi_inference_delta_bytes{tier="device"}'] == room * size
                assert figures['hifi_inference_deltas{tier="device"}'] == room

    def test_many_requests_at_once(self, home: Home, backbone: Path):
        orders, tuned = distinct(home, backbone, count=6)

        def work(client: TestClient, start: int) -> None:
            for step in range(6):
                place = (start * 5 + step) % 6
                given = [{"text": f"w{start} w{step} w{word}"} for word in range(3)]
                for answer, each in zip(ask(client, orders[place], *given), given, strict=True):
                    tuned[place].check(answer, each)

        for each in tuned:
            each.logits(TEXT)  # loaded once, before threads want it
        with serve(home, infer_device_bytes=1, infer_disk_bytes=1) as client:
            jobs = [Background(lambda start=start: work(client, start)) for start in range(6)]
            for job in jobs:
                job.result()
            check_idle(client)

    def test_a_delta_that_left_the_device_while_its_sample_waited_is_loaded_again(
        self, home: Home, backbone: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ):
        told: list[NotPlacedError] = []

        class NotedError(NotPlacedError):
            def __init__(self) -> None:
                told.append(self)

        monkeypatch.setattr(executor, "NotPlacedError", NotedError)
        orders, tuned = distinct(home, backbone, count=2)
        with serve(home, infer_device_bytes=1, infer_batch_tokens=1) as client:
            ask(client, orders[0], TEXT)
            gate.open.clear()
            asked = []
            for waiting, place in enumerate((0, 1, 0)):  # the second takes the only room there is
                asked.append(Background(lambda place=place: ask(client, orders[place], TEXT)))
                eventually(lambda: len(gate.passes) == 2)
                eventually(lambda waiting=waiting: measured(client)[WAITING] == waiting)
            gate.open.set()
            for each, place in zip(asked, (0, 1, 0), strict=True):
                tuned[place].check(each.result()[0], TEXT)
        assert len(told) == 1

    def test_backbones_take_turns_too(self, home: Home, tasks: dict[str, Tuned]):
        orders = [home.order(tasks[name]) for name in ("two", "image")]
        given = [TEXT, {"image": image(9)}]
        with serve(home, infer_backbone_bytes=1) as client:
            for _ in range(3):
                for order, each, name in zip(orders, given, ("two", "image"), strict=True):
                    (answer,) = ask(client, order, each)
                    tasks[name].check(answer, each)
            assert measured(client)['hifi_inference_deltas{tier="device"}'] == 1
            answers = predict(client, orders, list(enumerate(given)))
            assert codes(answers) == [None, None]


@contextmanager
def hanging_order(
    home: Home, tuned: Tuned, storage: HangingStorage
) -> Iterator[tuple[TestClient, dict[str, Any]]]:
    """Serve a home; yield a client and an order whose delta hangs in the store."""
    order = home.order(tuned)
    storage.hanging.add(order["sha256"])
    with serve(home) as client:
        yield client, order


class TestLoading:
    def test_does_not_block_requests_whose_delta_is_loaded(
        self, home: Home, backbone: Path, storage: HangingStorage
    ):
        orders, tuned = distinct(home, backbone, count=3)
        with serve(home) as client:
            ask(client, orders[0], TEXT)
            storage.hanging.add(orders[1]["sha256"])
            slow = Background(lambda: predict(client, orders[:2], [(0, TEXT), (1, TEXT)]))
            eventually(lambda: orders[1]["sha256"] in storage.fetched)
            for _ in range(3):
                tuned[0].check(ask(client, orders[0], TEXT)[0], TEXT)
            tuned[2].check(ask(client, orders[2], TEXT)[0], TEXT)  # nor who loads another
            assert slow.is_running
            storage.gate.set()
            for place, answer in enumerate(slow.result()):
                tuned[place].check(answer, TEXT)

    def test_is_done_once_for_all_waiting_requests(
        self, home: Home, tasks: dict[str, Tuned], storage: HangingStorage
    ):
        with hanging_order(home, tasks["two"], storage) as (client, order):
            waiting = [Background(lambda: ask(client, order, TEXT)) for _ in range(20)]
            eventually(lambda: measured(client)[UNDER_WAY] == 20)
            storage.gate.set()
            for each in waiting:
                tasks["two"].check(each.result()[0], TEXT)
            assert storage.fetched == [order["sha256"]]

    def test_continues_when_its_caller_gives_up(
        self, home: Home, tasks: dict[str, Tuned], storage: HangingStorage
    ):
        with hanging_order(home, tasks["two"], storage) as (client, order):
            assert codes(ask(client, order, TEXT, timeout_seconds=0.05)) == ["deadline_exceeded"]
            check_idle(client)
            storage.gate.set()
            tasks["two"].check(ask(client, order, TEXT)[0], TEXT)
            assert storage.fetched == [order["sha256"]]

    def test_continues_for_other_waiting_callers(
        self, home: Home, tasks: dict[str, Tuned], storage: HangingStorage
    ):
        with hanging_order(home, tasks["two"], storage) as (client, order):
            patient = Background(lambda: ask(client, order, TEXT))
            eventually(lambda: storage.fetched)
            assert codes(ask(client, order, TEXT, timeout_seconds=0.05)) == ["deadline_exceeded"]
            storage.gate.set()
            tasks["two"].check(patient.result()[0], TEXT)
            assert storage.fetched == [order["sha256"]]

    def test_is_tried_again_after_it_failed(
        self, home: Home, tasks: dict[str, Tuned], tmp_path: Path
    ):
        order = home.order(tasks["two"])
        blob = next((home.settings.home).rglob(order["sha256"]))
        blob.rename(tmp_path / "away")
        with serve(home) as client:
            assert codes(ask(client, order, TEXT)) == ["blob_lost"]
            (tmp_path / "away").rename(blob)
            assert codes(ask(client, order, TEXT)) == [None]


class TestPlaces:
    def test_one_tenant_leaves_places_for_others(self):
        places = Places(10, what="inputs in flight")
        with places.take({"a": 5}):
            assert len(places) == 5
            for wanted in ({"a": 1}, {"b": 6}, {"b": 3}, {"b": 2, "c": 2}):
                with pytest.raises(ProblemError) as refused, places.take(wanted):
                    pass
                assert refused.value.status == 429
                assert refused.value.headers["Retry-After"] == "1"
                assert len(places) == 5
            with places.take({"b": 2}), places.take({"c": 1}), places.take({"d": 1}):
                assert len(places) == 9
        assert len(places) == 0

    def test_are_always_freed_and_no_tenant_is_remembered(self):
        places = Places(10, what="inputs in flight")
        for number in range(100):
            with pytest.raises(RuntimeError), places.take({f"t{number}": 5}):
                raise RuntimeError
        assert len(places) == 0
        assert not places._taken

    def test_too_many_requests_get_retry_after(
        self, home: Home, tasks: dict[str, Tuned], gate: Gate
    ):
        orders = [home.order(tasks["two"], tenant=name) for name in ("ten_1", "ten_2", "ten_3")]
        half = [TEXT] * 128
        with serve(home, infer_max_inputs=512) as client:
            ask(client, orders[0], TEXT)
            gate.open.clear()
            mine = [Background(lambda: ask(client, orders[0], *half)) for _ in range(2)]
            eventually(lambda: measured(client)[UNDER_WAY] == 256)
            refused = client.post("/predict", json=body(orders[:1], [(0, TEXT)]))
            assert "a tenant may hold only" in check_problem(refused, 429, "too_many_requests")
            assert refused.headers["retry-after"] == "1"
            other = Background(lambda: ask(client, orders[1], *half))
            eventually(lambda: measured(client)[UNDER_WAY] == 384)
            refused = client.post("/predict", json=body(orders[1:2], [(0, TEXT)] * 65))
            assert "of at most 512" in check_problem(refused, 429, "too_many_requests")
            third = Background(lambda: ask(client, orders[2], *half[:64]))  # there are some left
            eventually(lambda: measured(client)[UNDER_WAY] == 448)
            assert client.get("/healthz").json() == {"status": "ok"}
            gate.open.set()
            for each in (*mine, other):
                assert codes(each.result()) == [None] * 128
            assert codes(third.result()) == [None] * 64
            check_idle(client)


class TestChunks:
    """Texts are encoded in small shares, so that small requests do not wait long."""

    def test_hold_a_number_of_characters_or_one_image(self):
        texts = {number: {"text": "a" * 60_000} for number in range(4)}
        images = {number: {"image": "aGk="} for number in range(4, 7)}
        small = {number: {"text": "a", "text_pair": "b"} for number in range(7, 99)}
        chunks = list(predictions._chunks({**texts, **images, **small}))
        assert chunks == [[0, 1], [2, 3], [4], [5], [6], list(range(7, 99))]


class TestImages:
    def test_few_are_decoded_before_they_are_computed(
        self, home: Home, tasks: dict[str, Tuned], gate: Gate, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(predictions, "_IMAGES", 2)
        monkeypatch.setattr(predictions, "_IMAGES_AT_ONCE_EACH", 2)
        encoded: list[int] = []
        read = predictions._read
        monkeypatch.setattr(
            predictions,
            "_read",
            lambda delta, inputs, **how: encoded.append(len(inputs)) or read(delta, inputs, **how),
        )
        order, other = (home.order(tasks["image"], tenant=name) for name in ("ten_1", "ten_2"))
        given = [{"image": image(seed)} for seed in range(7)]
        with serve(home) as client:
            gate.open.clear()
            asked = [Background(lambda: ask(client, order, *given)) for _ in range(3)]
            eventually(lambda: sum(encoded) == 4)
            eventually(lambda: measured(client)[UNDER_WAY] == 21)
            neighbour = Background(lambda: ask(client, other, given[0]))
            eventually(lambda: sum(encoded) == 5)
            gate.open.set()
            for answers in (each.result() for each in asked):
                for answer, each in zip(answers, given, strict=True):
                    tasks["image"].check(answer, each)
            tasks["image"].check(neighbour.result()[0], given[0])
            assert sum(encoded) == 22
            check_idle(client)
