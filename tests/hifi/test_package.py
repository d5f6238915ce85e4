"""The package as users see it: names, lazy import, version, wheel, and allowed imports."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import pkgutil
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import hifi
from tests.root import ROOT

EXPORTS = {
    "Control",
    "FinetuneResult",
    "FrozenPrefix",
    "HeadBank",
    "HeadDelta",
    "HeadId",
    "HeadSelection",
    "HeadTuner",
    "HifiError",
    "StatePlaces",
    "TrainingEvent",
    "finetune",
    "resolve_model",
    "select_heads",
}


def run_python(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class TestLazyImport:
    @pytest.mark.process
    def test_naming_hifi_imports_no_heavy_package(self):
        code = "import sys, hifi; dir(hifi); hifi.__version__; print(*sorted(sys.modules))"
        loaded = set(run_python(code).split())
        assert loaded.isdisjoint(
            {"torch", "transformers", "datasets", "numpy", "rich", "matplotlib"}
        )

    @pytest.mark.process
    def test_errors_are_caught_without_torch(self):
        code = "import sys; from hifi import HifiError; print('torch' in sys.modules)"
        assert run_python(code) == "False"

    def test_every_export_is_named(self):
        assert set(hifi.__all__) == EXPORTS | {"__version__"}
        assert set(dir(hifi)) >= EXPORTS

    @pytest.mark.parametrize("name", sorted(EXPORTS))
    def test_an_export_is_the_object_that_its_module_defines(self, name):
        exported = getattr(hifi, name)
        assert exported.__name__ == name
        assert getattr(importlib.import_module(exported.__module__), name) is exported

    @pytest.mark.process
    def test_importing_a_module_hides_no_export(self):
        modules = {module.name for module in pkgutil.iter_modules(hifi.__path__)}
        assert modules.isdisjoint(EXPORTS)
        assert (
            run_python("import hifi.training.finetuning; print(callable(hifi.finetune))") == "True"
        )

    def test_an_unknown_name_is_an_attribute_error(self):
        with pytest.raises(AttributeError, match="module 'hifi' has no attribute 'select_haeds'"):
            _ = hifi.select_haeds

    def test_has_a_docstring_for_help(self):
        assert inspect.getdoc(hifi)


class TestDistribution:
    def test_version_is_the_installed_one(self):
        assert hifi.__version__ == importlib.metadata.version("hifi")

    def test_the_command_is_installed(self):
        (command,) = importlib.metadata.entry_points(group="console_scripts", name="hifi")
        assert callable(command.load())

    @pytest.mark.process
    def test_the_wheel_ships_the_product_alone(self, tmp_path):
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        (wheel,) = tmp_path.glob("*.whl")
        names = zipfile.ZipFile(wheel).namelist()
        info = f"hifi-{hifi.__version__}.dist-info"
        packages = {"hifi", "migrations", "service", "store", "worker"}
        assert {name.split("/")[0] for name in names} == {*packages, info}
        assert {
            "hifi/py.typed",
            "migrations/versions/0001_first_tables.py",
            "service/static/index.html",
            f"{info}/licenses/LICENSE",
        } <= set(names)

    def test_every_installed_package_is_pinned(self):
        lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        pins = dict(line.split("==") for line in lines if not line.startswith("#"))
        pins = {canonical(name): version for name, version in pins.items()}
        for package in importlib.metadata.distributions():
            name = canonical(package.name)
            # pip comes with the interpreter; torch pins the CUDA packages that it brings itself.
            if name not in {"hifi", "pip", "triton"} and not name.startswith(("cuda-", "nvidia-")):
                assert pins.get(name) == package.version.partition("+")[0], name


def canonical(name: str) -> str:
    """Return a package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


class TestImports:
    @pytest.mark.process
    def test_the_contracts_hold(self):
        command = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
        assert command, "lint-imports is not installed beside this interpreter"
        done = subprocess.run(
            [command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout

    def test_every_module_has_its_layer(self):
        settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        layers = settings.rpartition("layers = [")[2].partition("]")[0]
        modules = {module.name for module in pkgutil.iter_modules(hifi.__path__)}
        assert modules <= set(re.findall(r"\w+", layers))
