"""hifi.serving.mixed_rows: products are put where they belong, the same on a CPU and on a GPU."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hifi.serving import mixed_batch, mixed_rows
from hifi.serving.bank import HeadBank
from hifi.serving.mixed_rows import Placing, place_by_index, place_by_slices, placing_on
from tests.architectures import HIDDEN, LAYERS, NAMES, QUERY_HEADS, tiny_batch
from tests.tuned_tasks import bare, heads_of, several, tune

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LENGTHS = (9, 5, 12, 3, 7, 7, 2, 11, 1, 6)
MODULES = 3 * LAYERS  # of a BERT


class Calls(TorchDispatchMode):
    """Counts the operations that torch dispatches."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def place_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[Placing], None]:
    def choose(way: Placing) -> None:
        monkeypatch.setattr(mixed_rows, "placing_on", lambda _device: way)

    return choose


def counted(tasks: int, names: Sequence[int]) -> Counter[str]:
    """Count torch's operations for a batch of tasks of one shape, without task heads."""
    bank = HeadBank(bare("bert"))
    for seed in range(tasks):
        heads = heads_of("bert", seed=seed, per_layer=(2, 2, 2))
        delta = tune("bert", heads, seed=seed, labels=2).delta
        bank.add(str(seed), replace(delta, task_head={}))
    batch = tiny_batch("bert", lengths=tuple(3 for _ in names))
    with Calls() as calls:
        bank.forward(batch, [str(name) for name in names])
    return calls.counts


class TestPlacing:
    def test_is_chosen_by_device(self):
        assert placing_on(torch.device("cpu")) is place_by_slices
        assert placing_on(torch.device("cuda", 1)) is place_by_index

    @pytest.mark.parametrize("place", [place_by_slices, place_by_index])
    def test_overwrites_the_heads_that_are_named_and_no_other(self, place: Placing):
        heads = torch.tensor([[2, 0], [1, 2]])
        product = torch.arange(1.0, 9.0).view(2, 1, 2, 2)  # two samples of one token
        output = torch.zeros(2, 1, 3, 2)
        place(product, output=output, heads=heads)
        assert output[:, 0].tolist() == [[[3, 4], [0, 0], [1, 2]], [[0, 0], [5, 6], [7, 8]]]
        place(product, output=output, heads=heads[:1])
        assert output[:, 0].tolist() == [[[3, 4], [0, 0], [1, 2]], [[7, 8], [5, 6], [5, 6]]]

    @pytest.mark.parametrize("architecture", NAMES)
    def test_gives_the_same_bits_either_way(
        self, architecture: str, place_by: Callable[[Placing], None]
    ):
        deltas = {
            name: replace(tuned.delta, task_head={})
            for name, tuned in several(architecture).items()
        }
        batch = tiny_batch(architecture, lengths=LENGTHS)
        cycle = [*deltas, None]
        # a few samples of each, and many of one
        for names in ([cycle[n % len(cycle)] for n in range(10)], ["a"] * 6 + ["b", "c", "a", "b"]):
            answers = []
            for way in (place_by_slices, place_by_index):
                place_by(way)
                bank = HeadBank(bare(architecture))
                for name, delta in deltas.items():
                    bank.add(name, delta)
                answers.append(bank.forward(batch, names))
            for one, other in zip(*answers, strict=True):
                assert torch.equal(one, other)

    def test_by_index_is_one_kernel_for_a_module(self, place_by: Callable[[Placing], None]):
        place_by(place_by_index)
        few, many = counted(2, [0, 1]), counted(6, [0, 1, 2, 3, 4, 5])
        for counts in (few, many):
            assert counts["scatter_"] == MODULES
            assert counts["cat"] + counts["stack"] == 2 * LAYERS  # weights and biases
            assert counts["copy_"] == 0
        assert few["baddbmm"] == many["baddbmm"] == LAYERS

    def test_copies_no_more_weights_together_than_allowed(self, monkeypatch: pytest.MonkeyPatch):
        one = 4 * HIDDEN * 3 * 2 * (HIDDEN // QUERY_HEADS)  # bytes of two heads' q, k and v
        for allowed, products in ((6 * one, 1), (2 * one, 3), (3 * one - 1, 3)):
            monkeypatch.setattr(mixed_batch, "_STACKED_BYTES", allowed)
            assert counted(6, range(6))["baddbmm"] == products * LAYERS
        monkeypatch.setattr(mixed_batch, "_STACKED_BYTES", one - 1)  # one task at least
        alone = counted(6, range(6))
        assert alone["addmm"] - counted(6, [0])["addmm"] == 5 * LAYERS
        assert alone["baddbmm"] == alone["stack"] == 0

    def test_by_slices_is_one_copy_for_a_head(self, place_by: Callable[[Placing], None]):
        place_by(place_by_slices)
        assert counted(2, [0, 1])["copy_"] == 2 * 2 * MODULES
