"""HeadTuner on every architecture: what it trains, returns, restores and refuses."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
)

from hifi.backbones.checkpoint import new_parameter_names
from hifi.backbones.fingerprint import backbone_fingerprint
from hifi.backbones.heads import HeadId, describe, read_rows
from hifi.errors import InvalidArgumentError, TunerError
from hifi.selection.head_selection import HeadSelection
from hifi.tuning.tuner import HeadTuner, detach
from tests.architectures import LAYERS, NAMES, tiny_batch, tiny_model
from tests.deltas import HEADS, bits_of, equal_bits
from tests.tiny_tuning import frozen_copy, selection, train


def selected_rows(model, heads=HEADS):
    """Bits of every selected row, by (head, projection)."""
    backbone = describe(model)
    return {
        (head, projection.name): read_rows(model, projection, head.head)
        for head in heads
        for projection in backbone.layers[head.layer].projections
    }


@pytest.mark.parametrize("name", NAMES)
class TestEveryArchitecture:
    def test_moves_the_selected_rows_and_the_task_head_only(self, name):
        model = tiny_model(name)
        frozen, rows = frozen_copy(model), selected_rows(model)
        head = {n: p.detach().clone() for n, p in model.named_parameters()}
        tuner = HeadTuner(model, selection())
        train(model, tuner.parameters(), name=name)
        tuner.detach()
        after = frozen_copy(model)
        assert all(torch.equal(after[key], frozen[key]) for key in frozen)
        moved = selected_rows(model)
        assert all(not torch.equal(moved[key][0], rows[key][0]) for key in rows)
        parameters = dict(model.named_parameters())
        assert all(not torch.equal(parameters[n], head[n]) for n in new_parameter_names(model))

    def test_takes_the_steps_that_full_fine_tuning_takes_on_these_rows(self, name):
        model, reference = tiny_model(name), tiny_model(name)
        batch = tiny_batch(name, labels=True)
        tuner = HeadTuner(model, selection())
        model(**batch).loss.backward()
        reference(**batch).loss.backward()
        gradients = {n: p.grad for n, p in reference.named_parameters()}
        for layer in describe(reference).layers:
            for module_name in layer.module_names:
                module = model.get_submodule(module_name)
                if not hasattr(module, "tuned_weight"):
                    continue
                expected = gradients[f"{module_name}.weight"]
                expected = (expected.T if module.transposed else expected)[module.rows]
                torch.testing.assert_close(module.tuned_weight.grad, expected)
                if module.tuned_bias is not None:
                    expected = gradients[f"{module_name}.bias"][module.rows]
                    torch.testing.assert_close(module.tuned_bias.grad, expected)
        assert tuner.parameters()

    def test_merged_equals_tuned_and_undo_is_exact(self, name):
        model, fresh = tiny_model(name), tiny_model(name)
        tuner = HeadTuner(model, selection())
        train(model, tuner.parameters(), name=name)
        batch = tiny_batch(name, seed=7)
        tuned_logits = model(**batch).logits
        before = {key: value.clone() for key, value in fresh.state_dict().items()}
        displaced = tuner.delta().merge(fresh)
        assert torch.equal(fresh(**batch).logits, tuned_logits)
        detached = tuner.detach().state_dict()
        assert all(torch.equal(value, detached[key]) for key, value in fresh.state_dict().items())
        displaced.merge(fresh)
        assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())

    def test_saves_what_the_plain_model_would(self, name, tmp_path):
        model = tiny_model(name)
        keys = list(model.state_dict())
        tuner = HeadTuner(model, selection())
        train(model, tuner.parameters(), name=name)
        assert sorted(model.state_dict()) == sorted(keys)
        model.save_pretrained(tmp_path)
        batch = tiny_batch(name, seed=7)
        loaded = type(model).from_pretrained(tmp_path).eval()
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


class TestParameters:
    def test_are_the_tuned_rows_and_the_task_head(self):
        model = tiny_model("bert")
        tuner = HeadTuner(model, selection())
        # 3 heads × 3 projections × 8 rows × (32 weights + bias), pooler 32 × 32 + 32, classifier
        # 2 × 32 + 2: no checkpoint brought the pooler of this model.
        assert sum(p.numel() for p in tuner.parameters()) == 3 * 3 * 8 * 33 + 32 * 33 + 66
        trained = {id(p) for p in model.parameters() if p.requires_grad}
        assert {id(p) for p in tuner.parameters()} == trained

    def test_include_further_task_head_modules(self):
        model = tiny_model("bert")
        tuner = HeadTuner(model, selection(), task_head=["bert.pooler"])
        assert "bert.pooler.dense.weight" in dict(tuner.named_parameters())
        assert "bert.pooler.dense.weight" in tuner.delta().task_head

    def test_count_666050_on_minilm(self, minilm_path):
        """k=3 of 12 heads of 32 in 6 layers of width 384, and a classifier of two labels."""
        model = AutoModelForSequenceClassification.from_pretrained(minilm_path)
        heads = [HeadId(layer, head) for layer in range(6) for head in (0, 5, 11)]
        tuner = HeadTuner(model, HeadSelection.from_heads(heads, num_layers=6))
        assert sum(p.numel() for p in tuner.parameters()) == 666_050

    def test_are_the_share_of_bert_large_that_the_paper_states(self):
        """14,169,600 weights for k=3, 4.23 % of the model, and half of it with mid-top."""
        config = BertConfig(
            hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
        )
        for first, expected in ((0, 14_169_600), (12, 7_084_800)):
            with torch.device("meta"):
                model = BertForSequenceClassification(config)
            total = sum(p.numel() for p in model.parameters())
            heads = [HeadId(layer, head) for layer in range(first, 24) for head in (2, 7, 11)]
            chosen = HeadSelection.from_heads(heads, num_layers=24)
            tuner = HeadTuner(model, chosen, fingerprint="sha256:" + "0" * 64)
            rows = [p for n, p in tuner.named_parameters() if "tuned_" in n]
            assert sum(p.numel() for p in rows) == expected
            assert expected / total == pytest.approx(0.0423 if first == 0 else 0.0211, abs=5e-5)

    def test_stay_these_when_others_are_thawed(self):
        model = tiny_model("bert")
        tuner = HeadTuner(model, selection())
        names = [name for name, _ in tuner.named_parameters()]
        model.requires_grad_(requires_grad=True)
        assert [name for name, _ in tuner.named_parameters()] == names

    def test_names_of_private_biases_contain_bias(self):
        """Trainer gives no weight decay to parameters with such names."""
        tuner = HeadTuner(tiny_model("bert"), selection())
        vectors = [n for n, p in tuner.named_parameters() if p.dim() == 1]
        assert all("bias" in name for name in vectors)


class TestDelta:
    def test_records_the_given_metadata(self):
        tuner = HeadTuner(tiny_model("bert"), selection(), fingerprint="sha256:" + "a" * 64)
        metadata = tuner.delta(
            model="acme/backbone",
            revision="0123abc",
            task={"type": "classification"},
            labels=["no", "yes"],
            training={"epochs": 2},
        ).metadata
        assert metadata.model == "acme/backbone"
        assert metadata.revision == "0123abc"
        assert metadata.fingerprint == "sha256:" + "a" * 64
        assert metadata.task == {
            "type": "classification",
            "num_labels": 2,
            "problem_type": "single_label_classification",
        }
        assert metadata.labels == ["no", "yes"]
        assert metadata.training == {"epochs": 2}
        assert metadata.compute_dtype == "float32"
        assert metadata.selection["layers"][2]["selected"] == [0, 1]

    def test_takes_missing_metadata_from_the_model(self):
        model = tiny_model("bert", id2label={0: "no", 1: "yes"})
        model.config.name_or_path = "/somewhere/else/backbone"
        fingerprint = backbone_fingerprint(model)
        metadata = HeadTuner(model, selection()).delta().metadata
        assert (metadata.model, metadata.revision) == ("backbone", None)
        assert metadata.labels == ["no", "yes"]
        assert metadata.fingerprint == fingerprint

    def test_is_named_by_where_the_model_came_from_when_it_was_attached(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        commit = "0123456789abcdef0123456789abcdef01234567"
        snapshot = tmp_path / "models--owner--model" / "snapshots" / commit
        for folder in (snapshot, tmp_path / "models" / "mine"):
            tiny_model("bert").save_pretrained(folder)
        monkeypatch.chdir(tmp_path)
        tuners = [
            HeadTuner(BertForSequenceClassification.from_pretrained(place), selection())
            for place in (snapshot, "models/mine")
        ]
        monkeypatch.chdir("/")
        first, second = (tuner.delta().metadata for tuner in tuners)
        assert (first.model, first.revision) == ("owner/model", commit)
        assert (second.model, second.revision) == ("mine", None)
        named = tuners[0].delta(model="my-backbone").metadata
        assert (named.model, named.revision) == ("my-backbone", None)

    def test_names_the_packaged_model_as_the_command_line_does(self, minilm_path: Path):
        model = AutoModelForSequenceClassification.from_pretrained(minilm_path, num_labels=2)
        chosen = HeadSelection.from_heads([HeadId(0, 0)], num_layers=6)
        metadata = HeadTuner(model, chosen).delta().metadata
        assert (metadata.model, metadata.revision) == ("all-MiniLM-L6-v2", None)

    def test_has_no_labels_where_the_model_only_numbers_them(self):
        assert HeadTuner(tiny_model("bert"), selection()).delta().metadata.labels is None

    def test_does_not_change_when_training_goes_on(self):
        model = tiny_model("bert")
        tuner = HeadTuner(model, selection())
        delta = tuner.delta()
        before = {key: value.clone() for key, value in {**delta.rows, **delta.task_head}.items()}
        train(model, tuner.parameters(), name="bert")
        after = {**delta.rows, **delta.task_head}
        assert all(torch.equal(after[key], before[key]) for key in before)


class TestDetach:
    def test_leaves_a_plain_model(self):
        model = tiny_model("bert")
        model.bert.embeddings.requires_grad_(False)
        types = {name: type(module) for name, module in model.named_modules()}
        flags = {name: p.requires_grad for name, p in model.named_parameters()}
        HeadTuner(model, selection()).detach()
        assert {name: type(module) for name, module in model.named_modules()} == types
        assert {name: p.requires_grad for name, p in model.named_parameters()} == flags

    def test_restores_the_same_modules_with_their_hooks(self):
        model = tiny_model("bert")
        before, calls = dict(model.named_modules()), []
        query = model.bert.encoder.layer[2].attention.self.query
        query.register_forward_hook(lambda *_: calls.append(1))
        HeadTuner(model, selection()).detach()
        model(**tiny_batch("bert"))
        assert calls == [1]
        assert all(module is before[name] for name, module in model.named_modules())

    def test_leaves_modules_alone_that_came_later(self):
        model = tiny_model("bert")
        tuner = HeadTuner(model, selection())
        model.add_module("probe", torch.nn.Linear(2, 2))
        tuner.detach()
        assert model.probe.weight.requires_grad

    def test_works_on_a_copy_of_the_model_alone(self):
        model = tiny_model("bert", dtype=torch.bfloat16)
        tuner = HeadTuner(model, selection())
        twin = detach(copy.deepcopy(model))
        assert not any(module._forward_pre_hooks for module in twin.modules())
        assert {p.dtype for p in twin.parameters()} == {torch.bfloat16}
        HeadTuner(twin, selection())
        with pytest.raises(TunerError, match="no tuner"):
            detach(tiny_model("bert"))
        assert tuner.parameters()

    def test_ends_the_tuner(self):
        tuner = HeadTuner(tiny_model("bert"), selection())
        tuner.detach()
        for call in (tuner.detach, tuner.parameters, tuner.delta):
            with pytest.raises(TunerError, match="detached"):
                call()

    def test_allows_a_new_tuner_that_goes_on(self):
        model = tiny_model("bert")
        first = HeadTuner(model, selection())
        train(model, first.parameters(), name="bert")
        rows = first.rows()
        first.detach()
        second = HeadTuner(model, selection())
        assert all(torch.equal(value, rows[key]) for key, value in second.rows().items())


class TestUndo:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("name", NAMES)
    def test_restores_the_backbone_bit_for_bit(self, name, dtype):
        model = tiny_model(name, dtype=dtype)
        before = bits_of(model)
        tuner = HeadTuner(model, selection())
        train(model, tuner.parameters(), name=name, dtype=dtype)
        assert tuner.undo() is model
        after, head = bits_of(model), set(new_parameter_names(model))
        own = {key: value for key, value in before.items() if key not in head}
        assert equal_bits({key: after[key] for key in own}, own)
        assert not any(after[key].equal(before[key]) for key in head)

    def test_comes_after_a_detach_too(self):
        model = tiny_model("bert")
        rows = selected_rows(model)
        tuner = HeadTuner(model, selection())
        train(model, tuner.parameters(), name="bert")
        tuner.detach()
        tuner.undo()
        undone = selected_rows(model)
        assert all(undone[key][0].equal(rows[key][0]) for key in rows)
        HeadTuner(model, selection())


class TestRefusals:
    def test_a_second_tuner(self):
        model = tiny_model("bert")
        HeadTuner(model, selection())
        with pytest.raises(TunerError, match="already has a tuner"):
            HeadTuner(model, selection())

    def test_a_change_of_dtype_before_anything_changes(self):
        model = tiny_model("bert")
        HeadTuner(model, selection())
        with pytest.raises(TunerError, match="dtype"):
            model.to(torch.bfloat16)
        assert {p.dtype for p in model.parameters()} == {torch.float32}

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
    def test_a_backbone_of_another_dtype(self, dtype):
        match = rf"is {dtype}, .* load it with dtype=torch\.float32 or dtype=torch\.bfloat16"
        with pytest.raises(TunerError, match=match):
            HeadTuner(tiny_model("bert", dtype=dtype), selection())

    @pytest.mark.parametrize("head", [HeadId(0, 4), HeadId(2, 9)])
    def test_heads_that_the_model_lacks(self, head):
        with pytest.raises(InvalidArgumentError, match=r"layers 0\.\.2, heads 0\.\.3"):
            HeadTuner(tiny_model("bert"), selection((head,)))

    def test_a_selection_for_another_depth(self):
        other = HeadSelection.from_heads([HeadId(0, 0)], num_layers=LAYERS + 1)
        with pytest.raises(InvalidArgumentError, match="3 layers"):
            HeadTuner(tiny_model("bert"), other)

    def test_no_heads(self):
        with pytest.raises(InvalidArgumentError, match="at least one head"):
            HeadTuner(tiny_model("bert"), selection(()))

    def test_an_unknown_task_head_module(self):
        model = tiny_model("bert")
        with pytest.raises(InvalidArgumentError, match=r"bert\.poolr"):
            HeadTuner(model, selection(), task_head=["bert.poolr"])
        HeadTuner(model, selection())  # nothing was changed

    @pytest.mark.parametrize("name", ["bert.encoder", "bert.encoder.layer.1", "bert.embeddings"])
    def test_parts_of_the_backbone_as_task_head(self, name):
        with pytest.raises(InvalidArgumentError, match="not part of its backbone"):
            HeadTuner(tiny_model("bert"), selection(), task_head=[name])

    def test_wrapped_projections(self):
        model = tiny_model("bert")
        layer = model.bert.encoder.layer[2].attention.self
        layer.key = torch.nn.Sequential(layer.key)
        with pytest.raises(TunerError, match="not a plain projection"):
            HeadTuner(model, selection())
        assert all(p.requires_grad for p in model.parameters())
