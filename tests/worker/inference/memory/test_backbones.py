"""worker.inference.memory.backbones: loaded once, kept while used, and never another's delta."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from hifi.errors import BackboneMismatchError, ModelError
from tests.tiny_deltas import save_bare_backbone
from tests.waiting import eventually_async, patience
from worker.inference.memory import backbones as module
from worker.inference.memory.backbones import Backbones, ServedBackbone

if TYPE_CHECKING:
    from tests.worker.inference.conftest import Home
    from tests.worker.inference.tuned import Tuned

BERT, VIT = ("tiny-bert", None), ("tiny-vit", None)
CPU = torch.device("cpu")


class Kept:
    """Backbones, and the list of released ones."""

    def __init__(self, home: Home, *, max_bytes: int) -> None:
        settings = home.settings.model_copy(update={"infer_backbone_bytes": max_bytes})
        self.dropped: list[ServedBackbone] = []
        self.all = Backbones(settings, device=CPU, on_drop=self.dropped.append)

    async def load(self, name: module.BackboneName, *, tenant: str = "ten_1") -> ServedBackbone:
        async with self.all.hold(name, tenant=tenant) as backbone:
            return backbone

    def begin(self, name: module.BackboneName, *, tenant: str) -> asyncio.Task[ServedBackbone]:
        return asyncio.create_task(self.load(name, tenant=tenant))

    @property
    def names(self) -> set[module.BackboneName]:
        return {name for name, _ in self.all._kept}

    async def wait_until_idle(self) -> None:
        """Wait until nothing is used, reserved or loading; it fails if that never comes."""
        await eventually_async(
            lambda: (self.all._users, self.all._reserved, self.all._loads._tasks) == ({}, 0, {})
        )


class Loading:
    """Wraps the loading of backbones: counts the loads and can block them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate, self.names = threading.Event(), []
        self._whole = module.load_bare_backbone
        monkeypatch.setattr(module, "load_bare_backbone", self)

    def __call__(self, source, *, device):
        self.names.append(source.name)
        assert self.gate.wait(patience(30))
        return self._whole(source, device=device)


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> Loading:
    return Loading(monkeypatch)


class TestBackbones:
    def test_one_is_loaded_once(self, home: Home):
        async def run() -> None:
            kept = Kept(home, max_bytes=1 << 30)
            assert await kept.load(BERT) is await kept.load(BERT)
            assert kept.names == {BERT}
            await kept.wait_until_idle()

        asyncio.run(run())

    def test_one_is_loaded_once_by_many_at_once(self, home: Home, loading: Loading):
        async def run() -> None:
            kept = Kept(home, max_bytes=1 << 30)
            waiting = [kept.begin(BERT, tenant=f"ten_{number}") for number in range(5)]
            await eventually_async(lambda: loading.names)
            other = kept.begin(VIT, tenant="ten_9")  # waits for no one else's
            await eventually_async(lambda: len(loading.names) == 2)
            loading.gate.set()
            first, *others = await asyncio.gather(*waiting)
            assert all(each is first for each in others)
            assert await other is not first
            assert len(loading.names) == 2

        asyncio.run(run())

    def test_a_load_continues_after_its_caller_gave_up(self, home: Home, loading: Loading):
        async def run() -> None:
            kept = Kept(home, max_bytes=1 << 30)
            task = kept.begin(BERT, tenant="ten_1")
            await eventually_async(lambda: loading.names)
            task.cancel()
            loading.gate.set()
            await eventually_async(lambda: kept.names == {BERT})
            await kept.wait_until_idle()

        asyncio.run(run())

    def test_unused_ones_are_evicted_before_one_is_loaded(self, home: Home, loading: Loading):
        async def run() -> None:
            kept = Kept(home, max_bytes=1)
            loading.gate.set()
            first = await kept.load(BERT)
            loading.gate.clear()
            task = kept.begin(VIT, tenant="ten_1")
            await eventually_async(lambda: len(loading.names) == 2)
            assert kept.dropped == [first]
            assert kept.names == set()
            loading.gate.set()
            await task
            assert kept.names == {VIT}

        asyncio.run(run())

    def test_one_in_use_stays_and_others_wait_for_space(self, home: Home, loading: Loading):
        async def run() -> None:
            kept = Kept(home, max_bytes=1)
            loading.gate.set()
            async with kept.all.hold(BERT, tenant="ten_1") as first:
                task = kept.begin(VIT, tenant="ten_2")
                await eventually_async(kept.all._door.locked)
                late = kept.begin(BERT, tenant="ten_1")  # or it would never be the other's turn
                await asyncio.sleep(0.05)
                assert loading.names == [first_name]
                assert not late.done()
                assert kept.dropped == []
            assert await task is not first
            assert kept.dropped[0] is first
            assert await late is not first  # it was loaded again
            assert kept.names == {BERT}
            await kept.wait_until_idle()

        first_name = "tiny-bert"
        asyncio.run(run())

    def test_a_failed_load_is_not_remembered(self, home: Home, monkeypatch):
        async def run() -> None:
            kept = Kept(home, max_bytes=1 << 30)
            with pytest.raises(ModelError):
                await kept.load(("gone", None))
            with pytest.raises(ModelError, match="HIFI_ALLOW_HUB"):
                await kept.load(("owner/name", "0" * 40))
            monkeypatch.setattr(module, "load_bare_backbone", _fail)
            with pytest.raises(torch.OutOfMemoryError):
                await kept.load(BERT)
            assert kept.names == set()
            await kept.wait_until_idle()

        asyncio.run(run())


def _fail(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError


class TestServedBackbone:
    @pytest.fixture
    def served(self, home: Home) -> ServedBackbone:
        return asyncio.run(Kept(home, max_bytes=1 << 30).load(BERT))

    def test_counts_its_weights(self, served: ServedBackbone):
        assert served.nbytes == sum(p.nbytes for p in served.model.parameters()) > 0

    def test_takes_no_delta_of_another(self, home: Home, tasks: dict[str, Tuned]):
        save_bare_backbone(home.settings.models / "other", seed=1)
        other = asyncio.run(Kept(home, max_bytes=1 << 30).load(("other", None)))
        with pytest.raises(BackboneMismatchError, match="this backbone's is"):
            other.load(tasks["two"].delta)

    def test_shares_readers_and_keeps_a_few(
        self, served: ServedBackbone, tasks: dict[str, Tuned], monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(served._encoders, "budget", 2)
        records = [served.load(tasks[n].delta).record for n in ("two", "same", "three", "pair")]
        readers = [served.encoder_for(record) for record in records]
        assert readers[0] is readers[1]
        assert readers[2] is not readers[0]
        assert len(served._encoders) == 2
        assert served.encoder_for(records[3]) is readers[3]
        assert served.encoder_for(records[0]) is not readers[0]


def test_the_packaged_backbone_goes_by_its_name(home: Home, minilm_path: Path):
    source = module.find_backbone(home.settings, ("all-MiniLM-L6-v2", None))
    assert source.path == minilm_path
