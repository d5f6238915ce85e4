"""hifi.serving.bank: an answer from a mixed batch is that of the model with the delta merged."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from hifi.backbones.heads import HeadId
from hifi.deltas.delta import HeadDelta
from hifi.errors import (
    BackboneMismatchError,
    BankClosedError,
    InvalidArgumentError,
    TaskHeadMismatchError,
    TaskNotSupportedError,
    TunerError,
)
from hifi.selection.head_selection import HeadSelection
from hifi.serving import bank as bank_module
from hifi.serving import mixed_batch
from hifi.serving.bank import HeadBank
from hifi.serving.task_logits import TaskLogits
from hifi.tuning.tuner import HeadTuner
from tests.architectures import LAYERS, NAMES, tiny_batch, tiny_model
from tests.tuned_tasks import (
    CLOSE,
    bank_of,
    bare,
    heads_of,
    row,
    several,
    tune,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LENGTHS = (9, 5, 12, 3, 7, 7, 2, 11, 1, 6)


def task_head_alone(delta: HeadDelta, architecture: str) -> HeadDelta:
    """Return a delta whose rows are the backbone's own."""
    base = delta.with_base(bare(architecture)).base
    assert base is not None
    return replace(delta, rows=base)


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
        without = HeadBank(bare(architecture))
        for name, tuned in tasks.items():
            without.add(name, task_head_alone(tuned.delta, architecture))
        for place, (name, answer) in enumerate(zip(names, bank.forward(batch, names), strict=True)):
            if name is None:
                assert torch.allclose(answer, hidden[place], rtol=0, atol=CLOSE)
                continue
            merged = tasks[name].answer(row(batch, place))[0]
            assert answer.shape == merged.shape
            assert (answer - merged).abs().max() <= CLOSE
            plain = without.forward(row(batch, place), [name])[0]
            assert (answer - plain).abs().max() > 100 * CLOSE  # the rows do matter

    @pytest.mark.parametrize("share", [1, 2, 3, 4, 8])
    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_of_any_number_of_rows_per_task(
        self, share: int, device: str, monkeypatch: pytest.MonkeyPatch
    ):
        enough = mixed_batch.enough_on(torch.device(device))
        monkeypatch.setattr(bank_module, "enough_on", lambda _device: enough)
        tasks = several("bert")
        bank = bank_of("bert", tasks)
        batch = tiny_batch("bert", lengths=(5, 9, 7) * 4)
        names = (["a"] * share + ["b", "c", "d"] * 4)[:12]
        for place, answer in enumerate(bank.forward(batch, names)):
            assert (answer - tasks[names[place]].answer(row(batch, place))[0]).abs().max() <= CLOSE

    def test_does_not_depend_on_the_other_rows(self):
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

    @pytest.mark.parametrize("architecture", ["bert", "deberta-v3", "mpnet"])
    def test_in_bfloat16_as_the_merged_model(self, architecture: str):
        heads = heads_of(architecture, seed=0, per_layer=(1, 1, 1))
        tuned = tune(architecture, heads, seed=0, labels=2, dtype=torch.bfloat16)
        bank = HeadBank(bare(architecture, dtype=torch.bfloat16))
        bank.add("a", tuned.delta)
        batch = tiny_batch(architecture, lengths=(5, 9))
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

    @pytest.mark.parametrize("encoding", ["float32", "bfloat16", "int8"])
    def test_of_a_float32_delta_on_a_backbone_stored_in_bfloat16(self, encoding: str, tmp_path):
        several("bert")["c"].delta.save(tmp_path / "c", encoding=encoding)
        delta = HeadDelta.load(tmp_path / "c")
        bank = HeadBank(bare("bert", dtype=torch.bfloat16))
        bank.add("c", delta)
        model = tiny_model("bert", num_labels=3, dtype=torch.bfloat16)
        batch = tiny_batch("bert", lengths=(5, 9))
        displaced = delta.merge(model)
        with torch.no_grad():
            merged = model(**batch).logits
        answers = torch.stack(bank.forward(batch, ["c", "c"]))
        assert torch.allclose(answers, merged, rtol=0, atol=0.1)
        replace(displaced, task_head={}).merge(model)
        with torch.no_grad():
            assert not torch.allclose(answers, model(**batch).logits, rtol=0, atol=0.2)

    def test_whose_weights_are_copied_in_small_parts(self, monkeypatch: pytest.MonkeyPatch):
        tasks = several("roberta")
        bank = bank_of("roberta", tasks)
        batch = tiny_batch("roberta", lengths=LENGTHS)
        names = [*"abcdabcdaa"]
        whole = bank.forward(batch, names)
        monkeypatch.setattr(mixed_batch, "_STACKED_BYTES", 1)
        for place, answer in enumerate(bank.forward(batch, names)):
            assert (answer - whole[place]).abs().max() <= CLOSE
            merged = tasks[names[place]].answer(row(batch, place))[0]
            assert (answer - merged).abs().max() <= CLOSE

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

    @pytest.mark.parametrize("pads", [(0, 5), (5, 0)])
    def test_of_tasks_of_one_layout_whose_task_heads_differ(self, pads: tuple[int, int]):
        heads = heads_of("gpt2", seed=0, per_layer=(1, 1, 1))
        tasks = {str(pad): tune("gpt2", heads, seed=0, labels=2, pad=pad) for pad in pads}
        bank = bank_of("gpt2", tasks)
        assert len({bank.pack(tuned.delta).layout for tuned in tasks.values()}) == 1
        batch = tiny_batch("gpt2", lengths=(5, 9))
        answers = [bank.forward(batch, [name] * 2)[0] for name in tasks]
        for tuned, answer in zip(tasks.values(), answers, strict=True):
            assert (answer - tuned.answer(batch)[0]).abs().max() <= CLOSE
        assert (answers[0] - answers[1]).abs().max() > 100 * CLOSE  # what they read does matter

    def test_may_have_token_types_that_the_backbone_ignores(self):
        tuned = several("deberta-v3")["a"]
        bank = bank_of("deberta-v3", {"a": tuned})
        batch = tiny_batch("deberta-v3", lengths=(5, 9))
        batch["token_type_ids"] = torch.ones_like(batch["input_ids"])
        answers = torch.stack(bank.forward(batch, ["a", "a"]))
        assert (answers - tuned.answer(batch)).abs().max() <= CLOSE


