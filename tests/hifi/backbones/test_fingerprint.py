"""hifi.backbones.fingerprint: one hash per checkpoint, another for every other one."""

from __future__ import annotations

import copy
from hashlib import sha256
from pathlib import Path

import pytest
import torch
import transformers as tf
from torch import nn

from hifi.backbones.fingerprint import backbone_fingerprint, rows_fingerprint
from hifi.backbones.heads import optional_parameter_names, task_head_names
from hifi.errors import UnsupportedArchitectureError
from tests.architectures import ARCHITECTURES, NAMES, tiny_batch, tiny_model, unsupported_model
from tests.deltas import rows_of

OTHER_CLASSES = {
    "bert": (tf.BertModel, tf.BertForQuestionAnswering, tf.BertForMaskedLM, tf.BertLMHeadModel),
    "roberta": (tf.RobertaModel, tf.RobertaForQuestionAnswering, tf.RobertaForMaskedLM),
    "xlm-roberta": (tf.XLMRobertaModel, tf.XLMRobertaForTokenClassification),
    "electra": (tf.ElectraModel, tf.ElectraForQuestionAnswering, tf.ElectraForPreTraining),
    "distilbert": (tf.DistilBertModel, tf.DistilBertForQuestionAnswering),
    "modernbert": (tf.ModernBertModel, tf.ModernBertForMaskedLM),
    "deberta-v2": (tf.DebertaV2Model, tf.DebertaV2ForQuestionAnswering, tf.DebertaV2ForMaskedLM),
    "deberta-v3": (tf.DebertaV2Model, tf.DebertaV2ForTokenClassification),
    "mpnet": (tf.MPNetModel, tf.MPNetForQuestionAnswering, tf.MPNetForMaskedLM),
    "vit": (tf.ViTModel, tf.ViTForMaskedImageModeling),
    "deit": (tf.DeiTModel, tf.DeiTForImageClassificationWithTeacher),
    "gpt2": (tf.GPT2Model, tf.GPT2LMHeadModel, tf.GPT2ForQuestionAnswering),
    "llama": (tf.LlamaModel, tf.LlamaForCausalLM),
    "qwen3": (tf.Qwen3Model, tf.Qwen3ForCausalLM),
}
ROPE_LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
ROPE_YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}
QWEN3_WINDOW = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}


def blocks_of(model: tf.PreTrainedModel) -> nn.ModuleList:
    return next(m for m in model.base_model.modules() if isinstance(m, nn.ModuleList))


def counted(model: tf.PreTrainedModel) -> tf.PreTrainedModel:
    """Fill a model with fixed numbers, independent of any random generator."""
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            values = torch.arange(parameter.numel()) % 101 + index
            parameter.copy_(values.view(parameter.shape) / 64)
    return model


