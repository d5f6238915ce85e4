"""hifi.serving.bank on a GPU: asynchronous copies, and slots that take turns under load."""

from __future__ import annotations

import copy
import threading
from typing import TYPE_CHECKING

import pytest
import torch

from hifi.serving.bank import HeadBank
from hifi.serving.mixed_rows import place_by_index, place_by_slices, placing_on
from tests.architectures import NAMES, tiny_batch
from tests.tuned_tasks import bare, several

if TYPE_CHECKING:
    from torch import Tensor

    from tests.tuned_tasks import Tuned

pytestmark = pytest.mark.gpu

CLOSE = 1e-4  # a GPU adds up in another order than the CPU that computes the references
LENGTHS = (9, 5, 12, 3, 7, 7, 2, 11, 1, 6)


def on_gpu(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.cuda() for key, tensor in batch.items()}


def assert_answers(bank: HeadBank, tasks: dict[str, Tuned], names: list[str]) -> None:
    """Compare a mixed batch with what merged models answer on the CPU, sample by sample."""
    batch = tiny_batch("bert", lengths=LENGTHS[: len(names)])
    answers = bank.forward(on_gpu(batch), names)
    for place, name in enumerate(names):
        merged = tasks[name].answer(batch)[place]
        assert (answers[place].cpu() - merged).abs().max() <= CLOSE


@pytest.fixture
def bank() -> HeadBank:
    return HeadBank(bare("bert").cuda())


class TestMixedBatch:
    @pytest.mark.parametrize("architecture", NAMES)
    def test_gives_each_row_what_its_merged_model_gives(self, architecture: str):
        tasks = several(architecture)
        bank = HeadBank(bare(architecture).cuda())
        for name, tuned in tasks.items():
            bank.add(name, tuned.delta)
        models = {name: copy.deepcopy(tuned.model).cuda() for name, tuned in tasks.items()}
        batch = on_gpu(tiny_batch(architecture, lengths=LENGTHS))
        cycle = [*tasks]
        for names in (
            [cycle[place % len(cycle)] for place in range(10)],
            [cycle[0]] * 6 + [cycle[1]] * 4,
        ):
            answers = bank.forward(batch, names)
            for place, name in enumerate(names):
                with torch.no_grad():
                    merged = models[name](**batch).logits[place]
                assert answers[place].device.type == "cuda"
                assert (answers[place] - merged).abs().max() <= CLOSE


class TestSlots:
    def test_packed_tensors_lie_in_pinned_memory(self, bank: HeadBank):
        packed = bank.pack(several("bert")["a"].delta)
        assert packed.flat.is_pinned()

    def test_are_used_again_between_batches_that_are_still_computed(self, bank: HeadBank):
        """The copy into a slot is queued while the batch that reads it may still run."""
        tasks = {name: several("bert")[name] for name in ("a", "b")}  # of one layout
        packed = {name: bank.pack(tuned.delta) for name, tuned in tasks.items()}
        batch = tiny_batch("bert", lengths=LENGTHS)
        given = on_gpu(batch)
        answers = []
        for turn in range(200):
            name = "ab"[turn % 2]
            bank.put("x", packed[name])
            answers.append(bank.forward(given, ["x"] * len(LENGTHS)))
            bank.remove("x")
        assert bank.nbytes == packed["a"].nbytes  # one slot did for all
        for turn, answer in enumerate(answers):
            merged = tasks["ab"[turn % 2]].answer(batch)
            assert (torch.stack(answer).cpu() - merged).abs().max() <= CLOSE

    def test_are_filled_from_another_thread_under_load(self, bank: HeadBank):
        tasks = several("bert")
        for name in ("a", "c"):
            bank.add(name, tasks[name].delta)
        packed = [bank.pack(tasks[name].delta) for name in ("a", "b", "d")]
        failed: list[BaseException] = []
        is_done = threading.Event()

        def change() -> None:
            try:
                while not is_done.is_set():
                    for number, each in enumerate(packed):
                        bank.put(f"other {number}", each)
                    for number in range(len(packed)):
                        bank.remove(f"other {number}")
            except BaseException as error:  # noqa: BLE001 - raised below, in the test's thread
                failed.append(error)

        thread = threading.Thread(target=change)
        thread.start()
        try:
            for _ in range(100):
                assert_answers(bank, tasks, ["a", "c", "a", "c", "c"])
        finally:
            is_done.set()
            thread.join()
        assert not failed


class TestPacking:
    def test_beside_a_running_batch_gives_what_it_gives_alone(self, bank: HeadBank):
        tasks = several("bert")
        bank.add("a", tasks["a"].delta)
        alone = bank.pack(tasks["c"].delta).flat
        packed: list[Tensor] = []

        def pack() -> None:
            packed.extend(bank.pack(tasks["c"].delta).flat for _ in range(20))

        thread = threading.Thread(target=pack)
        thread.start()
        while thread.is_alive():
            assert_answers(bank, tasks, ["a", "a"])
        thread.join()
        assert len(packed) == 20
        assert all(flat.equal(alone) for flat in packed)


class TestPlacing:
    def test_by_index_gives_the_bits_that_slices_give(self):
        assert placing_on(torch.device("cuda")) is place_by_index
        generator = torch.Generator().manual_seed(0)
        product = torch.randn(5, 7, 3, 4, generator=generator)
        heads = torch.stack([torch.randperm(6, generator=generator)[:3] for _ in range(5)])
        for numbers in (heads, heads[:1]):
            expected = torch.zeros(5, 7, 6, 4)
            place_by_slices(product, output=expected, heads=numbers)
            output = torch.zeros(5, 7, 6, 4, device="cuda")
            place_by_index(product.cuda(), output=output, heads=numbers.cuda())
            assert output.cpu().equal(expected)
