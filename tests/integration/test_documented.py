"""README.md and docs/service.md, typed verbatim: every command does what the page says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hifi.cli.docstrings import build_data_set
from tests.root import ROOT
from tests.waiting import patience

if TYPE_CHECKING:
    from tests.integration.served import Served

URL = "http://127.0.0.1:8000"
FENCE = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
IDENTIFIER = re.compile(r"\b(ds|job)_[a-z0-9]{24}\b")
PLACEHOLDER = re.compile(r"\b(ds|job)_…")
pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("documented"),
]


class Reader:
    """A reader who types a page's commands, with the ids that the answers show.

    Args:
        folder: where it is typed.
        url: of the service, in the place of the page's.
    """

    def __init__(self, folder: Path, *, url: str) -> None:
        self._folder = folder
        self._url = url
        self._ids: dict[str, str] = {}
        programs = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        self._environment = {**os.environ, "HIFI_URL": url, "PATH": programs}

    def adapt(self, text: str) -> str:
        """Fill in the address and the newest ids."""
        text = text.replace(URL, self._url)
        return PLACEHOLDER.sub(lambda found: self._ids[found[1]], text)

    def type(self, statement: str) -> str:
        """Run a shell statement; return its output."""
        done = subprocess.run(
            ["bash", "-c", self.adapt(statement)],  # noqa: S607 - the shell that the page means
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=patience(300),
            check=False,
        )
        assert done.returncode == 0, f"{statement}\n{done.stdout}\n{done.stderr}"
        assert "urn:hifi:problem" not in done.stdout, f"{statement}\n{done.stdout}"
        for found in IDENTIFIER.finditer(done.stdout):
            self._ids[found[1]] = found[0]
        return done.stdout


def statements(block: str) -> Iterator[str]:
    """Split a block of shell commands, some of which span several lines."""
    pending = ""
    for line in block.splitlines():
        pending += line + "\n"
        try:
            is_whole = not line.endswith("\\") and bool(shlex.split(pending, comments=True))
        except ValueError:  # a quote is still open
            continue
        if is_whole:
            yield pending
            pending = ""
    assert not pending.strip()


def section(page: str, title: str) -> str:
    """Return the text under a title, up to the next title."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.split(rf"^## {title}\n", text, flags=re.MULTILINE)[1].split("\n## ")[0]


def blocks(text: str, language: str) -> list[str]:
    return [block for kind, block in FENCE.findall(text) if kind == language]


@pytest.fixture
def reader(service: Served, tmp_path: Path) -> Reader:
    """Return a reader in a folder with the demo's data, which also lies in its folder demo/."""
    for folder in (tmp_path, tmp_path / "demo"):
        folder.mkdir(exist_ok=True)
        build_data_set(folder, rows_per_library=100, seed=0)
    return Reader(tmp_path, url=service.url)


class TestReadme:
    def test_the_service_with_commands_and_over_http(self, reader: Reader, tmp_path: Path):
        text = section("README.md", "The service")
        commands = [
            line.removeprefix("$ ")
            for block in blocks(text, "console")
            for line in block.splitlines()
            if line.startswith("$ ")
        ]
        assert commands.pop(0) == "hifi serve"
        for command in commands:
            reader.type(command)
        assert (tmp_path / "merged-model" / "model.safetensors").is_file()
        (curl,) = blocks(text, "sh")
        for statement in statements(curl):
            reader.type(statement)
        assert list(tmp_path.glob("*.safetensors"))


class TestServicePage:
    def test_one_job_over_http(self, reader: Reader, tmp_path: Path):
        text = section("docs/service.md", "One job from data to merged model")
        printed = [
            reader.type(statement)
            for block in blocks(text, "sh")
            for statement in statements(block)
        ]
        assert any("id: evt_" in text and "the head delta is stored" in text for text in printed)
        assert (tmp_path / "small.safetensors").is_file()
        assert (tmp_path / "adapter" / "adapter_config.json").is_file()
        assert (tmp_path / "model" / "tokenizer.json").is_file()

    def test_the_same_with_commands_and_from_python(self, reader: Reader, tmp_path: Path):
        text = section("docs/service.md", "The same with commands")
        (commands,), (script,) = blocks(text, "sh"), blocks(text, "python")
        for statement in statements(commands):
            reader.type(statement)
        (tmp_path / "libraries.safetensors").unlink()
        (tmp_path / "script.py").write_text(reader.adapt(script))
        assert "the head delta is stored" in reader.type("python script.py")
        assert (tmp_path / "libraries.safetensors").is_file()
