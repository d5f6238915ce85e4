"""hifi.cli.options: the library's own choices and defaults."""

from __future__ import annotations

import argparse
import inspect

import pytest

from hifi.cli import options, select, tune
from hifi.data.settings import Hyperparameters, Scoring, declared
from hifi.data.spec import IfLabelled
from hifi.deltas.metadata import COMPUTE_DTYPES
from hifi.errors import InvalidArgumentError
from hifi.training.finetuning import finetune


def parse(module, *more):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_args(["--model", "m", "--train", "t.csv", "--out", "o", *more])


class TestChoices:
    def test_a_model_can_be_merged_in_every_dtype(self):
        assert options.DTYPES == ("float32", "bfloat16")
        assert set(options.DTYPES) <= set(COMPUTE_DTYPES)


class TestSettings:
    def test_one_that_is_omitted_gets_finetunes_default(self):
        args, names = parse(tune), (*declared(Scoring), *declared(Hyperparameters))
        assert options.given(args, names) == {}

    def test_every_argument_of_finetune_can_be_given(self):
        parameters = set(inspect.signature(finetune).parameters)
        assert parameters - {"on_event", "backbones", "state_places"} <= set(vars(parse(tune)))

    def test_select_and_tune_agree(self):
        tuned, selected = vars(parse(tune)), vars(parse(select))
        assert selected.items() <= tuned.items()

    def test_each_is_parsed_as_its_declared_type(self):
        more = ["--k", "2", "--ξ", "0.5", "-d", "0.3", "--learning-rate", "1e-3"]
        args = parse(tune, *more, "--precision", "float32")
        assert options.given(args, vars(args)).items() >= {
            *{"k": 2, "xi": 0.5, "damping": 0.3, "learning_rate": 1e-3}.items(),
            ("precision", "float32"),
        }

    def test_help_shows_default_and_choices(self, capsys):
        with pytest.raises(SystemExit):
            parse(tune, "--help")
        told = " ".join(capsys.readouterr().out.split())
        assert "seconds of running (default: none; for a job, the server's limit)" in told
        for words in (
            *("(default: 0.85)", "(default: 300, or all", "{layer-wise,mid-top,budget}"),
            *("--preset {paper}", "--learning-rate X", "(default: 3, or enough for"),
        ):
            assert words in told

    @pytest.mark.parametrize("module", [select, tune])
    def test_a_preset_is_one_of_those_that_exist(self, module, capsys):
        assert parse(module, "--preset", "paper").preset == "paper"
        with pytest.raises(SystemExit):
            parse(module, "--preset", "papers")
        assert "--preset: invalid choice: 'papers'" in capsys.readouterr().err

    @pytest.mark.parametrize(("text", "rate"), [("auto", "auto"), ("3e-4", 3e-4), ("2", 2.0)])
    def test_a_learning_rate_is_a_number_or_auto(self, text: str, rate: object):
        given = options.given(parse(tune, "--learning-rate", text), declared(Hyperparameters))
        assert Hyperparameters(**given).learning_rate == rate

    @pytest.mark.parametrize("text", ["fast", "0", "-1", "nan", "inf", ""])
    def test_another_learning_rate_is_left_to_the_check(self, text: str):
        given = options.given(parse(tune, f"--learning-rate={text}"), declared(Hyperparameters))
        with pytest.raises(InvalidArgumentError, match="a number above 0, or 'auto'") as caught:
            Hyperparameters(**given)
        assert caught.value.param == "learning_rate"


class TestSplits:
    def test_files(self):
        args = parse(tune, "--validation", "v.csv", "--test", "x.csv")
        assert options.split_arguments(args) == {
            "train": "t.csv",
            "validation": "v.csv",
            "test": "x.csv",
        }

    def test_training_alone(self):
        alone = {"train": "t.csv", "validation": None, "test": None}
        assert options.split_arguments(parse(tune)) == alone
        assert options.split_arguments(parse(tune, "--test", "none")) == alone
        assert options.split_arguments(parse(select)) == {"train": "t.csv"}

    def test_all_splits_of_a_hub_data_set(self):
        parser = argparse.ArgumentParser()
        tune.add_arguments(parser)
        hub = ["--hub", "nyu-mll/glue", "--hub-config", "mrpc"]
        args = parser.parse_args(["--model", "m", "--out", "o", *hub])
        source = {"hub": "nyu-mll/glue", "config": "mrpc", "revision": None}
        assert options.split_arguments(args) == {
            "train": source,
            "validation": source,
            "test": IfLabelled(source),
        }

    def test_a_hub_data_set_without_validation(self):
        parser = argparse.ArgumentParser()
        tune.add_arguments(parser)
        hub = ["--hub", "a/b", "--validation", "none", "--test", "none"]
        splits = options.split_arguments(parser.parse_args(["--model", "m", "--out", "o", *hub]))
        assert splits["train"]["hub"] == "a/b"
        assert (splits["validation"], splits["test"]) == (None, None)

    def test_no_validation_works_for_files_too(self):
        assert options.split_arguments(parse(tune, "--validation", "none"))["validation"] is None

    @pytest.mark.parametrize("module", [select, tune])
    @pytest.mark.parametrize("name", ["hub_config", "hub_revision"])
    def test_hub_data_set_options_are_refused_for_files(self, module, name):
        args = parse(module, f"--{name.replace('_', '-')}", "x")
        with pytest.raises(InvalidArgumentError, match=f"{name}='x'.*only with --hub"):
            options.split_arguments(args)

    @pytest.mark.parametrize("more", [["--hub", "a/b"], ["--task", "tasks"], ["--metric", "bleu"]])
    def test_contradictory_options_are_refused(self, more, capsys):
        with pytest.raises(SystemExit):
            parse(tune, *more)
        assert "error: argument" in capsys.readouterr().err
