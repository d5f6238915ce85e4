"""benchmarks.paper.rivals.environments: pins, and environments that are made once."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.paper.methods import METHODS
from benchmarks.paper.rivals.environments import (
    NAMES,
    VARIABLE,
    RivalEnvironmentError,
    interpreter,
    is_made,
    main,
    make,
    parse,
    requirements,
)

PIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][0-9a-z.]*")
PLACE = "benchmarks.paper.rivals.environments"


class TestRequirements:
    @pytest.mark.parametrize("name", NAMES)
    def test_are_exact_and_each_once(self, name: str):
        lines = [line for line in requirements(name).split("\n") if line and line[0] != "#"]
        assert [line for line in lines if not PIN.fullmatch(line)] == []
        packages = [line.partition("==")[0].lower() for line in lines]
        assert len(packages) == len(set(packages))
        assert {name, "transformers", "safetensors"} < set(packages)

    @pytest.mark.parametrize("name", NAMES)
    def test_torch_is_the_projects_without_its_build(self, name: str):
        assert requirements(name).endswith(f"\ntorch=={torch.__version__.split('+')[0]}\n")

    def test_every_method_has_an_environment_that_can_be_made(self):
        wanted = {method.environment for method in METHODS.values()} - {None}
        assert wanted == set(NAMES)


class TestInterpreter:
    def test_of_a_made_environment(self, stand_in: Callable[..., None], rivals_folder: Path):
        stand_in("setfit")
        assert interpreter("setfit") == rivals_folder / "setfit" / "bin" / "python"

    def test_without_a_folder_the_error_says_how_to_make_it(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.delenv(VARIABLE, raising=False)
        with pytest.raises(RivalEnvironmentError) as raised:
            interpreter("adapters")
        assert str(raised.value) == (
            "adapters needs its own environment and HIFI_RIVALS is not set; "
            "run python -m benchmarks.paper.rivals.environments adapters --folder DIR, "
            "then set HIFI_RIVALS=DIR"
        )

    def test_is_found_from_any_folder(
        self,
        stand_in: Callable[..., None],
        rivals_folder: Path,
        monkeypatch: pytest.MonkeyPatch,
    ):
        stand_in("setfit")
        monkeypatch.chdir(rivals_folder.parent)
        monkeypatch.setenv(VARIABLE, rivals_folder.name)
        assert interpreter("setfit") == rivals_folder / "setfit" / "bin" / "python"

    def test_of_another_environment_is_missing(
        self, stand_in: Callable[..., None], rivals_folder: Path
    ):
        stand_in("setfit")
        with pytest.raises(RivalEnvironmentError, match=f"adapters --folder {rivals_folder}$"):
            interpreter("adapters")

    def test_of_other_pins_is_missing(self, stand_in: Callable[..., None], rivals_folder: Path):
        stand_in("setfit")
        (rivals_folder / "setfit" / "installed.txt").write_text("setfit==0.1\n", encoding="utf-8")
        with pytest.raises(RivalEnvironmentError, match="has none of these pins"):
            interpreter("setfit")


class TestMake:
    def test_one_that_is_made_starts_no_process(
        self, stand_in: Callable[..., None], rivals_folder: Path, capsys
    ):
        stand_in("setfit")
        assert main(["setfit", "--folder", str(rivals_folder)]) == 0
        assert capsys.readouterr().out == f"setfit: {rivals_folder / 'setfit'}\n"

    def test_a_folder_of_something_else_is_left_alone(self, rivals_folder: Path, capsys):
        (rivals_folder / "setfit").mkdir()
        (rivals_folder / "setfit" / "thesis.txt").write_text("years", encoding="utf-8")
        assert main(["setfit", "--folder", str(rivals_folder)]) == 2
        assert "setfit exists and is no virtual environment" in capsys.readouterr().err
        assert (rivals_folder / "setfit" / "thesis.txt").read_text(encoding="utf-8") == "years"

    @pytest.mark.process
    def test_makes_an_environment_and_again_of_other_pins(
        self, rivals_folder: Path, monkeypatch: pytest.MonkeyPatch
    ):
        for pins in ("# nothing\n", "# nothing, in other words\n"):
            monkeypatch.setattr(f"{PLACE}.requirements", lambda _name, pins=pins: pins)
            assert not is_made("setfit", folder=rivals_folder)
            make("setfit", folder=rivals_folder)
            assert is_made("setfit", folder=rivals_folder)
            asked = "import sys; print(sys.prefix)"
            found = subprocess.check_output([interpreter("setfit"), "-c", asked], text=True)
            assert Path(found.strip()) == rivals_folder / "setfit"

    @pytest.mark.process
    def test_what_cannot_be_installed_is_an_error_and_not_made(
        self, rivals_folder: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(f"{PLACE}.requirements", lambda _name: "no requirement at all\n")
        with pytest.raises(RivalEnvironmentError, match=r"pip install .* has ended with status 1"):
            make("setfit", folder=rivals_folder)
        assert not is_made("setfit", folder=rivals_folder)


class TestParse:
    def test_unknown_names_are_refused(self, capsys):
        with pytest.raises(SystemExit):
            parse(["peft", "--folder", "x"])
        assert "'peft' is none of adapters, setfit" in capsys.readouterr().err

    def test_the_folder_comes_from_the_environment(self, rivals_folder: Path):
        assert parse([]).folder == rivals_folder

    def test_without_one_it_is_required(self, monkeypatch: pytest.MonkeyPatch, capsys):
        monkeypatch.delenv(VARIABLE, raising=False)
        with pytest.raises(SystemExit):
            parse([])
        assert "--folder" in capsys.readouterr().err
