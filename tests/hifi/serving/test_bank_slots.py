"""hifi.serving.bank: the slots that packed head deltas take and leave."""

from __future__ import annotations

import pytest
import torch

from hifi.serving.bank import HeadBank
from tests.tuned_tasks import assert_answers, bank_of, bare, several, tune


class TestSlots:
    def test_a_packed_delta_answers_as_an_added_one(self):
        tuned = several("bert")["c"]
        bank = HeadBank(bare("bert"))
        packed = bank.pack(tuned.delta)
        assert len(bank) == bank.nbytes == 0
        bank.put("c", packed)
        assert_answers(bank, "c", tuned)
        assert bank.nbytes == bank.bytes_of("c") == packed.nbytes == packed.flat.nbytes

    def test_layouts_are_equal_where_heads_alone_differ(self):
        tasks = several("bert")
        bank = HeadBank(bare("bert"))
        layouts = {name: bank.pack(tuned.delta).layout for name, tuned in tasks.items()}
        assert tasks["a"].delta.heads != tasks["b"].delta.heads
        assert layouts["a"] == layouts["b"]
        assert hash(layouts["a"]) == hash(layouts["b"])
        assert len(set(layouts.values())) == 3
        wider = tune("bert", tasks["a"].delta.heads, seed=0, labels=3)
        assert bank.pack(wider.delta).layout not in layouts.values()

    def test_tasks_of_one_layout_go_through_one_slot(self):
        tasks = several("bert")
        bank = HeadBank(bare("bert"))
        packed = {name: bank.pack(tasks[name].delta) for name in ("a", "b")}
        places = set()
        for name in ("a", "b", "a"):
            bank.put(name, packed[name])
            places.add(bank._tasks[name].slot.flat.data_ptr())
            assert_answers(bank, name, tasks[name])
            bank.remove(name)
        assert len(places) == 1
        assert bank.nbytes == packed["a"].nbytes

    def test_free_ones_keep_their_memory_until_it_is_given_back(self):
        tasks = several("bert")
        bank = bank_of("bert", {name: tasks[name] for name in ("a", "c")})
        small, large = (bank.pack(tasks[name].delta) for name in ("a", "c"))
        assert bank.nbytes == small.nbytes + large.nbytes
        assert not bank.has_free_slot(small.layout)
        bank.remove("a")
        assert bank.has_free_slot(small.layout)
        assert not bank.has_free_slot(large.layout)
        assert bank.nbytes == small.nbytes + large.nbytes
        bank.release_free_slots()
        assert not bank.has_free_slot(small.layout)
        assert bank.nbytes == large.nbytes
        bank.close()
        assert len(bank) == bank.nbytes == 0

    def test_take_a_delta_s_own_bytes_and_padding(self):
        tuned = several("bert")["a"]
        bank = HeadBank(bare("bert"))
        packed = bank.pack(tuned.delta)
        own = [*tuned.delta.rows.values(), *tuned.delta.task_head.values()]
        more = packed.nbytes - sum(tensor.nbytes for tensor in own)
        assert 0 <= more < 64 * len(packed.layout.parts)

    def test_of_a_bfloat16_model_take_half_of_the_bytes(self):
        tuned = several("bert")["a"]
        packed = HeadBank(bare("bert")).pack(tuned.delta)
        heads = tuned.delta.heads
        half = tune("bert", heads, seed=0, labels=2, dtype=torch.bfloat16)
        bank = HeadBank(bare("bert", dtype=torch.bfloat16))
        small = bank.pack(half.delta)
        assert small.flat.dtype == torch.bfloat16
        assert small.nbytes <= 0.55 * packed.nbytes
        assert small.layout != packed.layout

    def test_are_filled_in_and_outside_of_inference_mode(self):
        tasks = several("bert")
        bank = HeadBank(bare("bert"))
        packed = {name: bank.pack(tasks[name].delta) for name in ("a", "b")}
        with torch.inference_mode():
            bank.put("x", packed["a"])
        bank.remove("x")
        bank.put("x", packed["b"])
        bank.remove("x")
        with torch.inference_mode():
            bank.put("x", bank.pack(tasks["a"].delta))
        assert_answers(bank, "x", tasks["a"])

    def test_of_a_failed_batch_are_free_again(self):
        bank = bank_of("bert", {"a": several("bert")["a"]})
        layout = bank.pack(several("bert")["a"].delta).layout
        with pytest.raises(ValueError, match="input_ids"):
            bank.forward({"no_such_input": torch.zeros(1, 3)}, ["a"])
        bank.remove("a")
        assert bank.has_free_slot(layout)
