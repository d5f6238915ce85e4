"""``hifi demo``: it keeps what it promises, or says which promise is broken."""

from __future__ import annotations

import json
import re
import tempfile

import pytest
import torch

from hifi.cli import main, proof


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Run the demo as it comes, on fewer rows; return its folder."""
    folder = tmp_path_factory.mktemp("demo") / "here"
    assert main(["demo", "--dir", str(folder), "--rows", "15"]) == 0
    return folder


class TestDemo:
    def test_shows_the_commands_and_keeps_both_promises(self, backbone, tmp_path, capsys):
        folder = tmp_path / "demo"
        assert main(["demo", "--dir", str(folder), "--rows", "10", "--model", str(backbone)]) == 0
        out = capsys.readouterr().out
        commands = re.findall(r"^\$ hifi (\S+)", out, re.MULTILINE)
        assert commands == ["tune", "inspect", "merge", "export-lora"]
        assert "the very same" in out
        assert "bit for bit" in out

    def test_json_is_one_document_and_the_rest_goes_to_stderr(self, backbone, tmp_path, capfd):
        folder = tmp_path / "demo"
        arguments = ["demo", "--rows", "10", "--model", str(backbone), "--dir", str(folder)]
        assert main([*arguments, "--json"]) == 0
        captured = capfd.readouterr()
        document = json.loads(captured.out)
        assert document.pop("seconds") > 0
        tuned = json.loads((folder / "tune.json").read_text(encoding="utf-8"))
        assert document == {
            "object": "demo",
            "path": str(folder),
            "model": str(backbone),
            "rows": {"train": 32, "validation": 8},
            "metrics": tuned["result"]["metrics"],
        }
        commands = re.findall(r"^\$ hifi (\S+)", captured.err, re.MULTILINE)
        assert commands == ["tune", "inspect", "merge", "export-lora"]
        assert "task head " in captured.err  # what `hifi inspect` printed

    def test_tunes_where_it_measures_though_there_is_a_gpu(self, backbone, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        assert main(["demo", "--rows", "10", "--model", str(backbone)]) == 0

    def test_leaves_everything_in_the_folder_that_was_named(self, ran):
        assert {path.name for path in ran.iterdir()} == {
            "libraries.safetensors",
            "lora",
            "merged",
            "train.jsonl",
            "tune.json",
            "validation.jsonl",
        }

    def test_a_merged_model_that_is_another_fails(self, backbone, monkeypatch, capsys):
        measure = proof.measure_accuracy
        monkeypatch.setattr(proof, "measure_accuracy", lambda *a, **k: measure(*a, **k) + 0.1)
        assert main(["demo", "--rows", "10", "--model", str(backbone)]) == 1
        assert "the merged model's accuracy is" in capsys.readouterr().err

    def test_a_failing_command_ends_it(self, tmp_path, capsys):
        assert main(["demo", "--rows", "10", "--model", str(tmp_path)]) == 1
        err = capsys.readouterr().err
        assert "`hifi tune` failed (exit code 1)" in err.splitlines()[-1]

    def test_a_temporary_folder_is_removed_unless_it_is_to_be_kept(
        self, backbone, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        arguments = ["demo", "--rows", "10", "--model", str(backbone)]
        assert main([*arguments, "--json"]) == 0
        assert list(tmp_path.iterdir()) == []
        assert json.loads(capsys.readouterr().out)["path"] is None
        assert main([*arguments, "--keep"]) == 0
        (kept,) = tmp_path.iterdir()
        assert f"Everything is in {kept}" in capsys.readouterr().out

    def test_refuses_a_folder_with_something_in_it(self, tmp_path, capsys):
        (tmp_path / "note.txt").write_text("mine")
        assert main(["demo", "--dir", str(tmp_path)]) == 1
        assert "is not empty" in capsys.readouterr().err
