"""worker.inference.executor: a batch that fails is split, and every sample hears of its end."""

from __future__ import annotations

import asyncio
import math
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hifi.backbones.models import resolve_model
from hifi.deltas.loading import load_bare_backbone
from hifi.serving.bank import HeadBank
from hifi.tasks import Sample
from tests.waiting import eventually, patience
from tests.worker.inference.tuned import CLOSE, Tuned, tune
from worker.inference.executor import (
    ComputationError,
    Executor,
    NoMemoryError,
    NotPlacedError,
    Outcome,
    Work,
)
from worker.inference.memory.backbones import LoadedDelta, ServedBackbone
from worker.inference.memory.tiers import DeviceTier
from worker.inference.scheduler import Scheduler, Ticket

CPU_MEMORY = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 GB")
GPU_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")


class DirectLoop:
    """An event loop that runs callbacks at once."""

    def call_soon_threadsafe(self, callback: Callable[..., None], *args: object) -> None:
        callback(*args)


class Bench:
    """An executor with a tiny backbone and some head deltas."""

    def __init__(self, folder: Path, *, count: int, device_bytes: int = 1 << 30) -> None:
        source = resolve_model(folder)
        bare = load_bare_backbone(source, device=torch.device("cpu"))
        self.backbone = ServedBackbone(source, bare.model, fingerprint=bare.fingerprint, stamp="")
        self.tuned: list[Tuned] = [tune(folder, seed=seed) for seed in range(count)]
        self.loaded: list[LoadedDelta] = [self.backbone.load(each.delta) for each in self.tuned]
        self.scheduler: Scheduler[Work] = Scheduler(
            max_tokens=4096, tenant_tokens=4096, max_wait_seconds=0.0
        )
        self.tier = DeviceTier(device_bytes)
        self.passes: list[tuple[int, int]] = []
        self.ends: list[int] = []
        self.works: list[weakref.ref[Work]] = []
        self.executor = Executor(
            self.scheduler,
            tier=self.tier,
            loop=DirectLoop(),  # type: ignore[arg-type]
            observe=lambda samples, tokens: self.passes.append((samples, tokens)),
            on_end=lambda: self.ends.append(1),
        )

    def close(self) -> None:
        self.scheduler.close()
        self.executor.close()

    def sample(self, place: int, text: str) -> Sample:
        reader = self.backbone.encoder_for(self.loaded[place].record)
        (sample,) = reader.read([{"text": text}], truncate=True)
        assert isinstance(sample, Sample)
        return sample

    def run(
        self,
        asked: Sequence[tuple[int, str]],
        *,
        packed: bool = True,
        tenants: Sequence[str] = ("ten_1",),
    ) -> list[list[Outcome]]:
        """Compute samples of these tenants in turn, all added at once; return each outcome."""
        told: list[list[Outcome]] = [[] for _ in asked]
        tickets = []
        for place, (number, text) in enumerate(asked):
            loaded, sample = self.loaded[number], self.sample(number, text)
            work = Work(
                self.backbone,
                str(number),
                loaded.record,
                loaded.packed if packed else None,
                sample,
                told[place].append,
            )
            self.works.append(weakref.ref(work))
            tenant = tenants[place % len(tenants)]
            tickets.append(Ticket(self.backbone, tenant, sample.length, work))
        self.scheduler.add(tickets)
        eventually(lambda: all(told))
        return told

    def check(self, asked: Sequence[tuple[int, str]], told: Sequence[Sequence[Outcome]]) -> None:
        for (number, text), outcomes in zip(asked, told, strict=True):
            (logits,) = outcomes
            assert isinstance(logits, Tensor)
            expected = self.tuned[number].logits({"text": text})
            assert (logits - expected).abs().max() <= CLOSE


@pytest.fixture
def bench(backbone: Path) -> Iterator[Bench]:
    bench = Bench(backbone, count=3)
    yield bench
    bench.close()


class TestEqualInputs:
    SAME = ((0, "w1 w2"), (1, "w1 w2"), (0, "w3 w4"), (2, "w1 w2"))

    def test_of_a_tenant_run_as_one_row(self, bench: Bench):
        bench.check(self.SAME, bench.run(self.SAME))
        assert bench.passes == [(4, 2 * 4)]  # [CLS], two words and [SEP]

    def test_of_different_tenants_stay_apart(self, bench: Bench):
        bench.check(self.SAME, bench.run(self.SAME, tenants=("ten_1", "ten_2")))
        rows = 2 + 1  # the second and the fourth are of one tenant
        assert sum(tokens for _, tokens in bench.passes) == rows * 4


ASKED = [(place % 3, f"w{place} w{place + 1} w{place + 2}") for place in range(9)]


@pytest.fixture
def forward(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], list[int]]:
    """Call a function with each batch before it is computed; it may raise."""
    whole, sizes = HeadBank.fan_out, []

    def watch(look: Callable[[Mapping[str, Tensor], Sequence[str]], None]) -> list[int]:
        def fan_out(self: HeadBank, batch: Any, names: Any) -> Any:
            flat = [name for row in names for name in row]
            sizes.append(len(flat))
            look(batch, flat)
            return whole(self, batch, names)

        monkeypatch.setattr(HeadBank, "fan_out", fan_out)
        return sizes

    return watch


