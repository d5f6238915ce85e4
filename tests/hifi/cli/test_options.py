"""hifi.cli.options: the library's own choices and defaults."""

from __future__ import annotations

import argparse
import inspect
from typing import get_args

import pytest

from hifi.backbones.devices import Precision
from hifi.cli import options, select, tune
from hifi.deltas.metadata import COMPUTE_DTYPES, ENCODINGS
from hifi.errors import InvalidArgumentError
from hifi.selection.head_selection import STRATEGIES
from hifi.selection.pagerank import Teleport
from hifi.tasks import get_task
from hifi.training.finetuning import finetune


def parse(module, *more):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_args(["--model", "m", "--train", "t.csv", "--out", "o", *more])


class TestChoices:
    def test_are_those_of_the_library(self):
        assert options.STRATEGIES == STRATEGIES
        assert get_args(Teleport) == options.TELEPORTS
        assert get_args(Precision) == options.PRECISIONS
        assert options.ENCODINGS == ENCODINGS
        assert set(options.DTYPES) <= set(COMPUTE_DTYPES)

    def test_every_task_and_metric_can_be_named(self):
        tasks = [get_task(name).declaration for name in options.TASK_TYPES]
        assert set(options.METRICS) == {
            metric for task in tasks for metric in task.declaration.metrics
        }


class TestDefaults:
    def test_are_those_of_finetune(self):
        parameters = inspect.signature(finetune).parameters
        named = {*options.STEP_1, *options.STEP_2} - {"model"}
        args = parse(tune)
        assert {name: getattr(args, name) for name in named} == {
            name: parameters[name].default for name in named
        }

    def test_every_argument_of_finetune_can_be_given(self):
        parameters = set(inspect.signature(finetune).parameters)
        assert parameters - {"on_event", "backbones"} <= set(vars(parse(tune)))

    def test_options_and_finetune_share_their_names(self):
        shared = [*options.STEP_1, *options.STEP_2]
        # Made by tune itself, or for processes that run many jobs.
        others = {"train", "validation", "task", "selection", "on_event", "backbones"}
        assert len(shared) == len(set(shared))
        assert set(shared) == set(inspect.signature(finetune).parameters) - others

    def test_select_and_tune_agree(self):
        tuned, selected = vars(parse(tune)), vars(parse(select))
        assert selected.items() <= tuned.items()


class TestSplits:
    def test_files(self):
        args = parse(tune, "--validation", "v.csv")
        assert options.split_arguments(args) == {"train": "t.csv", "validation": "v.csv"}

    def test_no_validation(self):
        assert options.split_arguments(parse(tune)) == {"train": "t.csv", "validation": None}

    def test_both_splits_of_a_hub_data_set(self):
        parser = argparse.ArgumentParser()
        tune.add_arguments(parser)
        hub = ["--hub", "nyu-mll/glue", "--hub-config", "mrpc"]
        args = parser.parse_args(["--model", "m", "--out", "o", *hub])
        source = {"hub": "nyu-mll/glue", "config": "mrpc", "revision": None}
        assert options.split_arguments(args) == {"train": source, "validation": source}

    def test_a_hub_data_set_without_validation(self):
        parser = argparse.ArgumentParser()
        tune.add_arguments(parser)
        hub = ["--hub", "a/b", "--validation", "none"]
        splits = options.split_arguments(parser.parse_args(["--model", "m", "--out", "o", *hub]))
        assert splits["train"]["hub"] == "a/b"
        assert splits["validation"] is None

    def test_no_validation_can_be_said_of_files_too(self):
        assert options.split_arguments(parse(tune, "--validation", "none"))["validation"] is None

    @pytest.mark.parametrize("module", [select, tune])
    @pytest.mark.parametrize("name", ["hub_config", "hub_revision"])
    def test_what_is_said_of_a_hub_data_set_is_refused_for_files(self, module, name):
        args = parse(module, f"--{name.replace('_', '-')}", "x")
        with pytest.raises(InvalidArgumentError, match=f"{name}='x'.*only with --hub"):
            options.split_arguments(args)

    @pytest.mark.parametrize("more", [["--hub", "a/b"], ["--task", "tasks"], ["--metric", "bleu"]])
    def test_what_makes_no_sense_is_refused(self, more, capsys):
        with pytest.raises(SystemExit):
            parse(tune, *more)
        assert "error: argument" in capsys.readouterr().err
