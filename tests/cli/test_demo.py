from __future__ import annotations

import json
import re
import tempfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from hifi.cli import docstrings, main, proof
from hifi.cli.docstrings import build_data_set, first_sentence
from hifi.delta import HeadDelta
from hifi.errors import HifiError


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Build a small data set."""
    folder = tmp_path_factory.mktemp("docstrings")
    rows = build_data_set(folder, rows_per_library=20, seed=0)
    assert rows == {"train": 64, "validation": 16}
    return folder


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Run the demo as it comes, on fewer rows; return its folder."""
    folder = tmp_path_factory.mktemp("demo") / "here"
    assert main(["demo", "--dir", str(folder), "--rows", "15"]) == 0
    return folder


class TestFirstSentence:
    @pytest.mark.parametrize(
        ("docstring", "sentence"),
        [
            ("Return the mean.", "Return the mean."),
            ("Return the\n    mean. And more.", "Return the mean."),
            ("Return the mean\n\nof all.", "Return the mean"),
            ("Wrap a SciPy matrix.", "Wrap a matrix."),
            ("See scipy.sparse for matrices.", "See sparse for matrices."),
            ("Is this scipy? Yes.", "Is this ?"),
        ],
    )
    def test_is_cut_out_without_the_librarys_name(self, docstring, sentence):
        assert first_sentence(docstring, own_name=r"scipy\w*") == sentence


class TestBuildDataSet:
    def test_has_as_many_rows_of_every_library(self, folder):
        for split, count in (("train", 16), ("validation", 4)):
            labels = [row["library"] for row in read(folder / f"{split}.jsonl")]
            assert {library: labels.count(library) for library in labels} == dict.fromkeys(
                docstrings.LIBRARIES, count
            )

    def test_no_text_occurs_twice_or_names_its_library(self, folder):
        rows = read(folder / "train.jsonl") + read(folder / "validation.jsonl")
        assert len({row["text"].lower() for row in rows}) == len(rows)
        for row in rows:
            assert not re.search(rf"\b{row['library']}\b", row["text"], re.IGNORECASE)

    def test_equal_seeds_give_equal_files(self, folder, tmp_path):
        build_data_set(tmp_path, rows_per_library=20, seed=0)
        for name in ("train.jsonl", "validation.jsonl"):
            assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()

    def test_a_missing_library_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setattr(docstrings, "LIBRARIES", ("no_such_library",))
        with pytest.raises(HifiError, match="no_such_library is not installed"):
            build_data_set(tmp_path, rows_per_library=20, seed=0)

    def test_too_few_rows_are_refused(self, tmp_path):
        with pytest.raises(HifiError, match="rows=9 is out of range: at least 10"):
            build_data_set(tmp_path, rows_per_library=9, seed=0)


class TestDemo:
    def test_shows_the_commands_and_keeps_both_promises(self, backbone, tmp_path, capsys):
        folder = tmp_path / "demo"
        assert main(["demo", "--dir", str(folder), "--rows", "10", "--model", str(backbone)]) == 0
        out = capsys.readouterr().out
        commands = re.findall(r"^\$ hifi (\S+)", out, re.MULTILINE)
        assert commands == ["tune", "inspect", "merge", "export-lora"]
        assert "the very same" in out
        assert "bit for bit" in out

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

    def test_the_measured_model_is_the_one_on_disk(self, ran, tmp_path):
        delta = HeadDelta.load(ran / "libraries.safetensors")
        before = proof.measure_accuracy(ran / "merged", ran / "validation.jsonl", delta=delta)
        assert (
            before == json.loads((ran / "tune.json").read_text())["result"]["metrics"]["accuracy"]
        )
        weights = load_file(ran / "merged" / "model.safetensors")
        order = torch.tensor([1, 2, 3, 0])
        for name in ("classifier.weight", "classifier.bias"):
            weights[name] = weights[name][order].contiguous()
        for path in (ran / "merged").iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
        after = proof.measure_accuracy(tmp_path, ran / "validation.jsonl", delta=delta)
        assert after != before

    def test_a_failing_command_ends_it(self, tmp_path, capsys):
        assert main(["demo", "--rows", "10", "--model", str(tmp_path)]) == 1
        err = capsys.readouterr().err
        assert "`hifi tune` failed (exit code 1)" in err.splitlines()[-1]

    def test_a_temporary_folder_is_removed_unless_it_is_to_be_kept(
        self, backbone, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        arguments = ["demo", "--rows", "10", "--model", str(backbone)]
        assert main(arguments) == 0
        assert list(tmp_path.iterdir()) == []
        capsys.readouterr()
        assert main([*arguments, "--keep"]) == 0
        (kept,) = tmp_path.iterdir()
        assert f"Everything is in {kept}" in capsys.readouterr().out

    def test_refuses_a_folder_with_something_in_it(self, tmp_path, capsys):
        (tmp_path / "note.txt").write_text("mine")
        assert main(["demo", "--dir", str(tmp_path)]) == 1
        assert "is not empty" in capsys.readouterr().err