class TestBackboneFingerprint:
    @pytest.mark.parametrize("name", NAMES)
    def test_is_the_same_for_every_class_that_loads_the_checkpoint(self, name: str, tmp_path: Path):
        model = tiny_model(name)
        expected = backbone_fingerprint(model)
        model.save_pretrained(tmp_path)
        for loader in (ARCHITECTURES[name].classifier, *OTHER_CLASSES[name]):
            loaded = loader.from_pretrained(tmp_path)
            assert backbone_fingerprint(loaded) == expected, loader

    def test_is_the_same_for_every_class_that_loads_a_real_checkpoint(self, minilm_path: Path):
        hashes = {
            backbone_fingerprint(loader.from_pretrained(minilm_path))
            for loader in (tf.BertModel, tf.BertForSequenceClassification, *OTHER_CLASSES["bert"])
        }
        assert len(hashes) == 1

    @pytest.mark.parametrize(
        ("folder", "loaders"),
        [
            ("stories260K-llama", (tf.LlamaModel, tf.LlamaForCausalLM)),
            ("vit-cifar10-4L4H64", (tf.ViTModel, tf.ViTForImageClassification)),
        ],
    )
    def test_is_the_same_for_every_class_that_loads_further_real_checkpoints(
        self, folder: str, loaders: tuple[type[tf.PreTrainedModel], ...], test_data: Path
    ):
        path = test_data / "models" / folder
        hashes = {backbone_fingerprint(loader.from_pretrained(path)) for loader in loaders}
        assert len(hashes) == 1

    @pytest.mark.parametrize("name", NAMES)
    def test_changes_with_every_weight_of_the_backbone(self, name: str):
        model = tiny_model(name)
        seen = {backbone_fingerprint(model)}
        left_out = {*task_head_names(model), *optional_parameter_names(model)}
        parameters = {n: p for n, p in model.named_parameters() if n not in left_out}
        for parameter in parameters.values():
            with torch.no_grad():
                parameter.view(-1)[-1].add_(0.01)
            seen.add(backbone_fingerprint(model))
        assert len(seen) == 1 + len(parameters)

    @pytest.mark.parametrize("name", NAMES)
    def test_leaves_the_task_head_out(self, name: str):
        model = tiny_model(name)
        before = backbone_fingerprint(model)
        with torch.no_grad():
            for parameter_name in task_head_names(model):
                model.get_parameter(parameter_name).add_(1)
        assert backbone_fingerprint(model) == before

    def test_does_not_depend_on_the_number_of_labels(self):
        two, five = tiny_model("bert"), tiny_model("bert", num_labels=5)
        five.base_model.load_state_dict(two.base_model.state_dict())
        assert backbone_fingerprint(five) == backbone_fingerprint(two)

    @pytest.mark.parametrize("name", ["bert", "vit"])
    def test_leaves_the_pooler_out(self, name: str):
        model = OTHER_CLASSES[name][0](ARCHITECTURES[name].config(**ARCHITECTURES[name].arguments))
        before = backbone_fingerprint(model)
        with torch.no_grad():
            model.pooler.dense.weight.add_(1)
        assert backbone_fingerprint(model) == before

    def test_changes_when_two_layers_swap(self):
        model = tiny_model("bert")
        before = backbone_fingerprint(model)
        blocks = blocks_of(model)
        blocks[0], blocks[1] = blocks[1], blocks[0]
        assert backbone_fingerprint(model) != before

    def test_changes_when_two_layers_swap_only_their_feed_forward_weights(self):
        model = tiny_model("bert")
        before = backbone_fingerprint(model)
        first, second = blocks_of(model)[:2]
        first.intermediate, second.intermediate = second.intermediate, first.intermediate
        assert backbone_fingerprint(model) != before

    def test_changes_when_query_and_key_swap(self):
        model = tiny_model("bert")
        before = backbone_fingerprint(model)
        attention = blocks_of(model)[0].attention.self
        attention.query, attention.key = attention.key, attention.query
        assert backbone_fingerprint(model) != before

    @pytest.mark.parametrize(
        ("name", "config"),
        [
            ("bert", {"hidden_act": "relu"}),
            ("bert", {"layer_norm_eps": 1e-5}),
            ("distilbert", {"activation": "relu"}),
            ("gpt2", {"activation_function": "relu"}),
            ("gpt2", {"layer_norm_epsilon": 1e-6}),
            ("vit", {"hidden_act": "relu"}),
            ("vit", {"layer_norm_eps": 1e-5}),
            ("llama", {"rms_norm_eps": 1e-5}),
            ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
            ("llama", {"rope_parameters": ROPE_LINEAR}),
            ("llama", {"rope_parameters": {**ROPE_LINEAR, "factor": 4.0}}),
            ("llama", {"rope_parameters": ROPE_YARN}),
            ("qwen3", {"hidden_act": "relu"}),
            ("qwen3", QWEN3_WINDOW),
            ("modernbert", {"hidden_activation": "relu"}),
            ("modernbert", {"norm_eps": 1e-6}),
            ("modernbert", {"local_attention": 64}),
            ("modernbert", {"layer_types": ["full_attention"] * 3}),
        ],
    )
    def test_changes_with_configuration_that_changes_outputs(
        self, name: str, config: dict[str, object], tmp_path: Path
    ):
        plain, other = tiny_model(name), tiny_model(name, **config)
        assert all(
            torch.equal(a, b) for a, b in zip(plain.parameters(), other.parameters(), strict=True)
        )
        expected = backbone_fingerprint(other)
        assert expected != backbone_fingerprint(plain)
        other.save_pretrained(tmp_path)
        for loader in (ARCHITECTURES[name].classifier, *OTHER_CLASSES[name]):
            assert backbone_fingerprint(loader.from_pretrained(tmp_path)) == expected, loader

    @pytest.mark.parametrize(
        ("name", "config"),
        [
            ("llama", {"rope_parameters": {"rope_theta": 10000}}),
            ("llama", {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}),
            ("llama", {"use_cache": False, "attention_dropout": 0.5}),
            ("qwen3", {"sliding_window": 4, "use_sliding_window": False}),
            ("bert", {"hidden_dropout_prob": 0.5, "problem_type": "regression"}),
        ],
    )
    def test_does_not_depend_on_the_spelling_of_a_configuration(
        self, name: str, config: dict[str, object]
    ):
        expected = backbone_fingerprint(tiny_model(name))
        assert backbone_fingerprint(tiny_model(name, **config)) == expected

    def test_does_not_see_switches_of_single_architectures(self):
        expected = backbone_fingerprint(tiny_model("gpt2"))
        other = tiny_model("gpt2", scale_attn_by_inverse_layer_idx=True)
        batch = tiny_batch("gpt2")
        assert not torch.equal(other(**batch).logits, tiny_model("gpt2")(**batch).logits)
        assert backbone_fingerprint(other) == expected

    def test_changes_with_the_number_of_heads_at_equal_weights(self):
        four, two = tiny_model("bert"), tiny_model("bert", num_attention_heads=2)
        two.load_state_dict(four.state_dict())
        assert backbone_fingerprint(two) != backbone_fingerprint(four)

    def test_differs_between_architectures_at_equal_weights(self):
        roberta, xlm = tiny_model("roberta"), tiny_model("xlm-roberta")
        xlm.load_state_dict(roberta.state_dict())
        assert backbone_fingerprint(xlm) != backbone_fingerprint(roberta)

    def test_is_that_of_the_dtype_in_memory(self):
        hashes = {
            backbone_fingerprint(tiny_model("bert", dtype=dtype))
            for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
        }
        assert len(hashes) == 4

    def test_follows_tied_weights(self):
        settings = ARCHITECTURES["gpt2"].config(**ARCHITECTURES["gpt2"].arguments)
        model = tf.GPT2LMHeadModel(settings)
        assert model.lm_head.weight is model.transformer.wte.weight
        bare = tf.GPT2Model(settings)
        bare.load_state_dict(model.transformer.state_dict())
        assert backbone_fingerprint(model) == backbone_fingerprint(bare)

    def test_leaves_the_model_as_it_was(self):
        model = tiny_model("modernbert")
        before = copy.deepcopy(model.state_dict())
        backbone_fingerprint(model)
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("bert", "sha256:a546eb8b413b6af0316cce45a4c4f68999fae058c4db829db364815533734515"),
            ("gpt2", "sha256:e9ea4ddffd96e81d0b8214f899886ab19984491cb51556a636f150e484682602"),
            ("llama", "sha256:64561580dc4d349f84bd260d5040e7f14f5db5d92149d76752439a405bfe2444"),
        ],
    )
    def test_equals_the_one_in_stored_deltas(self, name: str, expected: str):
        assert backbone_fingerprint(counted(tiny_model(name))) == expected

    def test_refuses_an_architecture_whose_heads_are_unknown(self):
        with pytest.raises(UnsupportedArchitectureError, match="albert"):
            backbone_fingerprint(unsupported_model())


