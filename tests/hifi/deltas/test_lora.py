"""hifi.deltas.lora: stock PEFT loads the export and computes what the merged model computes."""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file
from torch import Tensor

from hifi.backbones.heads import HeadId
from hifi.deltas.delta import HeadDelta
from hifi.errors import BackboneMismatchError, StorageError, TaskHeadMismatchError
from tests.architectures import ARCHITECTURES, NAMES, tiny_batch, tiny_model
from tests.deltas import bits_of, equal_bits, hand_made_delta

TOLERANCE = 1e-5


def load_with_peft(model: tf.PreTrainedModel, folder: Path) -> peft.PeftModel:
    """Load an adapter into a copy of a model; warnings of PEFT are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", FutureWarning)  # between PEFT and transformers alone
        return peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()


def merged_copy(delta: HeadDelta, model: tf.PreTrainedModel) -> tf.PreTrainedModel:
    merged = copy.deepcopy(model)
    delta.merge(merged)
    return merged


def output_of(model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch)[0]


def config_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


class TestInStockPeft:
    @pytest.mark.parametrize("name", NAMES)
    def test_gives_the_logits_of_the_merged_model(self, name: str, tmp_path: Path):
        model, batch = tiny_model(name), tiny_batch(name)
        delta = hand_made_delta(model)
        delta.to_lora(tmp_path / "adapter", model)
        expected = output_of(merged_copy(delta, model), batch)
        adapted = load_with_peft(model, tmp_path / "adapter")
        assert torch.allclose(output_of(adapted, batch), expected, atol=TOLERANCE, rtol=0)
        folded = adapted.merge_and_unload()
        assert torch.allclose(output_of(folded, batch), expected, atol=TOLERANCE, rtol=0)
        assert not torch.allclose(output_of(model, batch), expected, atol=1e-2)

    @pytest.mark.parametrize("name", NAMES)
    def test_changes_the_tuned_rows_and_no_others(self, name: str, tmp_path: Path):
        model = tiny_model(name)
        delta = hand_made_delta(model)
        delta.to_lora(tmp_path / "adapter", model)
        folded = bits_of(load_with_peft(model, tmp_path / "adapter").merge_and_unload())
        merged, before = bits_of(merged_copy(delta, model)), bits_of(model)
        assert folded.keys() == merged.keys()
        for parameter, tensor in folded.items():
            frozen = merged[parameter] == before[parameter]
            assert torch.equal(tensor[frozen], before[parameter][frozen]), parameter
            assert torch.allclose(tensor, merged[parameter], atol=1e-6, rtol=0), parameter

    @pytest.mark.parametrize(
        "name", ["bert", "modernbert", "gpt2", "llama", "vit", "deberta-v3", "mpnet"]
    )
    def test_layer_1_is_not_taken_for_layer_11(self, name: str, tmp_path: Path):
        # Other heads, and other numbers of them, in every layer whose name ends like another's.
        heads = [HeadId(1, 0), HeadId(1, 1), HeadId(10, 1), HeadId(11, 0), HeadId(2, 1)]
        size = {"n_layer": 12} if name == "gpt2" else {"num_hidden_layers": 12}
        model, batch = tiny_model(name, **size), tiny_batch(name)
        delta = hand_made_delta(model, heads=heads)
        delta.to_lora(tmp_path / "adapter", model)
        adapted = load_with_peft(model, tmp_path / "adapter")
        ranks = {
            module_name.removeprefix("base_model.model."): module.r["default"]
            for module_name, module in adapted.named_modules()
            if isinstance(module, peft.tuners.lora.LoraLayer)
        }
        assert ranks == config_in(tmp_path / "adapter")["rank_pattern"]
        assert len(set(ranks.values())) > 1
        expected = output_of(merged_copy(delta, model), batch)
        assert torch.allclose(output_of(adapted, batch), expected, atol=TOLERANCE, rtol=0)

    @pytest.mark.parametrize("name", ["llama", "qwen3", "modernbert"])
    def test_carries_biases_where_the_backbone_has_them(self, name: str, tmp_path: Path):
        model, batch = tiny_model(name, attention_bias=True), tiny_batch(name)
        delta = hand_made_delta(model)
        delta.to_lora(tmp_path / "adapter", model)
        assert config_in(tmp_path / "adapter")["lora_bias"] is True
        adapted = load_with_peft(model, tmp_path / "adapter")
        expected = output_of(merged_copy(delta, model), batch)
        assert torch.allclose(output_of(adapted, batch), expected, atol=TOLERANCE, rtol=0)

    def test_carries_a_pooler_as_part_of_the_task_head(self, tmp_path: Path):
        model, batch = tiny_model("bert"), tiny_batch("bert")
        delta = hand_made_delta(model, extra=["bert.pooler"])
        delta.to_lora(tmp_path / "adapter", model)
        adapted = load_with_peft(model, tmp_path / "adapter")
        expected = output_of(merged_copy(delta, model), batch)
        assert torch.allclose(output_of(adapted, batch), expected, atol=TOLERANCE, rtol=0)
        without = replace(
            delta,
            task_head={n: t for n, t in delta.task_head.items() if n.startswith("classifier")},
        )
        assert not torch.allclose(output_of(merged_copy(without, model), batch), expected)

    @pytest.mark.parametrize(
        ("loader", "task_type"),
        [
            (tf.LlamaForCausalLM, "CAUSAL_LM"),
            (tf.LlamaModel, None),
            (tf.BertForQuestionAnswering, "QUESTION_ANS"),
            (tf.BertForTokenClassification, "TOKEN_CLS"),
            (tf.BertModel, None),
        ],
    )
    def test_suits_the_other_model_classes(
        self, loader: type[tf.PreTrainedModel], task_type: str | None, tmp_path: Path
    ):
        name = "bert" if loader.__name__.startswith("Bert") else "llama"
        architecture = ARCHITECTURES[name]
        torch.manual_seed(0)
        model = loader(architecture.config(**architecture.arguments)).eval()
        batch = tiny_batch(name)
        delta = hand_made_delta(model)
        delta.to_lora(tmp_path / "adapter", model)
        config = config_in(tmp_path / "adapter")
        assert config["task_type"] == (task_type if delta.task_head else None)
        adapted = load_with_peft(model, tmp_path / "adapter")
        expected = output_of(merged_copy(delta, model), batch)
        assert torch.allclose(output_of(adapted, batch), expected, atol=TOLERANCE, rtol=0)
        assert not torch.allclose(output_of(model, batch), expected, atol=1e-4)

    def test_without_a_task_head_leaves_the_models_alone(self, tmp_path: Path):
        model, batch = tiny_model("bert"), tiny_batch("bert")
        delta = hand_made_delta(model, task_head=False)
        delta.to_lora(tmp_path / "adapter", model)
        assert config_in(tmp_path / "adapter")["modules_to_save"] is None
        adapted = load_with_peft(model, tmp_path / "adapter")
        expected = output_of(merged_copy(delta, model), batch)
        assert torch.allclose(output_of(adapted, batch), expected, atol=TOLERANCE, rtol=0)

    @pytest.mark.parametrize("encoding", ["bfloat16", "int8"])
    def test_takes_deltas_that_were_stored_as_differences(self, encoding: str, tmp_path: Path):
        model, batch = tiny_model("bert"), tiny_batch("bert")
        hand_made_delta(model).save(tmp_path / "d", encoding=encoding)
        delta = HeadDelta.load(tmp_path / "d")
        delta.to_lora(tmp_path / "adapter", model)
        adapted = load_with_peft(model, tmp_path / "adapter")
        expected = output_of(merged_copy(delta, model), batch)
        assert torch.allclose(output_of(adapted, batch), expected, atol=TOLERANCE, rtol=0)

    def test_a_bfloat16_backbone_is_brought_to_the_float32_rows(self, tmp_path: Path):
        model = tiny_model("bert", dtype=torch.bfloat16)
        delta = hand_made_delta(model)
        delta.to_lora(tmp_path / "adapter", model)
        tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        name = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"
        base = model.bert.encoder.layer[0].attention.self.query.weight[8:16].float()
        tuned = delta.rows["layers.0.heads.1.query.weight"]
        assert torch.allclose(tensors[name] + base, tuned, atol=1e-7, rtol=0)


class TestLayout:
    """The folder's files, compared with PEFT's own."""

    def test_the_selector_and_the_difference_by_hand(self, tmp_path: Path):
        model = tiny_model("gpt2")
        delta = hand_made_delta(model)
        delta.to_lora(tmp_path / "adapter", model)
        tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        prefix = "base_model.model.transformer.h.2.attn.c_attn"
        # Heads 0 and 1 of layer 2: the first 16 of the 32 outputs each of query, key and value.
        rows = [*range(16), *range(32, 48), *range(64, 80)]
        selector = tensors[f"{prefix}.lora_B.weight"]
        assert selector.shape == (96, 48)
        assert selector.argmax(dim=0).tolist() == rows
        assert selector.sum() == 48
        tuned = merged_copy(delta, model).transformer.h[2].attn.c_attn
        plain = model.transformer.h[2].attn.c_attn
        difference = (tuned.weight - plain.weight)[:, rows].T
        assert torch.allclose(tensors[f"{prefix}.lora_A.weight"], difference, atol=1e-7, rtol=0)
        bias = tensors[f"{prefix}.lora_B.bias"]
        assert torch.allclose(bias, tuned.bias - plain.bias, atol=1e-7, rtol=0)
        assert bias.nonzero().flatten().tolist() == rows

    @pytest.mark.parametrize("name", NAMES)
    def test_the_weights_are_named_as_peft_names_them(self, name: str, tmp_path: Path):
        model = tiny_model(name)
        hand_made_delta(model).to_lora(tmp_path / "ours", model)
        adapted = load_with_peft(model, tmp_path / "ours")
        with warnings.catch_warnings():
            # PEFT takes the bias on B, which is a vector, for a shard that was not gathered.
            warnings.filterwarnings("ignore", message=".*invalid shape.*lora_B.bias")
            adapted.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
        ours, theirs = (
            load_file(tmp_path / folder / "adapter_model.safetensors")
            for folder in ("ours", "theirs")
        )
        assert equal_bits(dict(sorted(ours.items())), dict(sorted(theirs.items())))

    def test_every_field_of_the_configuration_is_pefts(self, tmp_path: Path):
        model = tiny_model("gpt2")
        hand_made_delta(model).to_lora(tmp_path / "adapter", model)
        config = config_in(tmp_path / "adapter")
        assert config.keys() <= peft.LoraConfig.__dataclass_fields__.keys()
        module = "transformer.h.{}.attn.c_attn"
        ranks = {module.format(0): 24, module.format(2): 48}
        assert config == {
            "peft_type": "LORA",
            "task_type": "SEQ_CLS",
            "base_model_name_or_path": "owner/tiny",
            "revision": "0123abcd",
            "inference_mode": True,
            "r": 48,
            "lora_alpha": 48,
            "rank_pattern": ranks,
            "alpha_pattern": ranks,
            "target_modules": sorted(ranks),
            "lora_dropout": 0.0,
            "bias": "none",
            "lora_bias": True,
            "fan_in_fan_out": True,
            "modules_to_save": ["score"],
        }

    @pytest.mark.parametrize(
        ("name", "modules"),
        [
            ("bert", ["classifier"]),
            ("roberta", ["classifier"]),
            ("distilbert", ["pre_classifier", "classifier"]),
            ("modernbert", ["head", "classifier"]),
            ("deberta-v3", ["pooler", "classifier"]),
            ("mpnet", ["classifier"]),
            ("llama", ["score"]),
            ("vit", ["classifier"]),
        ],
    )
    def test_saves_the_task_head_by_its_whole_modules(
        self, name: str, modules: list[str], tmp_path: Path
    ):
        model = tiny_model(name)
        hand_made_delta(model).to_lora(tmp_path / "adapter", model)
        config = config_in(tmp_path / "adapter")
        assert config["modules_to_save"] == modules
        assert config["fan_in_fan_out"] is False
        assert config["lora_bias"] is (name not in ("modernbert", "llama"))

    def test_equal_deltas_give_equal_bytes(self, tmp_path: Path):
        model = tiny_model("bert")
        delta = hand_made_delta(model)
        shuffled = replace(delta, rows=dict(reversed(delta.rows.items())), base=None)
        for folder, each in (("a", delta), ("b", shuffled)):
            each.to_lora(tmp_path / folder, model)
        for file in ("adapter_model.safetensors", "adapter_config.json"):
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
        assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
        ]

    def test_leaves_the_model_as_it_was(self, tmp_path: Path):
        model = tiny_model("modernbert")
        before = bits_of(model)
        hand_made_delta(model).to_lora(tmp_path / "adapter", model)
        assert equal_bits(bits_of(model), before)


class TestRefused:
    def test_another_backbone(self, tmp_path: Path):
        delta = hand_made_delta(tiny_model("bert"))
        with pytest.raises(BackboneMismatchError, match="fingerprint"):
            delta.to_lora(tmp_path / "adapter", tiny_model("bert", seed=1))
        assert list(tmp_path.iterdir()) == []

    def test_a_merged_model(self, tmp_path: Path):
        model = tiny_model("bert")
        delta = hand_made_delta(model)
        delta.merge(model)
        with pytest.raises(BackboneMismatchError, match="already merged"):
            delta.to_lora(tmp_path / "adapter", model)

    def test_a_model_with_another_task_head(self, tmp_path: Path):
        model = tiny_model("bert")
        delta = hand_made_delta(model)
        with pytest.raises(TaskHeadMismatchError, match="classifier"):
            delta.to_lora(tmp_path / "adapter", model.bert)

    def test_a_task_head_that_is_part_of_a_module(self, tmp_path: Path):
        model = tiny_model("bert")
        delta = hand_made_delta(model)
        part = {**delta.task_head, "bert.pooler.dense.bias": torch.zeros(32)}
        with pytest.raises(
            TaskHeadMismatchError, match=r"bert\.pooler\.dense\.bias.*whole modules"
        ):
            replace(delta, task_head=part).to_lora(tmp_path / "adapter", model)
        assert list(tmp_path.iterdir()) == []

    def test_a_filled_folder(self, tmp_path: Path):
        model = tiny_model("bert")
        (tmp_path / "precious").touch()
        with pytest.raises(StorageError, match="not empty"):
            hand_made_delta(model).to_lora(tmp_path, model)
        assert [path.name for path in tmp_path.iterdir()] == ["precious"]
