"""worker.engine.results: a job's files have the same bytes wherever they are written."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hifi.deltas.delta import HeadDelta
from hifi.errors import BackboneMismatchError
from tests.root import ROOT
from tests.tiny_deltas import save_bare_backbone
from tests.tiny_runs import run
from tests.tiny_tasks import save_text_model
from worker.engine.results import write_artifacts

if TYPE_CHECKING:
    from hifi.training.finetuning import FinetuneResult


def write(result: FinetuneResult, model: Path, folder: Path) -> dict[str, Path]:
    folder.mkdir()
    return write_artifacts(result.delta, model_path=model, folder=folder)


@pytest.fixture(scope="module")
def result(backbone: Path) -> FinetuneResult:
    return run(backbone, epochs=1, learning_rate=0.1)


class TestWriteArtifacts:
    def test_every_encoding_and_the_adapter(
        self, result: FinetuneResult, backbone: Path, tmp_path: Path
    ):
        files = write(result, backbone, tmp_path / "out")
        assert list(files) == ["float32", "bfloat16", "int8", "lora"]
        assert sorted(files.values()) == sorted((tmp_path / "out").iterdir())
        for encoding in ("float32", "bfloat16", "int8"):
            assert HeadDelta.load(files[encoding]).metadata.encoding == encoding
        with tarfile.open(files["lora"]) as archive:
            assert archive.getnames() == ["adapter_config.json", "adapter_model.safetensors"]

    def test_stock_peft_gives_the_logits_of_the_merged_model(
        self, result: FinetuneResult, backbone: Path, tmp_path: Path
    ):
        files = write(result, backbone, tmp_path / "out")
        with tarfile.open(files["lora"]) as archive:
            archive.extractall(tmp_path / "adapter", filter="data")
        plain, merged = (
            AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=2).eval()
            for _ in range(2)
        )
        result.delta.merge(merged)
        adapted = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
        batch = AutoTokenizer.from_pretrained(backbone)("w1 w2 w3", return_tensors="pt")
        with torch.no_grad():
            torch.testing.assert_close(adapted(**batch).logits, merged(**batch).logits)

    def test_twice_gives_the_same_bytes(
        self, result: FinetuneResult, backbone: Path, tmp_path: Path
    ):
        first = write(result, backbone, tmp_path / "first")
        second = write(result, backbone, tmp_path / "second")
        for name, path in first.items():
            assert path.read_bytes() == second[name].read_bytes()

    @pytest.mark.process
    def test_another_process_gives_the_same_bytes(
        self, result: FinetuneResult, backbone: Path, tmp_path: Path
    ):
        code = """
            import hashlib, json, pathlib, sys
            from tests.tiny_runs import run
            from worker.engine.results import write_artifacts
            backbone, folder = map(pathlib.Path, sys.argv[1:])
            delta = run(backbone, epochs=1, learning_rate=0.1).delta
            files = write_artifacts(delta, model_path=backbone, folder=folder)
            hashes = {name: hashlib.sha256(f.read_bytes()).hexdigest() for name, f in files.items()}
            print(json.dumps(hashes))
        """
        code = "\n".join(line.strip() for line in code.splitlines())
        (tmp_path / "there").mkdir()
        command = [sys.executable, "-c", code, str(backbone), str(tmp_path / "there")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        here = write(result, backbone, tmp_path / "here")
        assert json.loads(done.stdout.splitlines()[-1]) == {
            name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in here.items()
        }

    @pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_at_any_dtype(self, stored: torch.dtype, precision: str, tmp_path: Path):
        model = save_text_model(tmp_path / "model", "llama", dtype=stored)
        files = write(run(model, epochs=1, precision=precision), model, tmp_path / "out")
        assert len(files) == 4

    def test_a_backbone_that_was_replaced_meanwhile_is_refused(
        self, result: FinetuneResult, tmp_path: Path
    ):
        other = save_bare_backbone(tmp_path / "tiny-bert", seed=1)
        with pytest.raises(BackboneMismatchError):
            write(result, other, tmp_path / "out")
        assert "lora.tar" not in {path.name for path in (tmp_path / "out").iterdir()}

    def test_no_path_is_in_any_file(self, result: FinetuneResult, backbone: Path, tmp_path: Path):
        for path in write(result, backbone, tmp_path / "out").values():
            assert str(backbone.parent).encode() not in path.read_bytes()
            assert str(tmp_path).encode() not in path.read_bytes()

    def test_a_delta_without_its_backbones_rows_is_refused(
        self, result: FinetuneResult, backbone: Path, tmp_path: Path
    ):
        with pytest.raises(ValueError, match="encoding"):
            write(replace(result, delta=replace(result.delta, base=None)), backbone, tmp_path / "o")
