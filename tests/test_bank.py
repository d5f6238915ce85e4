"""hifi.bank: an answer from a mixed batch is that of the model with the delta merged."""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from hifi.backbone import HeadId, describe
from hifi.bank import HeadBank
from hifi.delta import HeadDelta
from hifi.errors import (
    BackboneMismatchError,
    InvalidArgumentError,
    TaskHeadMismatchError,
    TaskNotSupportedError,
    TunerError,
)
from hifi.head_selection import HeadSelection
from hifi.tuning import HeadTuner
from tests.architectures import ARCHITECTURES, LAYERS, NAMES, PAD, tiny_batch, tiny_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

LENGTHS = (9, 5, 12, 3, 7, 7, 2, 11, 1, 6)
CLOSE = 1e-5


@dataclass(frozen=True)
class Tuned:
    """A task on a backbone: its delta, and the model with that merged, the reference."""

    delta: HeadDelta
    model: PreTrainedModel

    def answer(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return self.model(**batch).logits


def tune(
    architecture: str,
    heads: Sequence[HeadId],
    *,
    seed: int,
    labels: int | None,
    dtype: torch.dtype = torch.float32,
) -> Tuned:
    """Put noise in the place of training; a task without labels is a regression."""
    model = tiny_model(architecture, num_labels=labels or 1, dtype=dtype)
    model.base_model.load_state_dict(bare(architecture, dtype=dtype).state_dict())
    tuner = HeadTuner(model, HeadSelection.from_heads(heads, num_layers=LAYERS))
    generator = torch.Generator().manual_seed(seed)
    for parameter in tuner.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    names = None if labels is None else [f"class {number}" for number in range(labels)]
    kind = "regression" if labels is None else "classification"
    task = {"type": kind, "label": "y", "text": ["t"], "pad_token_id": PAD}
    if ARCHITECTURES[architecture].image:
        task = {"type": "image-classification", "label": "y", "image": "i"}
    delta = tuner.delta(task=task, labels=names)
    return Tuned(delta, tuner.detach().eval())


def heads_of(architecture: str, *, seed: int, per_layer: Sequence[int]) -> list[HeadId]:
    """Draw so many heads of each layer."""
    count = describe(tiny_model(architecture)).num_heads
    generator = torch.Generator().manual_seed(seed)
    return [
        HeadId(layer, int(head))
        for layer, wanted in enumerate(per_layer)
        for head in torch.randperm(count, generator=generator)[:wanted]
    ]


def bare(architecture: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return copy.deepcopy(tiny_model(architecture, dtype=dtype).base_model).eval()


def several(architecture: str) -> dict[str, Tuned]:
    """Give tasks that differ in heads, in how many, and in labels."""
    plans = {"a": ((1, 1, 1), 2), "b": ((1, 1, 1), 2), "c": ((2, 0, 1), 3), "d": ((0, 2, 2), None)}
    if ARCHITECTURES[architecture].image:
        del plans["d"]
    return {
        name: tune(
            architecture,
            heads_of(architecture, seed=seed, per_layer=per_layer),
            seed=seed,
            labels=labels,
        )
        for seed, (name, (per_layer, labels)) in enumerate(plans.items())
    }


def task_head_alone(delta: HeadDelta, architecture: str) -> HeadDelta:
    """Give a delta whose rows are the backbone's own."""
    base = delta.with_base(bare(architecture)).base
    assert base is not None
    return replace(delta, rows=base)


def bank_of(architecture: str, tasks: dict[str, Tuned]) -> HeadBank:
    bank = HeadBank(bare(architecture))
    for name, tuned in tasks.items():
        bank.add(name, tuned.delta)
    return bank


def row(batch: dict[str, Tensor], place: int) -> dict[str, Tensor]:
    return {key: tensor[place : place + 1] for key, tensor in batch.items()}


class TestMixedBatch:
    @pytest.mark.parametrize("architecture", NAMES)
    def test_gives_each_row_what_its_merged_model_gives(self, architecture: str):
        tasks = several(architecture)
        bank = bank_of(architecture, tasks)
        batch = tiny_batch(architecture, lengths=LENGTHS)
        cycle = [*tasks, None]
        names = [cycle[place % len(cycle)] for place in range(len(LENGTHS))]
        with torch.no_grad():
            hidden = bare(architecture)(**batch).last_hidden_state
        for place, (name, answer) in enumerate(zip(names, bank.forward(batch, names), strict=True)):
            if name is None:
                assert torch.allclose(answer, hidden[place], rtol=0, atol=CLOSE)
                continue
            merged = tasks[name].answer(row(batch, place))[0]
            assert answer.shape == merged.shape
            assert (answer - merged).abs().max() <= CLOSE
            without = HeadBank(bare(architecture))
            without.add("head", task_head_alone(tasks[name].delta, architecture))
            plain = without.forward(row(batch, place), ["head"])[0]
            assert (answer - plain).abs().max() > 100 * CLOSE  # the rows do matter

    @pytest.mark.parametrize("share", [1, 3, 4, 8])
    def test_of_any_number_of_rows_per_task(self, share: int):
        tasks = several("bert")
        bank = bank_of("bert", tasks)
        batch = tiny_batch("bert", lengths=(5, 9, 7) * 4)
        names = (["a"] * share + ["b", "c", "d"] * 4)[:12]
        for place, answer in enumerate(bank.forward(batch, names)):
            assert (answer - tasks[names[place]].answer(row(batch, place))[0]).abs().max() <= CLOSE

    def test_whatever_else_is_in_it(self):
        tasks = several("bert")
        bank = bank_of("bert", tasks)
        batch = tiny_batch("bert", lengths=LENGTHS)
        generator = torch.Generator().manual_seed(5)
        cycle = [*tasks, None]
        for _ in range(20):
            drawn = torch.randint(0, len(cycle), (len(LENGTHS),), generator=generator)
            names = [cycle[int(number)] for number in drawn]
            for place, answer in enumerate(bank.forward(batch, names)):
                if (name := names[place]) is not None:
                    merged = tasks[name].answer(row(batch, place))[0]
                    assert (answer - merged).abs().max() <= CLOSE

    def test_in_bfloat16_as_the_merged_model(self):
        heads = heads_of("bert", seed=0, per_layer=(1, 1, 1))
        tuned = tune("bert", heads, seed=0, labels=2, dtype=torch.bfloat16)
        bank = HeadBank(bare("bert", dtype=torch.bfloat16))
        bank.add("a", tuned.delta)
        batch = tiny_batch("bert", lengths=(5, 9))
        for place, answer in enumerate(bank.forward(batch, ["a", "a"])):
            merged = tuned.answer(row(batch, place))[0]
            assert torch.allclose(answer, merged, rtol=0, atol=0.1)

    def test_of_encoded_deltas_as_their_merged_models(self, tmp_path):
        tuned = several("bert")["c"]
        for encoding in ("bfloat16", "int8"):
            tuned.delta.save(tmp_path / encoding, encoding=encoding)
            delta = HeadDelta.load(tmp_path / encoding)
            bank = HeadBank(bare("bert"))
            bank.add("c", delta)
            model = tiny_model("bert", num_labels=3)
            delta.merge(model)
            batch = tiny_batch("bert", lengths=(5, 9))
            with torch.no_grad():
                merged = model(**batch).logits
            answers = torch.stack(bank.forward(batch, ["c", "c"]))
            assert (answers - merged).abs().max() <= CLOSE

    def test_without_a_task_head_gives_the_hidden_state_of_the_merged_backbone(self):
        delta = replace(several("bert")["a"].delta, task_head={})
        bank = HeadBank(bare("bert"))
        bank.add("a", delta)
        merged = bare("bert")
        delta.merge(merged)
        batch = tiny_batch("bert", lengths=(5, 9))
        with torch.no_grad():
            hidden = merged(**batch).last_hidden_state
        answers = bank.forward(batch, ["a", "a"])
        assert (torch.stack(answers) - hidden).abs().max() <= CLOSE


class TestBank:
    def test_leaves_the_model_as_it_was(self):
        model = bare("bert")
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        batch = tiny_batch("bert")
        with torch.no_grad():
            hidden = model(**batch).last_hidden_state
        bank = HeadBank(model)
        bank.add("a", several("bert")["a"].delta)
        bank.forward(batch, ["a"] * 4)
        with torch.no_grad():
            assert torch.equal(model(**batch).last_hidden_state, hidden)
        bank.close()
        assert not any(module._forward_hooks for module in model.modules())
        assert all(torch.equal(model.state_dict()[name], old) for name, old in before.items())

    def test_a_name_may_be_given_to_another_delta(self):
        tasks = several("bert")
        bank = bank_of("bert", {"x": tasks["a"]})
        bank.add("x", tasks["c"].delta)
        batch = tiny_batch("bert", lengths=(5,))
        answer = bank.forward(batch, ["x"])[0]
        assert (answer - tasks["c"].answer(batch)[0]).abs().max() <= CLOSE
        assert len(bank) == 1

    def test_a_removed_one_is_gone(self):
        bank = bank_of("bert", {"x": several("bert")["a"]})
        assert "x" in bank
        bank.remove("x")
        assert "x" not in bank
        with pytest.raises(InvalidArgumentError, match="'x'"):
            bank.forward(tiny_batch("bert", lengths=(5,)), ["x"])
        with pytest.raises(InvalidArgumentError, match="'x'"):
            bank.remove("x")

    def test_takes_little_more_than_the_delta(self):
        tuned = several("bert")["a"]
        bank = bank_of("bert", {"a": tuned})
        own = [*tuned.delta.rows.values(), *tuned.delta.task_head.values()]
        assert bank.bytes_of("a") <= 1.1 * sum(tensor.nbytes for tensor in own)  # a tiny model

    def test_is_used_from_several_threads(self):
        tasks = several("bert")
        bank = bank_of("bert", tasks)
        batch = tiny_batch("bert", lengths=LENGTHS)
        wrong: list[str] = []

        def ask(name: str) -> None:
            wanted = tasks[name].answer(batch)
            for _ in range(10):
                answers = torch.stack(bank.forward(batch, [name] * len(LENGTHS)))
                if (answers - wanted).abs().max() > CLOSE:
                    wrong.append(name)

        def change() -> None:
            for _ in range(20):
                bank.add("e", tasks["a"].delta)
                bank.remove("e")

        threads = [threading.Thread(target=ask, args=(name,)) for name in tasks]
        threads.append(threading.Thread(target=change))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


class TestRefusals:
    def test_a_model_that_is_not_bare_or_in_training(self):
        with pytest.raises(InvalidArgumentError, match="bare backbone"):
            HeadBank(tiny_model("bert"))
        with pytest.raises(InvalidArgumentError, match="eval"):
            HeadBank(bare("bert").train())

    def test_a_model_that_is_being_tuned(self):
        model = bare("bert")
        HeadTuner(model, HeadSelection.from_heads([HeadId(0, 0)], num_layers=LAYERS))
        with pytest.raises(TunerError):
            HeadBank(model.eval())

    def test_a_delta_of_another_backbone(self):
        bank = HeadBank(bare("bert"))
        other = tune("roberta", [HeadId(0, 0)], seed=0, labels=2)
        with pytest.raises(BackboneMismatchError):
            bank.add("x", other.delta)
        assert len(bank) == 0

    def test_a_task_head_that_nothing_is_known_of(self):
        delta = several("bert")["a"].delta
        bank = HeadBank(bare("bert"))
        with pytest.raises(TaskNotSupportedError):
            bank.add("x", replace(delta, metadata=replace(delta.metadata, task=None)))

    @pytest.mark.parametrize("change", ["missing", "another", "shape"])
    def test_a_task_head_that_does_not_fit(self, change: str):
        delta = several("bert")["a"].delta
        head = dict(delta.task_head)
        if change == "missing":
            del head["classifier.bias"]
        elif change == "another":
            head["classifier.gain"] = torch.zeros(2)
        else:
            head["classifier.bias"] = torch.zeros(3)
        bank = HeadBank(bare("bert"))
        with pytest.raises(TaskHeadMismatchError, match="classifier"):
            bank.add("x", replace(delta, task_head=head))
        assert "x" not in bank

    @pytest.mark.parametrize("names", [[], ["a"], ["a"] * 5])
    def test_names_that_are_not_one_for_each_row(self, names: list[str]):
        bank = bank_of("bert", {"a": several("bert")["a"]})
        with pytest.raises(InvalidArgumentError, match="4 samples"):
            bank.forward(tiny_batch("bert"), names)
