"""The command ``hifi``: cheap help, one line per error, and commands of other packages."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import types
import warnings

import pytest

import hifi
from hifi import cli
from hifi.cli import main
from hifi.errors import AmbiguousTaskError, InvalidArgumentError, StorageError
from tests.root import ROOT

COMMANDS = ("select", "tune", "merge", "inspect", "export-lora", "demo")
SERVICE_COMMANDS = (
    "serve",
    "migrate",
    "worker",
    "infer",
    "datasets",
    "models",
    "jobs",
    "predictions",
    "tenants",
)
# What a library-only installation lacks.
EXTRA_PACKAGES = ("alembic", "celery", "fastapi", "httpx2", "pydantic", "sqlalchemy", "structlog")


def fake_command(monkeypatch, run, *, name="fake"):
    """Pretend that an installed package adds a command."""
    module = types.ModuleType("fake_commands")
    module.add_arguments = lambda parser: parser.add_argument("--n-samples", type=int, default=1)
    module.run = run
    monkeypatch.setitem(sys.modules, "fake_commands", module)
    entry = importlib.metadata.EntryPoint(name, "fake_commands", cli.ENTRY_POINT_GROUP)
    monkeypatch.setattr(cli, "entry_points", lambda *, group: [entry] * (group == entry.group))


def succeed(_):
    return 0


@pytest.mark.process
class TestLazyImport:
    @pytest.mark.parametrize(
        "arguments",
        [
            ["--help"],
            ["--version"],
            ["no-such-command"],
            ["tune", "--help"],
            ["tune", "--k", "three"],
            ["select", "--strategy", "best", "--model", "m", "--train", "t"],
            ["merge"],
            ["inspect", "--help"],
            ["export-lora", "--delta"],
            ["demo", "--help"],
        ],
    )
    def test_help_version_and_usage_errors_import_no_torch(self, arguments):
        code = (
            "import sys; from hifi.cli import main; main(sys.argv[1:]); "
            "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'matplotlib'}; "
            "sys.exit(bool(heavy & set(sys.modules)))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def test_refuses_an_output_that_cannot_be_written_before_importing_torch(self, tmp_path):
        out = tmp_path / "missing" / "delta.safetensors"
        code = (
            "import sys; from hifi.cli import main; assert main(sys.argv[1:]) == 1; "
            "sys.exit('torch' in sys.modules)"
        )
        command = ["tune", "--model", "m", "--train", "t.jsonl", "--out", str(out)]
        done = subprocess.run(
            [sys.executable, "-c", code, *command], cwd=ROOT, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert b"does not exist" in done.stderr


class TestMain:
    def test_help_lists_every_command(self, capsys):
        assert main(["--help"]) == 0
        out = capsys.readouterr().out
        assert all(f"\n    {command}" in out for command in COMMANDS)

    def test_version(self, capsys):
        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"hifi {hifi.__version__}\n"

    @pytest.mark.parametrize("arguments", [[], ["no-such"], ["tune"], ["inspect", "a", "b"]])
    def test_usage_errors_exit_with_2(self, arguments, capsys):
        assert main(arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("hifi: error: ")
        assert captured.err.endswith("--help`\n")
        assert captured.err.count("\n") == 1

    def test_arguments_come_from_the_process_by_default(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["hifi", "--version"])
        assert main() == 0
        assert capsys.readouterr().out.startswith("hifi ")

    @pytest.mark.process
    def test_runs_as_a_module(self):
        done = subprocess.run(
            [sys.executable, "-m", "hifi.cli", "--version"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, f"hifi {hifi.__version__}\n")


class TestErrors:
    def run_raising(self, monkeypatch, error):
        def run(_):
            raise error

        fake_command(monkeypatch, run)
        return main(["fake"])

    def test_a_hifi_error_is_one_line_on_stderr(self, monkeypatch, capsys):
        assert self.run_raising(monkeypatch, StorageError("cannot write x:\n  no space")) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err == "hifi: error: cannot write x: no space\n"

    def test_an_ambiguous_task_names_the_option_to_set(self, monkeypatch, capsys):
        error = AmbiguousTaskError("2 columns could be the label", param="label")
        assert self.run_raising(monkeypatch, error) == 1
        expected = "train: 2 columns could be the label; choose with --label"
        assert capsys.readouterr().err == f"hifi: error: {expected}\n"

    def test_a_refused_argument_names_its_option(self, monkeypatch, capsys):
        error = InvalidArgumentError("n_samples", value=9, limit="at most the 4 samples")
        assert self.run_raising(monkeypatch, error) == 1
        expected = "n_samples=9 is not allowed: at most the 4 samples (change --n-samples)"
        assert capsys.readouterr().err == f"hifi: error: {expected}\n"

    def test_an_error_in_a_file_names_the_files_option(self, monkeypatch, capsys):
        error = InvalidArgumentError("n_samples.layers[1].selected", value=[9], limit="heads 0..3")
        assert self.run_raising(monkeypatch, error) == 1
        assert capsys.readouterr().err.endswith("(change --n-samples)\n")
        error = InvalidArgumentError("task.n_samples", value=9, limit="at most the 4 samples")
        assert self.run_raising(monkeypatch, error) == 1
        assert "change" not in capsys.readouterr().err

    def test_a_refused_value_that_is_no_option_names_none(self, monkeypatch, capsys):
        error = InvalidArgumentError("batches", value="none", limit="at least one")
        assert self.run_raising(monkeypatch, error) == 1
        assert "change" not in capsys.readouterr().err

    def test_an_unexpected_error_is_one_line_with_a_hint(self, monkeypatch, capsys):
        monkeypatch.delenv("HIFI_DEBUG", raising=False)
        assert self.run_raising(monkeypatch, KeyError("thing")) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "unexpected KeyError: 'thing'" in err
        assert "HIFI_DEBUG=1" in err

    def test_running_out_of_memory_says_what_to_do(self, monkeypatch, capsys):
        assert self.run_raising(monkeypatch, RuntimeError("CUDA out of memory. Tried …")) == 1
        assert "smaller --batch-size" in capsys.readouterr().err

    def test_debugging_keeps_the_traceback(self, monkeypatch):
        monkeypatch.setenv("HIFI_DEBUG", "1")
        with pytest.raises(KeyError):
            self.run_raising(monkeypatch, KeyError("thing"))

    def test_ctrl_c_exits_with_130(self, monkeypatch, capsys):
        assert self.run_raising(monkeypatch, KeyboardInterrupt()) == 130
        assert "interrupted" in capsys.readouterr().err

    def test_warnings_are_plain_lines(self, monkeypatch, capsys):
        def run(_):
            warnings.warn("mind the gap", UserWarning, stacklevel=1)
            return 0

        fake_command(monkeypatch, run)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            assert main(["fake"]) == 0
        assert capsys.readouterr().err == "hifi: warning: mind the gap\n"

    @pytest.mark.process
    def test_a_closed_pipe_is_no_traceback(self):
        code = (
            "import importlib.metadata, sys, types; from hifi import cli; "
            "module = sys.modules['printing'] = types.ModuleType('printing'); "
            "module.add_arguments = lambda parser: None; "
            "module.run = lambda args: print('much') or 0; "
            "entry = importlib.metadata.EntryPoint('fake', 'printing', cli.ENTRY_POINT_GROUP); "
            "cli.entry_points = lambda group: [entry]; "
            "sys.exit(cli.main(['fake']))"
        )
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing, "wb") as closed:
            done = subprocess.run(
                [sys.executable, "-c", code],
                cwd=ROOT,
                stdout=closed,
                stderr=subprocess.PIPE,
                check=False,
            )
        assert (done.returncode, done.stderr) == (1, b"")


class TestServiceCommands:
    def test_are_listed_with_their_summaries(self, capsys):
        assert main(["--help"]) == 0
        out = capsys.readouterr().out
        assert set(cli.EXTRA_COMMANDS) == set(SERVICE_COMMANDS)
        for name in SERVICE_COMMANDS:
            assert re.search(rf"\n    {name}\s", out)  # the text of a long name is below it
        assert "run the whole service here" in out
        assert "from the package hifi" not in out

    def test_stand_in_the_order_of_our_table_before_those_of_others(self, monkeypatch, capsys):
        own = importlib.metadata.entry_points(group=cli.ENTRY_POINT_GROUP)
        other = importlib.metadata.EntryPoint("abc", "fake_commands", cli.ENTRY_POINT_GROUP)
        monkeypatch.setattr(cli, "entry_points", lambda *, group: [other, *own])  # noqa: ARG005
        assert main(["--help"]) == 0
        out = capsys.readouterr().out
        listed = [line.split()[0] for line in out.splitlines() if re.match(r" {4}\w", line)]
        places = [listed.index(name) for name in (*COMMANDS[:4], *SERVICE_COMMANDS, "abc")]
        assert places == sorted(places)
        assert "from fake_commands" in out

    def test_another_package_cannot_replace_them(self, monkeypatch, capsys):
        own = importlib.metadata.entry_points(group=cli.ENTRY_POINT_GROUP)
        other = importlib.metadata.EntryPoint("jobs", "fake_commands", cli.ENTRY_POINT_GROUP)
        monkeypatch.setattr(cli, "entry_points", lambda *, group: [*own, other])  # noqa: ARG005
        assert main(["jobs", "--help"]) == 0
        assert "submit" in capsys.readouterr().out

    def test_one_of_that_name_from_another_package_keeps_its_own_line(self, monkeypatch, capsys):
        fake_command(monkeypatch, succeed, name="jobs")
        assert main(["--help"]) == 0
        out = capsys.readouterr().out
        assert "from fake_commands" in out
        assert cli.EXTRA_COMMANDS["jobs"][0] not in out

    @pytest.mark.parametrize("name", SERVICE_COMMANDS)
    @pytest.mark.process
    def test_without_their_packages_name_the_extra(self, name):
        arguments = {"datasets": ["list"], "jobs": ["list"], "models": ["list"]}.get(name, [])
        arguments = ["list"] if name == "tenants" else arguments
        code = (
            "import sys; "
            f"sys.modules.update(dict.fromkeys({EXTRA_PACKAGES!r})); "
            "from hifi.cli import main; sys.exit(main(sys.argv[1:]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, name, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        extra = "worker" if name in ("worker", "infer") else "service"
        assert done.returncode == 1
        assert done.stderr.startswith(f"hifi: error: the command '{name}' needs a package")
        assert done.stderr.endswith(f"; pip install 'hifi[{extra}]'\n")
        assert done.stderr.count("\n") == 1

    @pytest.mark.parametrize("name", SERVICE_COMMANDS)
    @pytest.mark.process
    def test_help_imports_no_torch(self, name):
        code = (
            "import sys; from hifi.cli import main; main(sys.argv[1:]); "
            "sys.exit(bool({'torch', 'transformers', 'fastapi', 'celery'} & set(sys.modules)))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, name, "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"usage: hifi {name}")


class TestEntryPoints:
    def test_an_added_command_is_listed_and_not_loaded(self, monkeypatch, capsys):
        fake_command(monkeypatch, succeed)
        monkeypatch.delitem(sys.modules, "fake_commands")  # loading it would fail
        assert main(["--help"]) == 0
        assert "fake" in capsys.readouterr().out

    def test_an_added_command_runs_with_its_arguments(self, monkeypatch):
        seen = []
        fake_command(monkeypatch, lambda args: seen.append(args.n_samples) or 0)
        assert main(["fake", "--n-samples", "7"]) == 0
        assert seen == [7]

    def test_its_exit_code_counts(self, monkeypatch):
        fake_command(monkeypatch, lambda _: 3)
        assert main(["fake"]) == 3

    def test_it_cannot_replace_our_own(self, monkeypatch, capsys):
        fake_command(monkeypatch, lambda _: pytest.fail("replaced"), name="inspect")
        assert main(["inspect", "--help"]) == 0
        assert "head delta" in capsys.readouterr().out

    def test_a_missing_package_is_named(self, monkeypatch, capsys):
        fake_command(monkeypatch, succeed)
        monkeypatch.setitem(sys.modules, "fake_commands", None)
        assert main(["fake"]) == 1
        err = capsys.readouterr().err
        assert "'fake' needs a package that is not installed" in err

    @pytest.mark.parametrize("fault", ["load", "attribute", "add_arguments"])
    def test_a_broken_one_is_one_line_and_affects_no_other(
        self, fault, monkeypatch, capsys, delta_file
    ):
        def fail(*_):
            raise RuntimeError("no such\nregister")

        fake_command(monkeypatch, succeed)
        if fault == "load":
            monkeypatch.setattr(importlib.metadata.EntryPoint, "load", fail)
        elif fault == "attribute":
            monkeypatch.delattr(sys.modules["fake_commands"], "run")
        else:
            monkeypatch.setattr(sys.modules["fake_commands"], "add_arguments", fail)
        assert main(["fake"]) == 1
        err = capsys.readouterr().err
        assert err.startswith("hifi: error: the command 'fake' from fake_commands is broken")
        assert err.count("\n") == 1
        assert main(["--help"]) == 0
        assert main(["inspect", str(delta_file)]) == 0

    def test_a_broken_one_keeps_its_traceback_while_debugging(self, monkeypatch):
        monkeypatch.setenv("HIFI_DEBUG", "1")
        fake_command(monkeypatch, succeed)
        monkeypatch.delattr(sys.modules["fake_commands"], "run")
        with pytest.raises(AttributeError):
            main(["fake"])

    def test_arguments_that_fail_while_they_are_read_are_one_line(self, monkeypatch, capsys):
        def refuse(_):
            raise KeyError("unit")

        fake_command(monkeypatch, succeed)
        sys.modules["fake_commands"].add_arguments = lambda parser: parser.add_argument(
            "--length", type=refuse
        )
        assert main(["fake", "--length", "3 m"]) == 1
        assert "unexpected KeyError: 'unit'" in capsys.readouterr().err
