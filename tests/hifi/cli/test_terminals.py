"""Terminals that cannot show a character: the exit code tells of the work alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hifi.cli import main
from tests.hifi.cli.test_inspect import rewrite_metadata
from tests.root import ROOT
from tests.terminals import NARROW_ENCODINGS, use_terminal

NAME = "数据 📊"  # one character of the basic plane, one beyond it


@pytest.fixture
def named(delta_file, tmp_path) -> Path:
    """A delta file whose name and labels need Unicode."""

    def change(metadata):
        metadata["labels"] = ["悪い", "良い"]

    return rewrite_metadata(delta_file, tmp_path / f"{NAME}.safetensors", change)


@pytest.mark.parametrize("encoding", NARROW_ENCODINGS)
class TestNarrowTerminal:
    def test_shows_an_escape_instead_of_the_character(self, encoding, named, monkeypatch):
        read = use_terminal(monkeypatch, encoding)
        assert main(["inspect", str(named)]) == 0
        shown = read()
        assert r"\u6570\u636e \U0001f4ca.safetensors" in shown
        assert r"\u60aa\u3044, \u826f\u3044" in shown

    def test_json_is_still_json(self, encoding, named, monkeypatch):
        read = use_terminal(monkeypatch, encoding)
        assert main(["inspect", str(named), "--json"]) == 0
        document = json.loads(read())
        assert document["path"] == str(named)
        assert document["metadata"]["labels"] == ["悪い", "良い"]

    @pytest.mark.parametrize("options", [(), ("--json",)])
    def test_a_merge_reports_its_labels(self, encoding, options, named, backbone, monkeypatch):
        read = use_terminal(monkeypatch, encoding)
        out = ["--model", str(backbone), "--out", str(named.with_name("merged"))]
        assert main(["merge", "--delta", str(named), *out, *options]) == 0
        shown = read()
        if options:
            assert json.loads(shown)["labels"] == ["悪い", "良い"]
        else:
            assert r"\u60aa\u3044, \u826f\u3044" in shown

    def test_an_error_keeps_its_exit_code(self, encoding, monkeypatch, capsys):
        use_terminal(monkeypatch, encoding)
        assert main(["inspect", f"{NAME}.safetensors"]) == 1
        assert "数据" in capsys.readouterr().err


class TestWideTerminal:
    def test_shows_every_character(self, named, monkeypatch):
        read = use_terminal(monkeypatch, "utf-8")
        assert main(["inspect", str(named)]) == 0
        assert f"{NAME}.safetensors" in read()


@pytest.mark.process
class TestProcess:
    def run(self, path: Path, *arguments: str, **options) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "hifi.cli", "inspect", str(path), *arguments],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            check=False,
            **options,
        )

    def test_the_encoding_comes_from_the_environment(self, named):
        environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
        done = self.run(named, env=environment, stdout=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (0, b"")
        assert rb"\u6570\u636e" in done.stdout

    def test_a_closed_output_is_no_error(self, named):
        done = self.run(named, preexec_fn=lambda: os.close(1))
        assert (done.returncode, done.stderr) == (0, b"")

    @pytest.mark.parametrize("options", [(), ("--json",)])
    def test_a_full_disk_is_one_line(self, options, named):
        with Path("/dev/full").open("wb") as full:
            done = self.run(named, *options, stdout=full)
        message = b"hifi: error: no space left for the output; free some and try again\n"
        assert (done.returncode, done.stderr) == (1, message)
