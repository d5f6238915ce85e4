"""``hifi export-lora``: stock PEFT computes what the merged model computes."""

from __future__ import annotations

import json

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from hifi.cli import main
from hifi.deltas.delta import HeadDelta
from tests.tiny_tasks import save_text_model

TOKENS = torch.tensor([[1, 4, 7, 2], [1, 5, 9, 2]])


def export(backbone, delta_file, out, *more):
    command = ["export-lora", "--delta", str(delta_file), "--model", str(backbone)]
    return main([*command, "--out", str(out), *more])


def check_adapter(backbone, delta_file, adapter):
    """Compare stock PEFT's logits with those of the merged model."""
    plain, merged = (
        AutoModelForSequenceClassification.from_pretrained(
            backbone, num_labels=2, dtype=torch.float32
        )
        for _ in range(2)
    )
    HeadDelta.load(delta_file).merge(merged)
    adapted = PeftModel.from_pretrained(plain, adapter).eval()
    with torch.no_grad():
        difference = adapted(TOKENS).logits - merged.eval()(TOKENS).logits
    assert difference.abs().max() < 1e-5


class TestExportLora:
    def test_stock_peft_gives_the_logits_of_the_merged_model(self, backbone, delta_file, tmp_path):
        assert export(backbone, delta_file, tmp_path / "lora") == 0
        check_adapter(backbone, delta_file, tmp_path / "lora")

    def test_a_backbone_in_bfloat16_that_was_tuned_in_float32(self, data, tmp_path):
        backbone, delta_file = tmp_path / "stored", tmp_path / "delta.safetensors"
        save_text_model(backbone, dtype=torch.bfloat16)
        command = ["tune", "--model", str(backbone), "--train", str(data / "train.jsonl")]
        command += ["--epochs", "2", "--learning-rate", "0.02", "--precision", "float32"]
        assert main([*command, "--max-length", "32", "--out", str(delta_file)]) == 0
        assert export(backbone, delta_file, tmp_path / "lora") == 0
        check_adapter(backbone, delta_file, tmp_path / "lora")

    def test_json(self, backbone, delta_file, tmp_path, capsys):
        out = tmp_path / "lora"
        assert export(backbone, delta_file, out, "--json") == 0
        document = json.loads(capsys.readouterr().out)
        assert document["path"] == str(out)
        assert document["bytes"] == sum(path.stat().st_size for path in out.iterdir())

    def test_refuses_a_folder_with_something_in_it(self, backbone, delta_file, tmp_path, capsys):
        (tmp_path / "note.txt").write_text("mine")
        assert export(backbone, delta_file, tmp_path) == 1
        assert "is not empty" in capsys.readouterr().err
