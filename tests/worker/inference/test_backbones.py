"""worker.inference.backbones: loaded once, kept while used, and never another's delta."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from hifi.errors import BackboneMismatchError, ModelError
from tests.tiny_deltas import save_bare_backbone
from tests.worker.inference.asking import Background, wait_until
from worker.inference import backbones as module
from worker.inference.backbones import Backbones, ServedBackbone

if TYPE_CHECKING:
    from tests.worker.inference.conftest import Home
    from tests.worker.inference.tuned import Tuned

BERT, VIT = ("tiny-bert", None), ("tiny-vit", None)
CPU = torch.device("cpu")


class Kept:
    """Backbones, and those that were let go of."""

    def __init__(self, home: Home, *, max_bytes: int) -> None:
        settings = home.settings.model_copy(update={"infer_backbone_bytes": max_bytes})
        self.dropped: list[ServedBackbone] = []
        self.all = Backbones(settings, device=CPU, on_drop=self.dropped.append)

    def load(self, name: module.BackboneName) -> ServedBackbone:
        with self.all.hold(name):
            return self.all.load(name)


class TestBackbones:
    def test_one_is_loaded_once(self, home: Home):
        kept = Kept(home, max_bytes=1 << 30)
        assert kept.all.find(BERT) is None
        first = kept.load(BERT)
        assert kept.load(BERT) is first is kept.all.find(BERT)
        assert len(kept.all) == 1

    def test_by_many_at_once_too(self, home: Home, monkeypatch: pytest.MonkeyPatch):
        kept, gate, loads = Kept(home, max_bytes=1 << 30), threading.Event(), []
        whole = module.load_bare_backbone

        def slow(*arguments, **settings):
            loads.append(arguments)
            assert gate.wait(30)
            return whole(*arguments, **settings)

        monkeypatch.setattr(module, "load_bare_backbone", slow)
        waiting = [Background(lambda: kept.load(BERT)) for _ in range(5)]
        wait_until(lambda: loads)
        other = Background(lambda: kept.load(VIT))  # waits for no one else's
        wait_until(lambda: len(loads) == 2)
        gate.set()
        assert len({id(each.result()) for each in waiting}) == 1
        assert other.result() is not waiting[0].result()
        assert len(loads) == 2

    def test_the_least_recently_used_makes_room(self, home: Home):
        kept = Kept(home, max_bytes=1)
        first = kept.load(BERT)
        kept.load(VIT)
        assert kept.dropped == [first]
        assert kept.all.find(BERT) is None
        assert len(kept.all) == 1

    def test_one_in_use_stays(self, home: Home):
        kept = Kept(home, max_bytes=1)
        with kept.all.hold(BERT), kept.all.hold(BERT):
            first = kept.all.load(BERT)
            kept.load(VIT)
            assert kept.dropped == []
            assert kept.all.find(BERT) is first
        kept.load(VIT)
        assert kept.all.find(VIT) is not None

    def test_what_cannot_be_loaded_is_remembered_by_nobody(self, home: Home):
        kept = Kept(home, max_bytes=1 << 30)
        with pytest.raises(ModelError):
            kept.load(("gone", None))
        with pytest.raises(ModelError, match="HIFI_ALLOW_HUB"):
            kept.load(("owner/name", "0" * 40))
        assert (len(kept.all), kept.all._users, kept.all._loading) == (0, {}, {})


class TestServedBackbone:
    @pytest.fixture
    def served(self, home: Home) -> ServedBackbone:
        return Kept(home, max_bytes=1 << 30).load(BERT)

    def test_counts_its_weights(self, served: ServedBackbone):
        assert served.nbytes == sum(p.nbytes for p in served.model.parameters()) > 0

    def test_takes_no_delta_of_another(self, home: Home, tasks: dict[str, Tuned]):
        save_bare_backbone(home.settings.models / "other", seed=1)
        other = Kept(home, max_bytes=1 << 30).load(("other", None))
        with pytest.raises(BackboneMismatchError, match="this backbone's is"):
            other.load(tasks["two"].delta)

    def test_shares_readers_and_keeps_a_few(
        self, served: ServedBackbone, tasks: dict[str, Tuned], monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(served._readers, "budget", 2)
        records = [served.load(tasks[n].delta).record for n in ("two", "same", "three", "pair")]
        readers = [served.reader_for(record) for record in records]
        assert readers[0] is readers[1]
        assert readers[2] is not readers[0]
        assert len(served._readers) == 2
        assert served.reader_for(records[3]) is readers[3]
        assert served.reader_for(records[0]) is not readers[0]


def test_the_packaged_backbone_goes_by_its_name(home: Home, minilm_path: Path):
    source = module.find_backbone(home.settings, ("all-MiniLM-L6-v2", None))
    assert source.path == minilm_path
