"""benchmarks.paper.cells: what is run, and in which order."""

from __future__ import annotations

import pytest

from benchmarks.paper.cells import Cell, Request, best_rate, ready_cells
from benchmarks.paper.methods import METHODS
from hifi.errors import InvalidArgumentError
from tests.benchmarks.paper.tiny import cell, line


def cells(**changes) -> list[Cell]:
    settings = {
        "backbone": "tiny-bert",
        "tasks": ["cola"],
        "methods": ["full"],
        "seeds": [0],
        "shots": ["full"],
        "head_starts": ["own"],
        "rates": "usual",
        "most_rows": 100,
        "epochs": 3,
        "least_steps": 10,
        "max_length": 16,
    }
    return Request(**{**settings, **changes}).cells()


class TestRequest:
    def test_every_combination_is_one_cell(self):
        found = cells(tasks=["cola", "rte"], methods=["full", "probe"], seeds=[0, 1])
        assert len(found) == len(set(found)) == 8

    def test_the_own_head_start_is_the_methods_usual_one(self):
        assert cells(head_starts=["own", "random"]) == cells(head_starts=["random"])
        assert [each.head_start for each in cells(head_starts=["own", "probe"])] == [
            "random",
            "probe",
        ]

    def test_a_cap_belongs_to_full_alone(self):
        assert [each.most_rows for each in cells(shots=["full", "64"])] == [100, None]

    def test_the_usual_rate_is_part_of_the_cell(self):
        (usual,) = cells()
        assert (usual.rates, usual.rate) == ("usual", METHODS["full"].usual_rate)

    def test_a_given_rate_is_used(self):
        (given,) = cells(rates="0.002")
        assert (given.rates, given.rate) == ("given", 0.002)

    def test_auto_leaves_rate_and_epochs_to_the_library(self):
        (auto,) = cells(methods=["hifi"], rates="auto")
        assert (auto.rate, auto.epochs, auto.least_steps) == (None, None, None)

    def test_a_probe_has_no_rate_whatever_is_asked(self):
        assert cells(methods=["probe"], rates="search") == cells(methods=["probe"], rates="usual")

    def test_setfit_is_for_few_rows_with_classes(self):
        found = cells(methods=["setfit"], tasks=["cola", "rte"], shots=["16", "64"])
        assert {(each.rates, each.rate, each.epochs) for each in found} == {("none", None, None)}
        assert len(found) == 4

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"tasks": ["glue"]}, "tasks='glue' is not allowed: one of cola, sst2"),
            ({"methods": ["lora"]}, "methods='lora' is not allowed: one of probe, full"),
            ({"shots": ["3"]}, "shots='3' is not allowed"),
            ({"shots": ["16"], "tasks": ["stsb"]}, "not with stsb, which has no classes"),
            ({"methods": ["setfit"]}, "'setfit' is not allowed: not with cola and shots=full"),
            ({"methods": ["setfit"], "shots": ["64"], "tasks": ["stsb"]}, "not with stsb and"),
            ({"head_starts": ["keep"]}, "full starts from random or probe"),
            ({"rates": "auto"}, "full has no defaults of its own"),
            ({"rates": "best"}, "search, usual, auto or a number above 0"),
            ({"rates": "2"}, "a number above 0 and at most 1"),
            ({"rates": "nan"}, "a number above 0 and at most 1"),
        ],
    )
    def test_what_does_not_go_together_is_refused(self, changes: dict, message: str):
        with pytest.raises(InvalidArgumentError, match=message):
            cells(**changes)


class TestSearch:
    def test_every_method_tries_as_many_rates(self):
        with_rates = [each for each in METHODS.values() if each.usual_rate is not None]
        assert {len(each.trial_rates) for each in with_rates} == {5}
        for each in with_rates:
            assert each.trial_rates[2] == each.usual_rate
            assert each.trial_rates[-1] == pytest.approx(16 * each.trial_rates[0])

    def test_seeds_share_their_trials(self):
        first, second = cells(rates="search", seeds=[0, 1])
        assert first.trials == second.trials
        assert {each.seed for each in first.trials} == {0}

    def test_a_run_waits_for_its_trials_and_takes_the_best_rate(self):
        run = cell(rates="search", rate=None, seed=2)
        rates = [trial.rate for trial in run.trials]
        assert list(ready_cells([run], {})) == list(zip(run.trials, rates, strict=True))
        finished = {
            trial: line(value, kind="trial", rate=trial.rate)
            for trial, value in zip(run.trials, (0.1, 0.2, 0.5, 0.4, None), strict=True)
        }
        assert list(ready_cells([run], finished)) == [(run, rates[2])]
        assert list(ready_cells([run], {**finished, run: line(0.5)})) == []
        del finished[run.trials[3]]
        assert list(ready_cells([run], finished)) == [(run.trials[3], rates[3])]

    def test_equal_trials_are_ordered_by_loss_and_then_by_the_smaller_rate(self):
        trials = [line(0.5, rate=rate) for rate in (0.1, 0.2, 0.3)]
        assert best_rate(trials) == 0.1
        trials[2]["validation"] = {"loss": 0.5}
        assert best_rate(trials) == 0.3

    def test_diverged_trials_come_last(self):
        assert best_rate([line(None, rate=0.1), line(-0.5, rate=0.2)]) == 0.2


class TestCell:
    def test_a_line_has_its_cell(self):
        assert Cell.of(line(0.5, seed=3)) == cell(seed=3)

    def test_equal_cells_have_equal_keys(self):
        assert cell().key == cell().key != cell(seed=1).key
