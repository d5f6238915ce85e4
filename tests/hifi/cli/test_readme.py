"""The README's commands exist with these options, and its Python runs."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest

from hifi import cli
from hifi.backbones.heads import SUPPORTED_ARCHITECTURES
from hifi.deltas.delta import HeadDelta
from tests.root import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"(?:^\$ |`)hifi ([a-z].*?)(?:`|$)", README, re.MULTILINE)
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def block(mark):
    """Return the one Python block that contains a mark."""
    (found,) = (code for code in BLOCKS if mark in code)
    return found


class TestCommands:
    @pytest.mark.parametrize("command", [c for c in COMMANDS if "--" in c])
    def test_parse(self, command):
        arguments = shlex.split(command)
        cli._build_parser(arguments).parse_args(arguments)

    def test_every_command_is_documented(self):
        told = {command.split()[0] for command in COMMANDS} | {"demo"}
        assert told >= set(cli.LOCAL_COMMANDS)


class TestPython:
    @pytest.mark.parametrize("code", BLOCKS)
    def test_is_python(self, code):
        compile(code, "README.md", "exec")

    @pytest.mark.usefixtures("minilm_path")
    def test_own_loop_and_undo_run_and_the_command_line_merges(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        names: dict[str, Any] = {}
        for words in ("optimizer.step()", "displaced", "HeadBank("):
            exec(block(words), names)  # noqa: S102 - our own
        assert names["answers"][0].shape == (2,)
        assert names["answers"][1].dim() == 2
        assert HeadDelta.load("films.safetensors").metadata.labels == ["bad", "good"]
        assert cli.main(["merge", "--delta", "films.safetensors", "--out", "merged"]) == 0


class TestFacts:
    def test_every_architecture_is_named(self):
        plain = README.lower().replace("xlm-r,", "xlm-roberta,")
        assert all(name in plain.replace("gpt-2", "gpt2") for name in SUPPORTED_ARCHITECTURES)

    def test_the_cpu_torch_is_the_one_that_make_install_takes(self):
        (pinned,) = re.findall(r"^torch==.*$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
        assert f"pip install {pinned} --index-url" in README

    @pytest.mark.parametrize("path", re.findall(r"\]\((?!http)([^)#]+)\)", README))
    def test_links_lead_somewhere(self, path):
        assert (ROOT / path).exists()
