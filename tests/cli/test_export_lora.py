from __future__ import annotations

import json

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from hifi.cli import main
from hifi.delta import HeadDelta

TOKENS = torch.tensor([[2, 4, 7, 3], [2, 5, 9, 3]])


def export(backbone, delta_file, out, *more):
    command = ["export-lora", "--delta", str(delta_file), "--model", str(backbone)]
    return main([*command, "--out", str(out), *more])


class TestExportLora:
    def test_stock_peft_gives_the_logits_of_the_merged_model(self, backbone, delta_file, tmp_path):
        assert export(backbone, delta_file, tmp_path / "lora") == 0
        plain = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=2)
        merged = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=2)
        HeadDelta.load(delta_file).merge(merged)
        adapted = PeftModel.from_pretrained(plain, tmp_path / "lora").eval()
        with torch.no_grad():
            difference = adapted(TOKENS).logits - merged.eval()(TOKENS).logits
        assert difference.abs().max() < 1e-5

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