class TestRowsFingerprint:
    def test_does_not_depend_on_the_order(self):
        rows = rows_of(tiny_model("bert"))
        backwards = dict(reversed(rows.items()))
        assert list(backwards) != list(rows)
        assert rows_fingerprint(backwards) == rows_fingerprint(rows)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_is_the_same_for_the_same_checkpoint_in_another_dtype(self, dtype: torch.dtype):
        exact = rows_fingerprint(rows_of(tiny_model("bert")))
        assert rows_fingerprint(rows_of(tiny_model("bert", dtype=dtype))) == exact

    def test_changes_with_every_tensor(self):
        rows = rows_of(tiny_model("bert"))
        seen = {rows_fingerprint(rows)}
        for name, tensor in rows.items():
            changed = tensor.clone()
            changed.view(-1)[0] += 1
            seen.add(rows_fingerprint({**rows, name: changed}))
        assert len(seen) == 1 + len(rows) == 1 + 3 * 6

    def test_changes_with_a_name(self):
        rows = rows_of(tiny_model("bert"))
        renamed = {name.replace("layers.0", "layers.1"): tensor for name, tensor in rows.items()}
        assert rows_fingerprint(renamed) != rows_fingerprint(rows)

    def test_changes_with_a_shape(self):
        assert rows_fingerprint({"a": torch.zeros(2, 3)}) != rows_fingerprint(
            {"a": torch.zeros(3, 2)}
        )

    def test_does_not_see_a_change_below_a_bfloat16_step(self):
        assert rows_fingerprint({"a": torch.tensor([1.0])}) == rows_fingerprint(
            {"a": torch.tensor([1.001])}
        )
        assert rows_fingerprint({"a": torch.tensor([1.0])}) != rows_fingerprint(
            {"a": torch.tensor([1.0078125])}
        )

    def test_equals_the_one_in_stored_deltas(self):
        rows = {
            "layers.0.heads.1.query.weight": torch.tensor([[1.0, -2.0], [0.5, 0.0]]),
            "layers.0.heads.1.query.bias": torch.tensor([3.0, 4.0]),
        }
        # bfloat16 is the upper half of float32: 1 = 3F80, -2 = C000, 0.5 = 3F00, 3 = 4040, 4 = 4080
        weight = b"bfloat16[2, 2]" + bytes.fromhex("803f 00c0 003f 0000")
        bias = b"bfloat16[2]" + bytes.fromhex("4040 8040")
        parts = (
            b"layers.0.heads.1.query.bias\0" + sha256(bias).digest(),
            b"layers.0.heads.1.query.weight\0" + sha256(weight).digest(),
        )
        assert rows_fingerprint(rows) == "sha256:" + sha256(b"".join(parts)).hexdigest()