class TestFirstToken:
    """The last layer computes only the first token if no task head reads another."""

    @staticmethod
    def tokens_at_the_end(bank: HeadBank, model: PreTrainedModel, names: list[str | None]) -> int:
        lengths: list[int] = []
        hook = model.encoder.layer[-1].output.register_forward_hook(
            lambda _module, _arguments, output: lengths.append(output.shape[1])
        )
        bank.forward(tiny_batch("bert", lengths=LENGTHS[: len(names)]), names)
        hook.remove()
        return lengths[0]

    @pytest.mark.parametrize(
        "architecture", ["bert", "roberta", "xlm-roberta", "electra", "deberta-v2"]
    )
    def test_gives_the_answers_of_merged_models(self, architecture: str):
        tasks = several(architecture)
        bank = bank_of(architecture, tasks)
        batch = tiny_batch(architecture, lengths=LENGTHS)
        names = [list(tasks)[place % len(tasks)] for place in range(len(LENGTHS))]
        for place, (name, answer) in enumerate(zip(names, bank.forward(batch, names), strict=True)):
            merged = tasks[name].answer(row(batch, place))[0]
            assert (answer - merged).abs().max() <= CLOSE

    def test_alone_is_computed_if_no_task_reads_another(self):
        model = bare("bert")
        bank = HeadBank(model)
        for name, tuned in several("bert").items():
            bank.add(name, tuned.delta)
        bank.add("headless", replace(several("bert")["a"].delta, task_head={}))
        assert self.tokens_at_the_end(bank, model, ["a", "b", "d"]) == 1
        assert self.tokens_at_the_end(bank, model, ["a", None, "d"]) == max(LENGTHS[:3])
        assert self.tokens_at_the_end(bank, model, ["a", "headless"]) == max(LENGTHS[:2])
        assert self.tokens_at_the_end(bank, model, [None, None]) == max(LENGTHS[:2])


