"""``hifi inspect``: a file's facts, without its control characters."""

from __future__ import annotations

import hashlib
import json
import sys

import matplotlib.font_manager  # on import it may start fc-list, as no test here may
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hifi.cli import main
from hifi.deltas.delta import HeadDelta


def rewrite_metadata(source, target, change):
    """Copy a delta file with other metadata."""
    with safe_open(source, framework="pt") as file:
        metadata = json.loads(file.metadata()["hifi"])
    change(metadata)
    save_file(load_file(source), target, {"hifi": json.dumps(metadata)})
    return target


class TestInspect:
    def test_json_is_one_document_with_metadata_and_sizes(self, delta_file, capsys):
        assert main(["inspect", str(delta_file), "--json"]) == 0
        captured = capsys.readouterr()
        document = json.loads(captured.out)
        content = delta_file.read_bytes()
        assert document["bytes"] == len(content)
        assert document["sha256"] == hashlib.sha256(content).hexdigest()
        assert document["heads"] == [{"layer": 0, "head": 1}, {"layer": 2, "head": 3}]
        # Two heads of three 8×32 projections with biases; a classifier of 2×32 with bias.
        assert document["trainable_parameters"] == 2 * 3 * (8 * 32 + 8) + 2 * 32 + 2
        assert document["task_head"] == {"classifier.bias": [2], "classifier.weight": [2, 32]}
        assert document["metadata"]["fingerprint"].startswith("sha256:")
        assert document["metadata"]["labels"] == ["bad", "good"]
        assert captured.err == ""

    def test_without_json_shows_the_facts_and_the_heads(self, delta_file, capsys):
        assert main(["inspect", str(delta_file)]) == 0
        out = capsys.readouterr().out
        assert "bad, good" in out
        assert "layer  0  heads 1" in out
        assert "layer  2  heads 3" in out
        assert HeadDelta.load(delta_file).metadata.fingerprint in out

    def test_control_characters_in_a_foreign_file_do_not_reach_the_terminal(
        self, delta_file, tmp_path, capsys
    ):
        def change(metadata):
            metadata["labels"] = ["bad\x1b]0;owned\x07", "[red]good[/red]"]

        path = rewrite_metadata(delta_file, tmp_path / "foreign.safetensors", change)
        assert main(["inspect", str(path)]) == 0
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert "[red]good[/red]" in out

    @pytest.mark.parametrize("importance", ["high", [1e308, -1e308, 0.5, 0.5]])
    def test_unsound_scores_leave_the_list_of_heads(self, importance, delta_file, tmp_path, capsys):
        def change(metadata):
            selection = metadata["selection"]
            scores = {"information_richness": [1] * 4, "correlation": [[0] * 4] * 4}
            scores |= {"importance": importance, "iterations": 1}
            settings = {"strategy": "layer-wise", "teleport": "information"}
            selection.update(k=1, xi=0.9, d=0.85, n_samples=9, **settings)
            for layer in selection["layers"]:
                layer.update(scores)

        path = rewrite_metadata(delta_file, tmp_path / "odd.safetensors", change)
        assert main(["inspect", str(path)]) == 0
        assert "layer  0  heads 1" in capsys.readouterr().out

    @pytest.mark.parametrize("content", [b"", b"not a delta", b"\xff" * 100])
    def test_a_foreign_file_is_one_line(self, content, tmp_path, capsys):
        path = tmp_path / "foreign.safetensors"
        path.write_bytes(content)
        assert main(["inspect", str(path)]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert str(path) in captured.err

    def test_a_truncated_file_is_refused(self, delta_file, tmp_path, capsys):
        path = tmp_path / "short.safetensors"
        path.write_bytes(delta_file.read_bytes()[:-1])
        assert main(["inspect", str(path)]) == 1
        assert str(path) in capsys.readouterr().err

    def test_without_a_picture_matplotlib_is_not_needed(self, delta_file, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        monkeypatch.delitem(sys.modules, "hifi.plots", raising=False)
        assert main(["inspect", str(delta_file)]) == 0

    def test_a_missing_file_is_named(self, tmp_path, capsys):
        assert main(["inspect", str(tmp_path / "none.safetensors")]) == 1
        assert "none.safetensors: no such head delta" in capsys.readouterr().err


class TestPlot:
    @pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
    def test_draws_the_heads_of_the_delta(self, ending, delta_file, tmp_path, capsys):
        picture = tmp_path / f"heads{ending}"
        assert main(["inspect", str(delta_file), "--plot", str(picture)]) == 0
        captured = capsys.readouterr()
        assert f"picture        {picture}\n" in captured.out
        assert "layer  0  heads 1" in captured.out
        assert captured.err == ""
        assert picture.stat().st_size > 1000
        assert sorted(path.name for path in tmp_path.iterdir()) == [picture.name]

    def test_has_the_scores_and_names_the_file(self, delta_file, tmp_path):
        def change(metadata):
            scores = {"information_richness": [1] * 4, "correlation": [[0] * 4] * 4}
            scores |= {"importance": [0.25] * 4, "iterations": 1}
            settings = {"strategy": "layer-wise", "teleport": "information"}
            metadata["selection"].update(k=1, xi=0.9, d=0.85, n_samples=9, **settings)
            for layer in metadata["selection"]["layers"]:
                layer.update(scores)

        path = rewrite_metadata(delta_file, tmp_path / "$1.safetensors", change)
        picture = tmp_path / "heads.svg"
        with matplotlib.rc_context({"svg.fonttype": "none"}):  # texts stay texts
            assert main(["inspect", str(path), "--plot", str(picture)]) == 0
        drawn = picture.read_text(encoding="utf-8")
        assert "$1.safetensors: 2 heads of tiny-bert" in drawn
        for title in ("importance (PageRank)", "information richness", "layer 2, r up to 0"):
            assert title in drawn

    def test_is_named_in_the_json(self, delta_file, tmp_path, capsys):
        picture = tmp_path / "heads.png"
        assert main(["inspect", str(delta_file), "--plot", str(picture), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["plot"] == str(picture)

    @pytest.mark.parametrize("name", ["heads.jpg", "heads"])
    def test_another_ending_is_one_line(self, name, delta_file, tmp_path, capsys):
        assert main(["inspect", str(delta_file), "--plot", str(tmp_path / name)]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.endswith("ends with .pdf, .png or .svg (change --plot)\n")
        assert captured.err.count("\n") == 1

    def test_a_missing_folder_is_one_line(self, delta_file, tmp_path, capsys):
        picture = tmp_path / "missing" / "heads.png"
        assert main(["inspect", str(delta_file), "--plot", str(picture)]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"hifi: error: cannot write {picture}: the folder")
        assert captured.err.count("\n") == 1

    def test_without_matplotlib_names_the_extra(self, delta_file, tmp_path, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        for name in [name for name in sys.modules if name.startswith("hifi.plots")]:
            monkeypatch.delitem(sys.modules, name)
        picture = tmp_path / "heads.png"
        assert main(["inspect", str(delta_file), "--plot", str(picture)]) == 1
        assert capsys.readouterr().err == (
            "hifi: error: hifi.plots needs matplotlib, which is not installed; "
            "pip install 'hifi[plots]'\n"
        )
        assert not picture.exists()

    def test_a_delta_that_cannot_be_read_leaves_no_picture(self, tmp_path, capsys):
        delta, picture = tmp_path / "foreign.safetensors", tmp_path / "heads.png"
        delta.write_bytes(b"not a delta")
        assert main(["inspect", str(delta), "--plot", str(picture)]) == 1
        assert str(delta) in capsys.readouterr().err
        assert not picture.exists()
