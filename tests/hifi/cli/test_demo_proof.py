"""The demo's proof: it asks the model that is on disk, and looks at every bit."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from hifi.cli import main
from hifi.cli.demo import predict_labels, undo_is_exact
from hifi.deltas.delta import HeadDelta
from tests.tiny_tasks import write_jsonl


@pytest.fixture(scope="module")
def learnt(backbone, data, tmp_path_factory):
    """Tune and merge the tiny backbone; return a folder with data, delta, report and model."""
    folder = tmp_path_factory.mktemp("proof")
    for split in ("train", "validation"):
        lines = (data / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        named = [{"text": r["text"], "library": ("scipy", "torch")[r["label"]]} for r in rows]
        write_jsonl(folder / f"{split}.jsonl", named)
    delta = str(folder / "delta.safetensors")
    tune = ["tune", "--model", str(backbone), "--label", "library", "--epochs", "8"]
    tune += ["--learning-rate", "0.02", "--precision", "float32", "--batch-size", "8"]
    tune += ["--train", str(folder / "train.jsonl"), "--out", delta]
    assert main([*tune, "--validation", str(folder / "validation.jsonl")]) == 0
    merge = ["merge", "--delta", delta, "--model", str(backbone)]
    assert main([*merge, "--out", str(folder / "merged")]) == 0
    return folder


def measure_accuracy(merged, data):
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    labels = predict_labels(merged, [row["text"] for row in rows])
    return sum(labels[row["text"]] == row["library"] for row in rows) / len(rows)


@pytest.fixture
def delta(learnt):
    return learnt / "delta.safetensors"


class TestPredictLabels:
    def test_are_those_of_the_model_on_disk(self, learnt, tmp_path):
        right = measure_accuracy(learnt / "merged", learnt / "validation.jsonl")
        assert right > 0.9
        for path in (learnt / "merged").iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        weights = load_file(tmp_path / "model.safetensors")
        for name in ("classifier.weight", "classifier.bias"):
            weights[name] = weights[name].flip(0).contiguous()  # of two classes
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
        wrong = measure_accuracy(tmp_path, learnt / "validation.jsonl")
        assert wrong == pytest.approx(1 - right)


class TestUndoIsExact:
    def test_holds_for_a_delta(self, delta, backbone):
        assert undo_is_exact(delta, model=str(backbone))

    def test_detects_a_bit_that_is_not_restored(self, delta, backbone, monkeypatch):
        merge = HeadDelta.merge

        def merge_loosely(self, model):
            displaced = merge(self, model)
            name = next(iter(displaced.rows))
            displaced.rows[name].view(torch.int32)[0, 0] ^= 1
            return displaced

        monkeypatch.setattr(HeadDelta, "merge", merge_loosely)
        assert not undo_is_exact(delta, model=str(backbone))

    def test_detects_a_merge_that_does_nothing(self, delta, backbone, monkeypatch):
        monkeypatch.setattr(HeadDelta, "merge", lambda self, _: self)
        assert not undo_is_exact(delta, model=str(backbone))
