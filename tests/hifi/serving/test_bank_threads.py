"""hifi.serving.bank: deltas added, replaced and removed while a batch runs."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hifi.errors import BankClosedError, HifiError
from hifi.serving.bank import HeadBank
from tests.architectures import tiny_batch
from tests.tuned_tasks import CLOSE, Tuned, assert_answers, bank_of, bare, heads_of, several, tune
from tests.waiting import patience

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest
    from transformers import PreTrainedModel


class Asked(threading.Thread):
    """A batch of two that a bank computes in another thread."""

    def __init__(self, bank: HeadBank, name: str) -> None:
        super().__init__(daemon=True)
        self._bank, self._name = bank, name
        self._batch = tiny_batch("bert", lengths=(5, 9))
        self._answers: list[Tensor] = []
        self.error: HifiError | None = None

    def run(self) -> None:
        try:
            self._answers = self._bank.forward(self._batch, [self._name] * 2)
        except HifiError as error:
            self.error = error

    def assert_answers_as(self, tuned: Tuned) -> None:
        self.join(timeout=patience(60))
        difference = torch.stack(self._answers) - tuned.answer(self._batch)
        assert difference.abs().max() <= CLOSE


class LateTurn:
    """A bank's batch lock that waits for the event ``on`` before it is acquired."""

    def __init__(self, turn: threading.Lock) -> None:
        self._turn = turn
        self.asked, self.on = threading.Event(), threading.Event()

    def __enter__(self) -> None:
        self.asked.set()
        assert self.on.wait(timeout=patience(60))
        self._turn.acquire()

    def __exit__(self, *_: object) -> None:
        self._turn.release()


@contextmanager
def standing_still(model: PreTrainedModel) -> Iterator[threading.Event]:
    """Hold batches at the embeddings inside the block; yield an event set when one arrives."""
    there, on = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        there.set()
        assert on.wait(timeout=patience(60))

    hook = model.embeddings.register_forward_hook(wait)
    try:
        yield there
    finally:
        on.set()
        hook.remove()


@contextmanager
def running_batch(bank: HeadBank, model: PreTrainedModel, name: str) -> Iterator[Asked]:
    """Start a batch of a task and hold it at the embeddings inside the block."""
    with standing_still(model) as there:
        asked = Asked(bank, name)
        asked.start()
        assert there.wait(timeout=patience(60))
        yield asked


class TestWhileABatchRuns:
    def test_others_come_and_go_and_it_keeps_its_slots(self):
        tasks = several("bert")
        model = bare("bert")
        bank = HeadBank(model)
        bank.add("a", tasks["a"].delta)
        layout = bank.pack(tasks["a"].delta).layout
        with running_batch(bank, model, "a") as asked:
            bank.remove("a")
            assert not bank.has_free_slot(layout)
            bank.add("b", tasks["b"].delta)  # of the same layout
            assert "a" not in bank
            assert asked.is_alive()
        asked.assert_answers_as(tasks["a"])
        assert bank.has_free_slot(layout)
        assert_answers(bank, "b", tasks["b"])

    def test_a_name_may_be_given_to_another_delta(self):
        tasks = several("bert")
        model = bare("bert")
        bank = HeadBank(model)
        bank.add("x", tasks["a"].delta)
        packed = bank.pack(tasks["b"].delta)
        with running_batch(bank, model, "x") as asked:
            bank.put("x", packed)
            assert not bank.has_free_slot(packed.layout)
        asked.assert_answers_as(tasks["a"])
        assert bank.has_free_slot(packed.layout)
        assert_answers(bank, "x", tasks["b"])

    def test_one_that_waits_for_its_turn_finds_what_is_there_then(self):
        tasks = several("bert")
        model = bare("bert")
        bank = HeadBank(model)
        bank.add("a", tasks["a"].delta)
        bank.add("c", tasks["c"].delta)
        with standing_still(model) as there:
            first, second = Asked(bank, "c"), Asked(bank, "a")
            first.start()
            assert there.wait(timeout=patience(60))
            late = bank._turn = LateTurn(bank._turn)
            second.start()
            assert late.asked.wait(timeout=patience(60))
            bank.add("a", tasks["b"].delta)
            assert bank.has_free_slot(bank.pack(tasks["a"].delta).layout)  # the former one's
        first.assert_answers_as(tasks["c"])
        late.on.set()
        second.assert_answers_as(tasks["b"])

    def test_one_that_waits_for_its_turn_is_refused_where_the_bank_is_closed_first(self):
        bank = bank_of("bert", {"a": several("bert")["a"]})
        turn = bank._turn
        late = bank._turn = LateTurn(turn)
        asked = Asked(bank, "a")
        asked.start()
        assert late.asked.wait(timeout=patience(60))
        bank._turn = turn
        bank.close()
        late.on.set()
        asked.join(timeout=patience(60))
        assert isinstance(asked.error, BankClosedError)
        assert bank.nbytes == 0

    def test_closing_waits_for_it(self):
        tasks = several("bert")
        model = bare("bert")
        bank = HeadBank(model)
        bank.add("a", tasks["a"].delta)
        with running_batch(bank, model, "a") as asked:
            closing = threading.Thread(target=bank.close, daemon=True)
            closing.start()
            closing.join(timeout=0.1)
            assert closing.is_alive()
        asked.assert_answers_as(tasks["a"])
        closing.join(timeout=patience(60))
        assert len(bank) == bank.nbytes == 0

    def test_packing_leaves_the_default_dtype_alone(self, monkeypatch: pytest.MonkeyPatch):
        """The setting is global, and a batch may create tensors meanwhile."""
        heads = heads_of("bert", seed=0, per_layer=(1, 1, 1))
        tuned = tune("bert", heads, seed=0, labels=2, dtype=torch.bfloat16)
        bank = HeadBank(bare("bert", dtype=torch.bfloat16))
        seen: list[torch.dtype] = []
        change = torch.set_default_dtype
        monkeypatch.setattr(
            torch, "set_default_dtype", lambda dtype: (seen.append(dtype), change(dtype))
        )
        bank.add("a", tuned.delta)
        assert set(seen) <= {torch.float32}
