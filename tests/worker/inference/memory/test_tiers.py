"""worker.inference.memory.tiers: within budget, least recently used first, no allocation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from hifi.backbones.heads import HeadId
from hifi.backbones.models import resolve_model
from hifi.deltas.loading import load_bare_backbone
from hifi.serving.slots import Slots
from tests.worker.inference.tuned import tune
from worker.inference.memory.backbones import LoadedDelta, ServedBackbone
from worker.inference.memory.tiers import DeviceTier, HostTier, Placement

CPU = torch.device("cpu")


def serve(folder: Path) -> ServedBackbone:
    source = resolve_model(folder)
    bare = load_bare_backbone(source, device=CPU)
    return ServedBackbone(source, bare.model, fingerprint=bare.fingerprint, stamp="")


@dataclass
class Shelf:
    """Deltas of one backbone: a to d of one layout, and two larger ones."""

    backbone: ServedBackbone
    loaded: dict[str, LoadedDelta]

    def place(self, tier: DeviceTier, wanted: str, *, here: str | None = None) -> Placement:
        """Request deltas by letter; the weights of those in ``here`` are available."""
        packed = wanted if here is None else here
        return tier.place(
            self.backbone,
            {key: self.loaded[key].record for key in wanted},
            packed={key: self.loaded[key].packed for key in packed},
        )

    def bytes_of(self, keys: str) -> int:
        return sum(self.loaded[key].packed.nbytes for key in keys)

    def on(self, tier: DeviceTier) -> str:
        """Return the letters in a tier, without marking them as used."""
        return "".join(key for backbone, key in tier._placed if backbone is self.backbone)


def ready(placement: Placement) -> str:
    return "".join(sorted(placement.ready))


@pytest.fixture
def shelf(backbone: Path) -> Shelf:
    served = serve(backbone)
    large = [HeadId(layer, head) for layer in range(3) for head in range(4)]
    plans = {**dict.fromkeys("abcd", (HeadId(0, 1), HeadId(2, 3))), "X": large, "Y": large[:8]}
    loaded = {
        key: served.load(tune(backbone, seed=place, heads=heads).delta)
        for place, (key, heads) in enumerate(plans.items())
    }
    return Shelf(served, loaded)


class TestDeviceTier:
    def test_holds_what_fits(self, shelf: Shelf):
        tier = DeviceTier(shelf.bytes_of("abcd"))
        assert ready(shelf.place(tier, "abcd")) == "abcd"
        assert (len(tier), tier.nbytes) == (4, shelf.bytes_of("abcd"))
        assert "a" in shelf.backbone.bank

    def test_the_least_recently_used_is_evicted_first(self, shelf: Shelf):
        tier = DeviceTier(shelf.bytes_of("abc"))
        shelf.place(tier, "abc")
        assert tier.find(shelf.backbone, "a") is shelf.loaded["a"].record
        shelf.place(tier, "d")
        assert sorted(shelf.on(tier)) == ["a", "c", "d"]
        assert "b" not in shelf.backbone.bank
        assert tier.find(shelf.backbone, "b") is None
        shelf.place(tier, "b")
        assert sorted(shelf.on(tier)) == ["a", "b", "d"]

    def test_a_batch_marks_its_deltas_as_used(self, shelf: Shelf):
        tier = DeviceTier(shelf.bytes_of("abc"))
        shelf.place(tier, "abc")
        shelf.place(tier, "a", here="")
        shelf.place(tier, "d")
        assert sorted(shelf.on(tier)) == ["a", "c", "d"]

    def test_the_same_layout_takes_the_slot_as_it_is(
        self, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
    ):
        tier = DeviceTier(shelf.bytes_of("ab"))
        shelf.place(tier, "ab")
        monkeypatch.setattr(Slots, "_make", None)  # calling it would fail
        for key in "cdabcd":
            assert ready(shelf.place(tier, key)) == key
            assert shelf.backbone.bank.nbytes == tier.nbytes == shelf.bytes_of("ab")

    def test_another_layout_gets_the_memory_of_several(self, shelf: Shelf):
        tier = DeviceTier(shelf.bytes_of("X"))
        shelf.place(tier, "abc")
        assert ready(shelf.place(tier, "X")) == "X"
        assert shelf.on(tier) == "X"
        assert tier.nbytes == shelf.bytes_of("X")

    def test_the_budget_always_holds(self, shelf: Shelf):
        budget = shelf.bytes_of("Xa")
        tier = DeviceTier(budget)
        for wanted in ("abcd", "X", "ab", "Y", "XY", "abX", "dcY", "abcdXY", "a"):
            placement = shelf.place(tier, wanted)
            assert tier.nbytes <= budget
            assert placement.ready
            assert placement.ready | placement.later == set(wanted)
            assert len(shelf.backbone.bank) == len(tier)

    def test_one_that_is_larger_is_placed_alone(self, shelf: Shelf):
        tier = DeviceTier(1)
        shelf.place(tier, "a")
        placement = shelf.place(tier, "Xab")
        assert len(placement.ready) == 1
        assert placement.later == set("Xab") - placement.ready
        assert len(tier) == 1

    def test_those_without_room_come_later_and_those_not_here_are_missing(self, shelf: Shelf):
        tier = DeviceTier(shelf.bytes_of("ab"))
        placement = shelf.place(tier, "abcd", here="abc")
        assert (len(placement.ready), len(placement.later)) == (2, 1)
        assert placement.missing == {"d"}
        assert shelf.place(tier, "d", here="").missing == {"d"}

    def test_a_placed_delta_needs_no_weights(self, shelf: Shelf):
        tier = DeviceTier(shelf.bytes_of("ab"))
        shelf.place(tier, "ab")
        assert ready(shelf.place(tier, "ab", here="")) == "ab"

    def test_what_the_batch_uses_stays_while_the_rest_is_placed(self, shelf: Shelf):
        tier = DeviceTier(shelf.bytes_of("ab"))
        shelf.place(tier, "a")
        shelf.place(tier, "b")
        placement = shelf.place(tier, "acd", here="cd")
        assert "a" in placement.ready
        assert sorted(shelf.on(tier)) == sorted(placement.ready)

    def test_backbones_share_the_budget(self, shelf: Shelf, backbone: Path):
        other = Shelf(serve(backbone), {})
        other.loaded = {"a": other.backbone.load(tune(backbone, seed=9).delta)}
        tier = DeviceTier(shelf.bytes_of("ab"))
        shelf.place(tier, "ab")
        other.place(tier, "a")  # of the same name, and another's
        assert (shelf.on(tier), other.on(tier)) == ("b", "a")
        assert tier.nbytes == shelf.backbone.bank.nbytes + other.backbone.bank.nbytes
        assert tier.nbytes <= shelf.bytes_of("ab")
        shelf.place(tier, "ab")
        assert (shelf.on(tier), other.on(tier)) == ("ba", "")


class TestDrop:
    def test_leaves_nothing_of_a_backbone(self, shelf: Shelf):
        tier = DeviceTier(1 << 30)
        shelf.place(tier, "ab")
        tier.drop(shelf.backbone)
        assert (len(tier), tier.nbytes, shelf.backbone.bank.nbytes) == (0, 0, 0)
        assert tier.find(shelf.backbone, "a") is None

    def test_nothing_comes_back_after_it(self, shelf: Shelf):
        """A batch may still be running after all its callers have given up."""
        tier = DeviceTier(1 << 30)
        shelf.place(tier, "a")
        tier.drop(shelf.backbone)
        placement = shelf.place(tier, "ab")
        assert placement == Placement(frozenset(), frozenset(), frozenset("ab"))
        assert (len(tier), tier.nbytes, shelf.backbone.bank.nbytes) == (0, 0, 0)
        assert not tier._banks


class TestDeviceWithoutMemory:
    """The device may be full before the budget is reached: others use it too."""

    @pytest.fixture
    def full_from(self, monkeypatch: pytest.MonkeyPatch):
        def limit(slots: int) -> None:
            make = Slots._make

            def _make(self: Slots, layout):
                if self.nbytes >= slots * layout.nbytes:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return make(self, layout)

            monkeypatch.setattr(Slots, "_make", _make)

        return limit

    def test_others_make_room(self, shelf: Shelf, full_from):
        full_from(2)
        tier = DeviceTier(1 << 30)
        shelf.place(tier, "ab")
        assert ready(shelf.place(tier, "c")) == "c"
        assert shelf.on(tier) == "bc"
        placement = shelf.place(tier, "abcd")
        assert (len(placement.ready), len(placement.later)) == (2, 2)

    def test_a_device_without_any_space_raises(self, shelf: Shelf, full_from):
        full_from(0)
        tier = DeviceTier(1 << 30)
        with pytest.raises(torch.OutOfMemoryError):
            shelf.place(tier, "a")
        assert len(tier) == 0


class TestHostTier:
    def test_returns_kept_deltas(self, shelf: Shelf):
        tier = HostTier(shelf.bytes_of("abc"))
        for key in "abc":
            tier.keep(shelf.backbone, key, shelf.loaded[key])
        assert tier.find(shelf.backbone, "a") is shelf.loaded["a"]
        assert (len(tier), tier.nbytes) == (3, shelf.bytes_of("abc"))
        tier.keep(shelf.backbone, "d", shelf.loaded["d"])
        assert tier.find(shelf.backbone, "b") is None
        assert tier.nbytes == shelf.bytes_of("acd")

    def test_with_no_budget_keeps_nothing(self, shelf: Shelf):
        tier = HostTier(0)
        tier.keep(shelf.backbone, "a", shelf.loaded["a"])
        assert (len(tier), tier.nbytes, tier.find(shelf.backbone, "a")) == (0, 0, None)

    def test_separates_backbones(self, shelf: Shelf, backbone: Path):
        other = serve(backbone)
        tier = HostTier(1 << 30)
        tier.keep(shelf.backbone, "a", shelf.loaded["a"])
        tier.keep(other, "a", shelf.loaded["b"])
        assert tier.find(shelf.backbone, "a") is shelf.loaded["a"]
        tier.drop(shelf.backbone)
        assert tier.find(shelf.backbone, "a") is None
        assert tier.find(other, "a") is shelf.loaded["b"]
        assert tier.nbytes == shelf.bytes_of("b")
