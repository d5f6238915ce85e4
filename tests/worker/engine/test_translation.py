"""worker.engine.translation: every field of a job spec reaches ``finetune`` under its name."""

from __future__ import annotations

import argparse
import inspect
import json
from pathlib import Path

import pytest

from hifi import finetune
from hifi.data.settings import Hyperparameters, Scoring, Setting, declared
from hifi.data.spec import IfLabelled, TaskSpec
from service.cli import job_spec
from store.jobs.spec import HubDataset, JobSpec, spec_field
from tests.worker.scripted_engine import SELECTION
from worker.engine.messages import EngineEvent
from worker.engine.translation import (
    file_data,
    finetune_arguments,
    heads_document,
    hub_data,
    is_reported_step,
)

SPEC = {
    "model": "minilm",
    "dataset": "ds_1",
    "task": {"type": "classification", "text": ["a", "b"], "label": "y", "metric": "f1"},
    "k": 2,
    "xi": 0.8,
    "d": 0.7,
    "n_samples": 50,
    "strategy": "mid-top",
    "teleport": "information",
    "training": {
        "epochs": 5,
        "learning_rate": 1e-3,
        "batch_size": 8,
        "max_length": 64,
        "warmup_ratio": 0.1,
        "weight_decay": 0.02,
        "seed": 7,
        "precision": "float32",
        "early_stopping_patience": 2,
        "head_start": "random",
        "class_weights": {"no": 1.0, "yes": 3.0},
    },
}


def arguments() -> dict[str, object]:
    spec = JobSpec.model_validate(SPEC)
    splits = {"train": "t", "validation": "v", "test": "x"}
    data = file_data({split: Path(f"{name}.parquet") for split, name in splits.items()})
    return finetune_arguments(spec, data=data, model="/models/minilm", revision=None)


class TestArguments:
    def test_hold_every_field(self):
        given = arguments()
        task, training = SPEC["task"], SPEC["training"]
        assert given["task"] == TaskSpec(**task)
        assert {name: given[name] for name in training} == training
        assert (given["k"], given["xi"], given["damping"], given["n_samples"]) == (2, 0.8, 0.7, 50)
        assert (given["strategy"], given["teleport"]) == ("mid-top", "information")
        assert (given["train"], given["validation"]) == ("t.parquet", "v.parquet")
        assert given["test"] == IfLabelled("x.parquet")

    def test_a_uniform_teleport_needs_no_share(self):
        spec = JobSpec.model_validate({**SPEC, "teleport": "uniform"})
        given = finetune_arguments(spec, data={"train": "t"}, model="m", revision=None)
        assert (given["teleport"], given["xi"]) == ("uniform", None)

    def test_are_all_but_what_the_worker_adds(self):
        added = {"device", "checkpoint_dir", "checkpoint_seconds", "on_event", "backbones"}
        added |= {"state_places"}
        columns = {"text", "label", "image", "metric"}  # in the task
        filled = {"preset"}  # at admission
        known = set(inspect.signature(finetune).parameters) - added - columns - {"selection"}
        assert set(arguments()) == known - filled

    def test_may_leave_open_what_is_known_only_here(self):
        spec = JobSpec.model_validate({"model": "m", "dataset": "ds_1"})
        given = finetune_arguments(spec, data={"train": "t"}, model="m", revision=None)
        assert (given["epochs"], given["learning_rate"]) == (None, "auto")

    def test_without_further_splits_there_are_none(self):
        spec = JobSpec.model_validate(SPEC)
        data = file_data({"train": Path("t.parquet")})
        given = finetune_arguments(spec, data=data, model="m", revision=None)
        assert "validation" not in given
        assert "test" not in given

    def test_of_a_hub_data_set_name_it_for_all_splits(self):
        dataset = {"hub": "nyu-mll/glue", "config": "mrpc", "revision": "abc"}
        assert hub_data(HubDataset(**dataset)) == {
            "train": dataset,
            "validation": dataset,
            "test": dataset,
        }

    def test_every_argument_names_its_field(self):
        spec = JobSpec.model_validate(SPEC).model_dump(mode="json")
        for argument in {*arguments(), "text", "label"} - {"revision"}:
            field = spec_field(argument)
            assert field is not None
            value: object = spec
            for part in field.split("."):
                assert isinstance(value, dict)
                value = value[part]
        assert spec_field("device") is None


SETTINGS = [*declared(Scoring).values(), *declared(Hyperparameters).values()]


class TestSettings:
    @pytest.mark.parametrize("setting", SETTINGS, ids=[each.name for each in SETTINGS])
    def test_each_travels_from_the_command_line_to_finetune(self, setting: Setting):
        value: object = setting.choices[-1] if setting.choices else setting.type(7)
        if setting.name == "class_weights":
            value = {"no": 1.0, "yes": 2.5}
        if setting.type is float or setting.name == "learning_rate":
            value = 0.25
        parser = argparse.ArgumentParser()
        job_spec.add_arguments(parser)
        option = f"--{setting.name.replace('_', '-')}"
        args = parser.parse_args(
            ["--model", "m", "--dataset", "ds_1", option, json.dumps(value).strip('"')]
        )
        spec = JobSpec.model_validate_json(json.dumps(job_spec.build_spec(args)))
        given = finetune_arguments(spec, data={"train": "t"}, model="m", revision=None)
        assert given[setting.name] == value


class TestHeads:
    def test_are_shown_as_the_contract_says(self):
        short, whole = heads_document(SELECTION, job_id="job_1", model="minilm")
        assert short == {"heads": [[0, 1]], "trainable_parameters": 10, "fraction": 0.1}
        assert whole["layers"] == SELECTION["layers"]
        assert (whole["object"], whole["job"], whole["model"]) == ("job.heads", "job_1", "minilm")
        assert (whole["num_heads"], whole["head_dim"]) == (2, 4)

    def test_name_another_score_with_its_values(self):
        layers = [{**SELECTION["layers"][0], "values": [3.0, 5.0]}]
        changes = {"score": "gradient", "k": None, "budget": 1, "layers": layers}
        _, whole = heads_document({**SELECTION, **changes}, job_id="job_1", model="minilm")
        assert {name: whole[name] for name in changes} == changes


@pytest.mark.parametrize(("total", "told"), [(1, 1), (50, 50), (101, 52), (1000, 101), (7777, 101)])
def test_about_a_hundred_steps_are_reported(total: int, told: int):
    steps = [step for step in range(1, total + 1) if is_reported_step(_step(step, total))]
    assert len(steps) == told
    assert {1, total} <= set(steps)


def _step(step: int, total: int) -> EngineEvent:
    return EngineEvent(run="", kind="step", step=step, total_steps=total)
