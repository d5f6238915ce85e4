"""hifi.deltas.delta: merging is a copy, and so is undoing it."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as tf

from hifi.backbones.fingerprint import rows_fingerprint
from hifi.backbones.heads import HeadId, describe, optional_parameter_names, task_head_names
from hifi.deltas.delta import HeadDelta
from hifi.errors import (
    BackboneMismatchError,
    HifiError,
    InvalidArgumentError,
    TaskHeadMismatchError,
    TunerError,
    UnsupportedArchitectureError,
)
from hifi.selection.scoring import select_heads
from tests.architectures import ARCHITECTURES, NAMES, tiny_batch, tiny_model, unsupported_model
from tests.deltas import HEADS, bits_of, equal_bits, hand_made_delta, rows_of

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
D = 32  # hidden size of the tiny models


class TestMerge:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("name", NAMES)
    def test_restores_the_backbone_bit_for_bit(self, name: str, dtype: torch.dtype):
        model = tiny_model(name, dtype=dtype)
        delta = hand_made_delta(model)
        before = bits_of(model)
        displaced = delta.merge(model)
        tuned = bits_of(model)
        assert not equal_bits(tuned, before)
        redo = displaced.merge(model)
        assert equal_bits(bits_of(model), before)
        for _ in range(2):
            undo = redo.merge(model)
            assert equal_bits(bits_of(model), tuned)
            redo = undo.merge(model)
            assert equal_bits(bits_of(model), before)

    @pytest.mark.parametrize("name", NAMES)
    def test_changes_the_selected_rows_and_the_task_head_and_nothing_else(self, name: str):
        model = tiny_model(name)
        delta = hand_made_delta(model)
        before = bits_of(model)
        delta.merge(model)
        after = bits_of(model)
        assert equal_bits(rows_of(model), delta.rows)
        backbone = describe(model)
        others = [
            HeadId(layer, head)
            for layer in range(backbone.num_layers)
            for head in range(backbone.num_heads)
            if HeadId(layer, head) not in HEADS
        ]
        assert equal_bits(rows_of(model, heads=others), rows_of(tiny_model(name), heads=others))
        attention = {m for layer in backbone.layers for m in layer.module_names}
        for parameter, tensor in after.items():
            if parameter in delta.task_head:
                assert torch.equal(tensor, delta.task_head[parameter])
            elif parameter.rpartition(".")[0] not in attention:
                assert torch.equal(tensor, before[parameter]), parameter

    @pytest.mark.parametrize("encoding", ["float32", "bfloat16", "int8"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    def test_every_encoding_can_be_undone_bit_for_bit(
        self, tmp_path: Path, encoding: str, dtype: torch.dtype
    ):
        hand_made_delta(tiny_model("bert")).save(tmp_path / "d", encoding=encoding)
        model = tiny_model("bert", dtype=dtype)
        before = bits_of(model)
        HeadDelta.load(tmp_path / "d").merge(model).merge(model)
        assert equal_bits(bits_of(model), before)

    def test_rounds_the_rows_to_the_models_dtype(self):
        model = tiny_model("bert", dtype=torch.bfloat16)
        delta = hand_made_delta(tiny_model("bert"))
        delta.merge(model)
        expected = {name: tensor.bfloat16() for name, tensor in delta.rows.items()}
        assert equal_bits(rows_of(model), expected)
        assert model.classifier.weight.dtype == torch.bfloat16

    def test_the_displaced_delta_knows_what_it_replaces(self):
        model = tiny_model("bert", dtype=torch.float64)
        delta = hand_made_delta(model)
        originals = rows_of(model)
        displaced = delta.merge(model)
        assert equal_bits(displaced.rows, originals)
        assert equal_bits(displaced.base, rows_of(model))
        assert displaced.metadata.rows_fingerprint == rows_fingerprint(delta.rows)
        assert displaced.metadata.compute_dtype == "float64"
        assert displaced.metadata.fingerprint == delta.metadata.fingerprint
        assert displaced.heads == delta.heads == HEADS
        # The task and its training were the delta's, not the displaced rows'.
        assert (displaced.metadata.task, displaced.metadata.labels) == (None, None)
        assert displaced.metadata.training == {}

    def test_the_displaced_delta_survives_a_file(self, tmp_path: Path):
        model = tiny_model("bert")
        before = bits_of(model)
        hand_made_delta(model).merge(model).save(tmp_path / "displaced.safetensors")
        HeadDelta.load(tmp_path / "displaced.safetensors").merge(model)
        assert equal_bits(bits_of(model), before)

    def test_deltas_of_other_heads_can_be_merged_on_top_of_each_other(self):
        model = tiny_model("bert")
        before = bits_of(model)
        first = hand_made_delta(model, heads=[HeadId(0, 0)], task_head=False)
        second = hand_made_delta(model, heads=[HeadId(0, 3), HeadId(1, 2)], task_head=False)
        displaced = [delta.merge(model) for delta in (first, second)]
        assert equal_bits(rows_of(model, heads=first.heads), first.rows)
        assert equal_bits(rows_of(model, heads=second.heads), second.rows)
        for delta in displaced:
            delta.merge(model)
        assert equal_bits(bits_of(model), before)

    def test_without_the_task_head_leaves_the_models_alone(self):
        model = tiny_model("bert", num_labels=5)
        before = bits_of(model)
        delta = hand_made_delta(tiny_model("bert"))
        backbone = tiny_model("bert").bert.state_dict()
        model.bert.load_state_dict(backbone)
        displaced = delta.merge(model, task_head=False)
        assert displaced.task_head == {}
        assert torch.equal(model.classifier.weight, before["classifier.weight"])
        displaced.merge(model)
        assert equal_bits(
            {k: v for k, v in bits_of(model).items() if k.startswith("bert.")},
            {f"bert.{k}": v for k, v in backbone.items()},
        )

    def test_a_delta_without_a_task_head_fits_any(self):
        model = tiny_model("bert")
        before = bits_of(model)
        displaced = hand_made_delta(model, task_head=False).merge(model)
        assert displaced.task_head == {}
        assert torch.equal(model.classifier.weight, before["classifier.weight"])

    def test_carries_a_pooler_as_part_of_the_task_head(self):
        model = tiny_model("bert")
        before = bits_of(model)
        delta = hand_made_delta(model, extra=["bert.pooler"])
        assert "bert.pooler.dense.weight" in delta.task_head
        displaced = delta.merge(model)
        assert torch.equal(
            model.bert.pooler.dense.weight, delta.task_head["bert.pooler.dense.weight"]
        )
        displaced.merge(model)
        assert equal_bits(bits_of(model), before)

    def test_carries_an_output_layer_that_is_not_the_backbones(self):
        settings = ARCHITECTURES["llama"].config(**ARCHITECTURES["llama"].arguments)
        model = tf.LlamaForCausalLM(settings)
        before = bits_of(model)
        delta = hand_made_delta(model, extra=["lm_head"])
        displaced = delta.merge(model)
        assert torch.equal(model.lm_head.weight, delta.task_head["lm_head.weight"])
        displaced.merge(model)
        assert equal_bits(bits_of(model), before)

    @pytest.mark.parametrize("name", NAMES)
    def test_gives_the_logits_of_the_tuned_model(self, name: str, tmp_path: Path):
        model, batch = tiny_model(name), tiny_batch(name)
        delta = hand_made_delta(model)
        untuned = model(**batch).logits
        tuned = copy.deepcopy(model)
        delta.merge(tuned)
        delta.save(tmp_path / "d")
        HeadDelta.load(tmp_path / "d").merge(model)
        assert torch.equal(model(**batch).logits, tuned(**batch).logits)
        assert not torch.allclose(model(**batch).logits, untuned, atol=1e-3)

    def test_leaves_no_trace_in_autograd(self):
        model = tiny_model("bert")
        hand_made_delta(model).merge(model)
        assert all(p.is_leaf and p.requires_grad and p.grad is None for p in model.parameters())


class TestSelection:
    def test_is_the_recorded_one(self):
        model = tiny_model("bert")
        recorded = select_heads(model, [tiny_batch("bert")], k=1)
        delta = hand_made_delta(model, heads=recorded.heads, selection=recorded.to_dict())
        assert delta.selection.to_dict() == recorded.to_dict()

    @pytest.mark.parametrize("record", [{}, {"num_layers": 9, "layers": "none"}])
    def test_of_an_invalid_record_has_the_heads_alone(self, record):
        selection = hand_made_delta(tiny_model("bert"), selection=record).selection
        assert (selection.heads, selection.num_layers, selection.layers) == (HEADS, 3, ())

    def test_of_no_rows_is_empty(self):
        delta = hand_made_delta(tiny_model("bert"), heads=[])
        assert (delta.selection.heads, delta.selection.num_layers) == ((), 0)


class TestRefusedMerge:
    """A refused merge changes nothing."""

    def refused(
        self, delta: HeadDelta, model: tf.PreTrainedModel, error: type[HifiError], match: str
    ) -> None:
        before = bits_of(model)
        with pytest.raises(error, match=match):
            delta.merge(model)
        assert equal_bits(bits_of(model), before)

    def test_another_backbone_names_model_revision_and_both_hashes(self):
        delta = hand_made_delta(tiny_model("bert"))
        other = tiny_model("bert", seed=1)
        found = rows_fingerprint(rows_of(other))
        match = f"'owner/tiny' .revision 0123abcd.*{delta.metadata.rows_fingerprint}.*{found}"
        self.refused(delta, other, BackboneMismatchError, match)

    def test_a_revision_that_differs_in_one_replaced_weight(self):
        model = tiny_model("bert")
        delta = hand_made_delta(model)
        with torch.no_grad():
            model.bert.encoder.layer[2].attention.self.value.weight[0, 0] += 0.1
        self.refused(delta, model, BackboneMismatchError, "fingerprint")

    def test_the_same_delta_twice(self):
        model = tiny_model("bert")
        delta = hand_made_delta(model)
        delta.merge(model)
        self.refused(delta, model, BackboneMismatchError, "already merged into this model")

    @pytest.mark.parametrize("encoding", ["bfloat16", "int8"])
    def test_the_same_differences_twice(self, tmp_path: Path, encoding: str):
        model = tiny_model("bert")
        hand_made_delta(model).save(tmp_path / "d", encoding=encoding)
        delta = HeadDelta.load(tmp_path / "d")
        delta.merge(model)
        self.refused(delta, model, BackboneMismatchError, "merging back what it displaced")

    def test_another_architecture(self):
        delta = hand_made_delta(tiny_model("bert"))
        model = tiny_model("roberta")
        model.config.name_or_path = "owner/other"
        match = "on 'owner/tiny' .*architecture is 'bert'; that of 'owner/other' is 'roberta'"
        self.refused(delta, model, BackboneMismatchError, match)
        with pytest.raises(BackboneMismatchError, match=match):
            delta.check_backbone(model)

    def test_an_unsupported_architecture(self):
        delta = hand_made_delta(tiny_model("bert"))
        self.refused(delta, unsupported_model(), UnsupportedArchitectureError, "albert")

    def test_fewer_layers(self):
        delta = hand_made_delta(tiny_model("bert"))
        model = tiny_model("bert", num_hidden_layers=2)
        self.refused(delta, model, BackboneMismatchError, "layers 0..1")

    def test_fewer_heads(self):
        delta = hand_made_delta(tiny_model("bert"), heads=[HeadId(0, 3)])
        model = tiny_model("bert", num_attention_heads=2)
        self.refused(delta, model, BackboneMismatchError, "heads 0..1")

    def test_wider_heads(self):
        delta = hand_made_delta(tiny_model("bert"))
        model = tiny_model("bert", num_attention_heads=2)
        match = r"layers\.0\.heads\.1\.key\.bias is of shape \[8\] .* of shape \[16\]"
        self.refused(delta, model, BackboneMismatchError, match)

    def test_biases_on_one_side_only(self):
        delta = hand_made_delta(tiny_model("llama", attention_bias=True))
        match = r"key\.bias is of shape \[8\] in the head delta and missing in the model"
        self.refused(delta, tiny_model("llama"), BackboneMismatchError, match)
        delta = hand_made_delta(tiny_model("llama"))
        model = tiny_model("llama", attention_bias=True)
        self.refused(delta, model, BackboneMismatchError, "key.bias is missing in the head delta")

    def test_another_number_of_labels(self):
        model = tiny_model("bert", num_labels=5)
        delta = hand_made_delta(model)
        model.classifier = torch.nn.Linear(D, 3)
        match = r"classifier\.bias is of shape \[5\] .* of shape \[3\].*task_head=False"
        self.refused(delta, model, TaskHeadMismatchError, match)

    def test_a_model_without_a_task_head(self):
        model = tiny_model("bert")
        delta = hand_made_delta(model)
        self.refused(delta, model.bert, TaskHeadMismatchError, "missing in the model")

    def test_a_task_head_that_the_delta_holds_only_in_part(self):
        model = tiny_model("distilbert")
        delta = hand_made_delta(model)
        part = {n: t for n, t in delta.task_head.items() if n.startswith("classifier")}
        match = "pre_classifier.bias is missing in the head delta"
        self.refused(replace(delta, task_head=part), model, TaskHeadMismatchError, match)

    def test_a_task_head_that_reaches_for_the_heads_rows(self):
        model = tiny_model("bert")
        name = "bert.encoder.layer.1.attention.self.query.weight"
        delta = hand_made_delta(model)
        hostile = replace(delta, task_head={**delta.task_head, name: torch.zeros(D, D)})
        self.refused(hostile, model, TaskHeadMismatchError, "query.weight")

    @pytest.mark.parametrize("name", NAMES)
    def test_a_task_head_that_reaches_for_anything_in_the_backbone(self, name: str):
        model = tiny_model(name)
        delta = hand_made_delta(model)
        allowed = {*task_head_names(model), *optional_parameter_names(model)}
        reached = {n: p for n, p in model.named_parameters() if n not in allowed}
        assert len(reached) >= 20
        before = bits_of(model)
        for each, parameter in reached.items():
            task_head = {**delta.task_head, each: torch.zeros_like(parameter)}
            with pytest.raises(TaskHeadMismatchError, match=f"{re.escape(each)} is part of the"):
                replace(delta, task_head=task_head).merge(model)
        assert equal_bits(bits_of(model), before)

    def test_a_task_head_that_reaches_for_the_embeddings_by_a_tied_name(self):
        settings = ARCHITECTURES["gpt2"].config(**ARCHITECTURES["gpt2"].arguments)
        model = tf.GPT2LMHeadModel(settings)
        delta = hand_made_delta(model)
        hostile = replace(delta, task_head={"lm_head.weight": torch.zeros(99, D)})
        self.refused(hostile, model, TaskHeadMismatchError, "lm_head.weight is part of the model's")

    def test_a_float16_copy_of_another_dtype_says_what_to_load(self):
        delta = hand_made_delta(tiny_model("bert"))
        model = tiny_model("bert", dtype=torch.float16)
        match = "load that backbone in its stored dtype, in float32 or in bfloat16"
        self.refused(delta, model, BackboneMismatchError, match)

    @pytest.mark.parametrize("part", ["rows", "task_head"])
    def test_values_beyond_float16(self, part: str):
        model = tiny_model("bert", dtype=torch.float16)
        delta = hand_made_delta(model)
        tensors = dict(getattr(delta, part))
        name = next(name for name in tensors if name.endswith("weight"))
        tensors[name] = tensors[name].clone()
        tensors[name][0, 0] = -70_000.0
        match = rf"{name} .* up to 70000, but the model is float16, whose largest number is 65504"
        self.refused(replace(delta, **{part: tensors}), model, BackboneMismatchError, match)

    def test_a_projection_that_something_else_holds(self):
        class Wrapped(torch.nn.Linear):
            pass

        model = tiny_model("bert")
        delta = hand_made_delta(model)
        model.bert.encoder.layer[2].attention.self.value.__class__ = Wrapped
        self.refused(delta, model, TunerError, r"layer\.2\.attention\.self\.value is a Wrapped")


class TestCheckBackbone:
    def test_accepts_the_backbone_with_any_task_head(self):
        model = tiny_model("bert")
        hand_made_delta(model).check_backbone(model.bert)

    def test_refuses_a_revision_that_differs_outside_the_replaced_rows(self):
        model = tiny_model("bert")
        delta = hand_made_delta(model)
        with torch.no_grad():
            model.bert.embeddings.word_embeddings.weight[3, 0] += 1
        with pytest.raises(BackboneMismatchError, match=r"owner/tiny.*0123abcd.*sha256.*sha256"):
            delta.check_backbone(model)

    def test_detects_what_merge_does_not_check(self, tmp_path: Path):
        model = tiny_model("bert")
        delta = hand_made_delta(model)
        with torch.no_grad():
            model.bert.encoder.layer[1].output.dense.weight[0, 0] += 1
        with pytest.raises(BackboneMismatchError):
            delta.check_backbone(model)
        delta.with_base(model)
        delta.to_lora(tmp_path / "adapter", model)
        delta.merge(model)


class TestWithBase:
    @pytest.mark.parametrize("encoding", ["bfloat16", "int8"])
    def test_lets_a_float32_file_be_saved_as_differences(self, tmp_path: Path, encoding: str):
        model = tiny_model("bert")
        delta = hand_made_delta(model)
        delta.save(tmp_path / "at once", encoding=encoding)
        delta.save(tmp_path / "float32")
        loaded = HeadDelta.load(tmp_path / "float32")
        assert loaded.base is None
        with pytest.raises(InvalidArgumentError, match=r"with_base\(model\)"):
            loaded.save(tmp_path / "no base", encoding=encoding)
        assert not (tmp_path / "no base").exists()
        loaded.with_base(model).save(tmp_path / "later", encoding=encoding)
        assert (tmp_path / "later").read_bytes() == (tmp_path / "at once").read_bytes()

    def test_turns_differences_into_rows(self, tmp_path: Path):
        model = tiny_model("bert")
        hand_made_delta(model).save(tmp_path / "d", encoding="bfloat16")
        coarse = HeadDelta.load(tmp_path / "d")
        assert coarse.values == "differences"
        resolved = coarse.with_base(model)
        assert resolved.values == "rows"
        merged = copy.deepcopy(model)
        coarse.merge(merged)
        assert equal_bits(rows_of(merged), resolved.rows)

    def test_refuses_another_backbone(self):
        delta = hand_made_delta(tiny_model("bert"))
        with pytest.raises(BackboneMismatchError, match="fingerprint"):
            delta.with_base(tiny_model("bert", seed=1))

    def test_refuses_a_merged_model(self):
        model = tiny_model("bert")
        delta = hand_made_delta(model)
        delta.merge(model)
        with pytest.raises(BackboneMismatchError, match="already merged"):
            delta.with_base(model)


class TestComputeDtype:
    """Differences are taken against W as the tuning saw it, wherever they are decoded."""

    def test_a_bfloat16_tuning_decodes_alike_on_a_float32_and_a_bfloat16_backbone(
        self, tmp_path: Path
    ):
        checkpoint = tiny_model("bert")
        trained_on = tiny_model("bert", dtype=torch.bfloat16)
        delta = hand_made_delta(trained_on)
        assert delta.metadata.compute_dtype == "bfloat16"
        delta.save(tmp_path / "d", encoding="bfloat16")
        loaded = HeadDelta.load(tmp_path / "d")
        on_float32, on_bfloat16 = loaded.with_base(checkpoint), loaded.with_base(trained_on)
        assert equal_bits(on_float32.rows, on_bfloat16.rows)

    @pytest.mark.parametrize("encoding", ["float32", "bfloat16"])
    @pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float32])
    def test_a_narrower_model_is_refused(self, tmp_path: Path, narrow: torch.dtype, encoding: str):
        wide = torch.float32 if narrow == torch.bfloat16 else torch.float64
        tuned = tiny_model("bert", dtype=wide)
        with torch.no_grad():  # the narrower dtype does not hold it exactly
            tuned.bert.embeddings.word_embeddings.weight[3, 0] = 1 + torch.finfo(wide).eps
        hand_made_delta(tuned).save(tmp_path / "d", encoding=encoding)
        delta = HeadDelta.load(tmp_path / "d")
        model = tiny_model("bert", dtype=narrow)
        wanted, found = (str(dtype).removeprefix("torch.") for dtype in (wide, narrow))
        match = f"in {wanted}, but the model is {found} .*dtype=torch.{wanted}"
        with pytest.raises(BackboneMismatchError, match=match):
            delta.with_base(model)
        with pytest.raises(BackboneMismatchError, match=match):
            delta.to_lora(tmp_path / "adapter", model)
        assert not (tmp_path / "adapter").exists()
        delta.merge(model)  # a copy, which rounds once

    def test_the_difference_is_to_the_rounded_rows(self, tmp_path: Path):
        trained_on = tiny_model("bert", dtype=torch.bfloat16)
        delta = hand_made_delta(trained_on)
        delta.save(tmp_path / "d", encoding="bfloat16")
        for name, stored in HeadDelta.load(tmp_path / "d").rows.items():
            if name.endswith(".weight"):
                exact = delta.rows[name] - rows_of(trained_on)[name].float()
                assert torch.equal(stored, exact.bfloat16().float())