class TestBatch:
    def test_is_one_pass(self, bench: Bench):
        bench.check(ASKED, bench.run(ASKED))
        assert bench.passes == [(9, 9 * 5)]

    def test_goes_in_several_where_there_is_no_room_for_its_deltas(self, backbone: Path):
        bench = Bench(backbone, count=3, device_bytes=1)
        bench.check(ASKED, bench.run(ASKED))
        assert sorted(samples for samples, _ in bench.passes) == [3, 3, 3]
        bench.close()

    def test_reports_missing_deltas_and_computes_the_rest(self, bench: Bench):
        bench.run(ASKED[:1])
        told = bench.run(ASKED, packed=False)
        bench.check(ASKED[::3], told[::3])
        others = [outcome for place, (outcome,) in enumerate(told) if place % 3]
        assert all(isinstance(outcome, NotPlacedError) for outcome in others)


class TestOutOfMemory:
    @pytest.mark.parametrize("error", [CPU_MEMORY, GPU_MEMORY, MemoryError()])
    @pytest.mark.parametrize("most", [1, 2, 4])
    def test_the_batch_is_split_and_all_are_answered(
        self, bench: Bench, forward: Callable, error: Exception, most: int
    ):
        def look(_: object, names: Sequence[str]) -> None:
            if len(names) > most:
                raise error

        sizes = forward(look)
        bench.check(ASKED, bench.run(ASKED))
        assert max(sizes[1:]) < 9
        assert len(sizes) <= 2 * math.ceil(9 / most) * 2

    def test_a_sample_too_large_even_alone_fails(self, bench: Bench, forward: Callable):
        def look(*_: object) -> None:
            raise GPU_MEMORY

        forward(look)
        told = bench.run(ASKED)
        assert all(isinstance(outcome, NoMemoryError) for (outcome,) in told)

    def test_while_placing_a_delta_does_not_stop_the_executor(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ):
        put = HeadBank.put

        def fail(self: HeadBank, name: str, packed: Any) -> None:
            if name == "1":
                raise CPU_MEMORY
            put(self, name, packed)

        monkeypatch.setattr(HeadBank, "put", fail)
        told = bench.run(ASKED)
        assert all(isinstance(outcome, NoMemoryError) for (outcome,) in told[1::3])
        for number in (0, 2):
            bench.check(ASKED[number::3], told[number::3])
        monkeypatch.undo()
        bench.check(ASKED, bench.run(ASKED))


class TestPoison:
    def test_one_sample_does_not_disturb_the_others(self, bench: Bench, forward: Callable):
        poison = bench.sample(0, ASKED[4][1]).inputs["input_ids"]

        def look(batch: Mapping[str, Tensor], _: object) -> None:
            if any(row.equal(poison) for row in batch["input_ids"]):
                raise IndexError("index out of range in self")

        forward(look)
        told = bench.run(ASKED)
        (failure,) = told.pop(4)
        assert isinstance(failure, ComputationError)
        bench.check([*ASKED[:4], *ASKED[5:]], told)

    def test_no_error_ends_the_thread(self, bench: Bench, monkeypatch: pytest.MonkeyPatch):
        for owner, name in ((HeadBank, "fan_out"), (DeviceTier, "place")):
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, None)
                told = bench.run(ASKED)
            assert all(isinstance(outcome, ComputationError) for (outcome,) in told)
        bench.check(ASKED, bench.run(ASKED))


class TestEnd:
    """On a GPU one error may make all later work fail: the process has to restart."""

    def test_a_lost_device_is_reported(
        self, bench: Bench, forward: Callable, monkeypatch: pytest.MonkeyPatch
    ):
        def lose(*_: object) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "synchronize", lose)
        monkeypatch.setattr(threading, "excepthook", lambda _: None)  # the log has it
        forward(lose)
        (outcomes,) = bench.run(ASKED[:1])
        assert isinstance(outcomes[0], ComputationError)
        eventually(lambda: bench.ends)
        eventually(lambda: not bench.executor.is_alive)

    def test_an_error_of_one_batch_is_no_lost_device(self, bench: Bench, forward: Callable):
        def fail(*_: object) -> None:
            raise RuntimeError("no such shape")

        forward(fail)
        bench.run(ASKED[:2])
        assert bench.executor.is_alive
        assert bench.ends == []

    def test_an_idle_executor_keeps_nothing_of_the_last_batch(self, bench: Bench):
        bench.run(ASKED)
        eventually(lambda: not any(work() for work in bench.works))


class TestLoop:
    def test_receives_the_outcomes(self, backbone: Path):
        bench = Bench(backbone, count=1)
        told: list[str] = []

        async def run() -> None:
            bench.executor._loop = asyncio.get_running_loop()
            done = asyncio.Event()

            def settle(_: Outcome) -> None:
                told.append(threading.current_thread().name)
                done.set()

            loaded, sample = bench.loaded[0], bench.sample(0, "w1")
            work = Work(bench.backbone, "0", loaded.record, loaded.packed, sample, settle)
            bench.scheduler.add([Ticket(bench.backbone, "ten_1", sample.length, work)])
            await asyncio.wait_for(done.wait(), patience(30))

        asyncio.run(run())
        bench.close()
        assert told == [threading.current_thread().name]