class TestTaskHeads:
    """Task heads of one shape that read only the first token are multiplied together."""

    @staticmethod
    def calls(bank: HeadBank, names: list[str | None], monkeypatch: pytest.MonkeyPatch) -> int:
        """Count how often a batch runs transformers' code of task heads."""
        apply, calls = TaskLogits.apply, []

        def counted(self: TaskLogits, *args: object, **settings: object) -> Tensor:
            calls.append(self)
            return apply(self, *args, **settings)

        with monkeypatch.context() as patch:
            patch.setattr(TaskLogits, "apply", counted)
            bank.forward(tiny_batch("bert", lengths=LENGTHS[: len(names)]), names)
        return len(calls)

    def test_run_once_for_all_with_as_many_samples(self, monkeypatch: pytest.MonkeyPatch):
        heads = heads_of("bert", seed=0, per_layer=(1, 1, 1))
        tasks = {f"{n}": tune("bert", heads, seed=n, labels=2) for n in range(4)}
        bank = bank_of("bert", {**tasks, "c": several("bert")["c"]})
        assert self.calls(bank, ["0", "1", "2", "3"], monkeypatch) == 1
        assert self.calls(bank, ["0", None, "1", "0", "2", "1", "3"], monkeypatch) == 2
        assert self.calls(bank, ["0", "c", "1"], monkeypatch) == 2
        monkeypatch.setattr(mixed_batch, "_STACKED_BYTES", 1)
        assert self.calls(bank, ["0", "1", "2", "3"], monkeypatch) == 4

    @pytest.mark.parametrize("architecture", NAMES)
    @pytest.mark.parametrize("share", [1, 3])
    def test_answer_as_merged_models(self, architecture: str, share: int):
        heads = heads_of(architecture, seed=0, per_layer=(1, 1, 1))
        tasks = {f"{n}": tune(architecture, heads, seed=n, labels=3) for n in range(3)}
        bank = bank_of(architecture, tasks)
        names: list[str | None] = [*tasks] * share
        for more in ([], [None]):
            asked = names + more
            batch = tiny_batch(architecture, lengths=LENGTHS[: len(asked)])
            answers = bank.forward(batch, asked)
            for place, name in enumerate(names):
                merged = tasks[name].answer(row(batch, place))[0]
                assert answers[place].shape == merged.shape
                assert (answers[place] - merged).abs().max() <= CLOSE


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
        for module in model.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
        assert all(torch.equal(model.state_dict()[name], old) for name, old in before.items())

    def test_on_the_cpu_does_not_touch_cuda(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(torch.cuda, "stream", lambda _: pytest.fail("CUDA was initialised"))
        assert "a" in bank_of("bert", several("bert"))

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

    def test_a_batch_while_the_model_is_in_training_mode(self):
        model = bare("bert")
        bank = HeadBank(model)
        model.train()
        with pytest.raises(InvalidArgumentError, match="training mode"):
            bank.forward(tiny_batch("bert", lengths=(5,)), [None])

    def test_a_model_that_is_being_tuned(self):
        model = bare("bert")
        HeadTuner(model, HeadSelection.from_heads([HeadId(0, 0)], num_layers=LAYERS))
        with pytest.raises(TunerError):
            HeadBank(model.eval())

    def test_a_delta_of_another_backbone(self):
        bank = HeadBank(bare("bert"))
        other = tune("roberta", [HeadId(0, 0)], seed=0, labels=2)
        with pytest.raises(BackboneMismatchError, match="is 'roberta'; that of 'bert' is 'bert'"):
            bank.add("x", other.delta)
        assert len(bank) == 0

    def test_every_call_on_a_closed_bank(self):
        bank = HeadBank(bare("bert"))
        packed = bank.pack(several("bert")["a"].delta)
        bank.put("a", packed)
        bank.close()
        bank.close()  # a second time changes nothing
        for names in (["a"], [None]):
            with pytest.raises(BankClosedError):
                bank.forward(tiny_batch("bert", lengths=(5,)), names)
        with pytest.raises(BankClosedError):
            bank.put("a", packed)
        assert len(bank) == bank.nbytes == 0

    def test_a_delta_that_another_bank_has_packed(self):
        model = bare("bert")
        packed = HeadBank(model).pack(several("bert")["a"].delta)
        bank = HeadBank(model)
        with pytest.raises(InvalidArgumentError, match="this bank packed"):
            bank.put("x", packed)
        assert len(bank) == bank.nbytes == 0

    def test_an_unknown_task_head(self):
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
