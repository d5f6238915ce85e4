"""hifi.serving.fan_out and HeadBank.fan_out: shared layers, and answers as without sharing."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from hifi.errors import BankClosedError, InvalidArgumentError
from hifi.serving.fan_out import plan_fan_out
from tests.architectures import LAYERS, NAMES, tiny_batch
from tests.tuned_tasks import CLOSE, Tuned, bank_of, bare, heads_of, row, tune

LENGTHS = (9, 5, 12, 3)
# Where each task's heads are, by layer; "head" only has a task head.
ALLOTMENTS = {"whole": (1, 1, 1), "upper": (0, 2, 1), "last": (0, 0, 2), "more": (0, 0, 2)}


def tasks_of(architecture: str) -> dict[str, Tuned]:
    assert LAYERS == 3
    return {
        name: tune(
            architecture,
            heads_of(architecture, seed=seed, per_layer=per_layer),
            seed=seed,
            labels=2 + seed % 2,
        )
        for seed, (name, per_layer) in enumerate(ALLOTMENTS.items())
    }


class Task:
    """A stand-in for a task in the bank, with tuned rows in these layers."""

    def __init__(self, *layers: int) -> None:
        self.places = type("Places", (), {"layers": dict.fromkeys(layers)})()


def plan(rows: list[int], tasks: list[Any]) -> Any:
    return plan_fan_out(rows, tasks)


class TestPlan:
    def test_of_different_rows_is_one_stage(self):
        tasks = [Task(0), Task(0, 1), None]
        found = plan([0, 1, 2], tasks)
        [stage] = found.stages
        assert (stage.first, stage.end, stage.rows, stage.parents) == (0, None, (0, 1, 2), ())
        assert (stage.tasks, found.samples) == (tuple(tasks), (0, 1, 2))

    def test_shares_a_row_up_to_the_first_layer_that_a_task_changes(self):
        upper, last = Task(1, 2), Task(2)
        found = plan([0, 0, 0], [upper, last, last])
        assert [(stage.first, stage.end) for stage in found.stages] == [(0, 1), (1, 2), (2, None)]
        assert [len(stage.rows) for stage in found.stages] == [1, 2, 3]
        second, third = found.stages[1:]
        assert (second.tasks, second.parents) == ((upper, None), (0, 0))
        assert (third.tasks, third.parents) == ((upper, last, last), (0, 1, 1))
        assert found.samples == (0, 1, 2)

    def test_tasks_that_change_no_layer_share_all_of_them(self):
        found = plan([0, 0, 0], [None, Task(), Task(2)])
        assert [len(stage.rows) for stage in found.stages] == [1, 2]
        assert found.samples == (0, 0, 1)

    def test_does_not_share_between_rows(self):
        found = plan([0, 0, 1, 1], [Task(1)] * 4)
        assert [len(stage.rows) for stage in found.stages] == [2, 4]
        assert found.stages[1].parents == (0, 0, 1, 1)


class TestAnswers:
    @pytest.mark.parametrize("architecture", NAMES)
    def test_are_those_of_the_merged_models(self, architecture: str):
        tasks = tasks_of(architecture)
        bank = bank_of(architecture, tasks)
        batch = tiny_batch(architecture, lengths=LENGTHS)
        names: list[list[str | None]] = [
            ["last", "whole", "more", "upper"],
            [None, "upper"],
            ["more", None, "more"],
            ["last"],
        ]
        with torch.no_grad():
            hidden = bare(architecture)(**batch).last_hidden_state
        for place, (wanted, answers) in enumerate(
            zip(names, bank.fan_out(batch, names), strict=True)
        ):
            for name, answer in zip(wanted, answers, strict=True):
                expected = hidden[place]
                if name is not None:
                    expected = tasks[name].answer(row(batch, place))[0]
                assert answer.shape == expected.shape
                assert (answer - expected).abs().max() <= CLOSE

    def test_run_shared_layers_once(self):
        bank = bank_of("bert", tasks_of("bert"))
        rows: Counter[int] = Counter()
        for layer, module in enumerate(bank._model.encoder.layer):
            module.attention.self.query.register_forward_pre_hook(
                lambda _, arguments, layer=layer: rows.update({layer: len(arguments[0])})
            )
        bank.fan_out(tiny_batch("bert", lengths=(9, 5)), [["last", "more", "upper"]] * 2)
        assert rows == {0: 2, 1: 4, 2: 6}

    def test_leave_the_bank_as_it_was(self):
        tasks = tasks_of("bert")
        bank = bank_of("bert", tasks)
        batch = tiny_batch("bert", lengths=LENGTHS)
        before = bank.forward(batch, list(tasks))
        bank.fan_out(batch, [list(tasks)] * len(LENGTHS))
        after = bank.forward(batch, list(tasks))
        assert all(one.equal(two) for one, two in zip(before, after, strict=True))


class TestBadInput:
    @pytest.mark.parametrize("names", [[], [["last"]], [["last"], []], [["last"]] * 3])
    def test_another_number_of_samples_is_refused(self, names: list[list[str]]):
        bank = bank_of("bert", tasks_of("bert"))
        with pytest.raises(InvalidArgumentError, match="some for each of the batch's 2 samples"):
            bank.fan_out(tiny_batch("bert", lengths=(3, 4)), names)

    def test_an_unknown_name_is_refused(self):
        bank = bank_of("bert", tasks_of("bert"))
        with pytest.raises(InvalidArgumentError, match="'gone'"):
            bank.fan_out(tiny_batch("bert", lengths=(3,)), [["last", "gone"]])

    def test_a_closed_bank_refuses(self):
        bank = bank_of("bert", tasks_of("bert"))
        bank.close()
        with pytest.raises(BankClosedError):
            bank.fan_out(tiny_batch("bert", lengths=(3,)), [["last"]])
