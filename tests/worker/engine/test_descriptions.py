"""worker.engine.descriptions: a backbone's counts equal what a fine-tune trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from hifi.backbones.fingerprint import backbone_fingerprint
from hifi.errors import ModelError, UnsupportedArchitectureError
from tests.architectures import ARCHITECTURES, HIDDEN, NAMES, QUERY_HEADS, heads_per_layer
from tests.tiny_deltas import save_bare_backbone
from tests.tiny_runs import run
from tests.tiny_tasks import image_rows, save_image_model, save_text_model, text_rows
from worker.engine.descriptions import describe_backbone

SHORT = {"epochs": 1, "batch_size": 4, "n_samples": None, "validation": None}
THREE_CLASSES = text_rows(6, labels="abc")
NUMBERS = [{**row, "label": index / 7} for index, row in enumerate(text_rows(6))]


def check(model: Path, rows: list[dict[str, Any]], *, labels: int, **arguments: Any) -> None:
    """Compare the counts of a description with those of a fine-tune."""
    found = describe_backbone("tiny", model)
    result = run(model, train=rows, **SHORT, **arguments)
    task = dict(result.delta.metadata.task or {})
    head = found.task_heads[task["type"]]
    head_weights = head["base"] + head["per_label"] * labels
    trained = len(result.selection.heads) * found.weights_per_head + head_weights
    assert trained == result.trainable_parameters
    assert trained / (found.parameters + head_weights) == result.fraction
    assert found.fingerprint == result.delta.metadata.fingerprint


def weights_of(head: dict[str, Any]) -> dict[str, int]:
    """Drop the bytes of files, which tests of service.jobs.estimates compare."""
    return {name: value for name, value in head.items() if name != "file"}


class TestCounts:
    @pytest.mark.parametrize("name", NAMES)
    def test_are_those_of_a_fine_tune(self, name: str, tmp_path: Path):
        if ARCHITECTURES[name].image:
            check(save_image_model(tmp_path, name), image_rows(8), labels=2)
        else:
            model = save_text_model(tmp_path, name)
            check(model, THREE_CLASSES, labels=3, k=2)
            check(model, NUMBERS, labels=1)

    @pytest.mark.parametrize(("rows", "labels"), [(THREE_CLASSES, 3), (NUMBERS, 1)])
    def test_on_the_real_backbone(self, rows: list[dict], labels: int, minilm_path: Path):
        check(minilm_path, rows, labels=labels, k=3)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_of_a_backbone_in_half_precision(self, dtype: torch.dtype, tmp_path: Path):
        check(save_text_model(tmp_path, dtype=dtype), THREE_CLASSES, labels=3)

    def test_with_a_pooler_that_the_checkpoint_lacks(self, tmp_path: Path):
        model = save_text_model(tmp_path)
        tf.BertModel.from_pretrained(model, add_pooling_layer=False).save_pretrained(model)
        check(model, THREE_CLASSES, labels=3)
        head = describe_backbone("tiny", model).task_heads["classification"]
        assert weights_of(head) == {"base": HIDDEN * HIDDEN + HIDDEN, "per_label": HIDDEN + 1}


class TestDescribeBackbone:
    def test_minilm(self, minilm_path: Path):
        found = describe_backbone("all-MiniLM-L6-v2", minilm_path)
        assert (found.id, found.architecture) == ("all-MiniLM-L6-v2", "bert")
        assert (found.num_layers, found.num_heads, found.num_key_value_heads) == (6, 12, 12)
        assert (found.head_dim, found.hidden_size, found.max_positions) == (32, 384, 512)
        assert found.parameters == 22_713_216
        # 3 heads of each layer, and a head for two classes: the example of the API.
        assert 18 * found.weights_per_head + 2 * 385 == 666_050
        head = {"base": 0, "per_label": 385}
        assert {name: weights_of(told) for name, told in found.task_heads.items()} == {
            "classification": head,
            "multi-label": head,
            "regression": head,
            "token-classification": head,
            "question-answering": head,
            "multiple-choice": {"base": 385, "per_label": 0},  # one logit of any choice
        }
        assert found.fingerprint == backbone_fingerprint(tf.AutoModel.from_pretrained(minilm_path))

    @pytest.mark.parametrize("name", ["llama", "qwen3"])
    def test_grouped_keys(self, name: str, tmp_path: Path):
        found = describe_backbone("tiny", save_text_model(tmp_path, name))
        assert found.num_heads == QUERY_HEADS
        assert found.num_key_value_heads == heads_per_layer(name) == 2

    def test_real_backbones(self, test_data: Path):
        image = describe_backbone("vit", test_data / "models" / "vit-cifar10-4L4H64")
        assert set(image.task_heads) == {"image-classification"}
        assert image.max_positions is None
        text = describe_backbone("llama", test_data / "models" / "stories260K-llama")
        assert set(text.task_heads) == {
            *("classification", "multi-label", "regression", "token-classification"),
        }
        assert text.num_key_value_heads < text.num_heads

    def test_the_fingerprint_is_of_the_weights_as_stored(self, tmp_path: Path):
        model = save_text_model(tmp_path, dtype=torch.bfloat16)
        stored = tf.AutoModel.from_pretrained(model, dtype="auto")
        assert describe_backbone("tiny", model).fingerprint == backbone_fingerprint(stored)

    def test_is_plain_json(self, tmp_path: Path):
        found = describe_backbone("tiny", save_text_model(tmp_path))
        assert type(found)(**json.loads(json.dumps(vars(found)))) == found


class TestRefusals:
    def test_a_text_model_without_a_tokenizer(self, tmp_path: Path):
        save_bare_backbone(tmp_path)
        (tmp_path / "tokenizer.json").unlink()
        with pytest.raises(ModelError, match=r"tiny supports no task type: .*tokenizer"):
            describe_backbone("tiny", tmp_path)

    def test_an_image_model_without_a_processor(self, tmp_path: Path):
        save_image_model(tmp_path)
        (tmp_path / "preprocessor_config.json").unlink()
        with pytest.raises(ModelError, match="image processor"):
            describe_backbone("tiny", tmp_path)

    def test_an_architecture_that_is_not_known(self, tmp_path: Path):
        tf.T5Config(d_model=8).save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").write_bytes(b"")
        with pytest.raises(UnsupportedArchitectureError):
            describe_backbone("tiny", tmp_path)

    def test_a_broken_file(self, tmp_path: Path):
        save_text_model(tmp_path)
        (tmp_path / "model.safetensors").write_bytes(b"nonsense")
        with pytest.raises(ModelError, match="cannot be loaded"):
            describe_backbone("tiny", tmp_path)
