"""worker.models: which folders are backbones, and by which names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from store.settings import Settings
from worker import models
from worker.models import find_backbones

PACKAGED = "all-MiniLM-L6-v2"


def make(folder: Path, *, weights: str = "model.safetensors", config: str = "config.json") -> Path:
    folder.mkdir(parents=True)
    (folder / weights).write_bytes(b"")
    (folder / config).write_text("{}")
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, models=tmp_path / "models")


class TestFindBackbones:
    def test_folders_with_a_configuration_and_safetensors(
        self, settings: Settings, minilm_path: Path
    ):
        plain = make(settings.models / "bert-base")
        sharded = make(settings.models / "Qwen3_0.6B", weights="model-00001-of-2.safetensors")
        make(settings.models / "pickled", weights="pytorch_model.bin")
        make(settings.models / "no-config", config="other.json")
        (settings.models / "empty").mkdir()
        (settings.models / "notes.txt").write_text("a file")
        found = find_backbones(settings)
        assert found == {"Qwen3_0.6B": sharded, PACKAGED: minilm_path, "bert-base": plain}
        assert list(found) == sorted(found)

    @pytest.mark.parametrize("name", ["-x", ".hidden", "a b", "é", "a%2Fb", "a\nb", "x" * 97])
    def test_names_that_would_need_quoting_are_left_out(self, name: str, settings: Settings):
        make(settings.models / name)
        assert set(find_backbones(settings)) == {PACKAGED}

    def test_a_linked_folder_counts(self, settings: Settings, tmp_path: Path):
        settings.models.mkdir()
        (settings.models / "linked").symlink_to(make(tmp_path / "elsewhere"))
        assert "linked" in find_backbones(settings)

    def test_a_folder_stands_before_the_package_of_its_name(self, settings: Settings):
        folder = make(settings.models / PACKAGED)
        assert find_backbones(settings) == {PACKAGED: folder}

    def test_without_the_package_and_the_folder_there_is_none(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(models, "find_packaged_folder", lambda: None)
        assert find_backbones(settings) == {}

    @pytest.mark.process
    def test_costs_no_torch(self):
        code = "import sys, worker.models; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
