"""HeadTuner on every architecture, and under the loops that people use."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from hifi.backbone import HeadId, describe, read_rows, task_head_names
from hifi.errors import InvalidArgumentError, TunerError
from hifi.fingerprint import backbone_fingerprint
from hifi.head_selection import HeadSelection
from hifi.tuning import HeadTuner, detach
from tests.architectures import LAYERS, NAMES, tiny_batch, tiny_model

HEADS = (HeadId(0, 1), HeadId(2, 0), HeadId(2, 1))


def selection(heads=HEADS):
    return HeadSelection.from_heads(heads, num_layers=LAYERS)


def train(model, parameters, *, name, steps=3, **batch):
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    model.train()
    for step in range(steps):
        model(**tiny_batch(name, seed=step, labels=True, **batch)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def selected_rows(model, heads=HEADS):
    """Bits of every selected row, by (head, projection)."""
    backbone = describe(model)
    return {
        (head, projection.name): read_rows(model, projection, head.head)
        for head in heads
        for projection in backbone.layers[head.layer].projections
    }


def frozen_copy(model, heads=HEADS):
    """Every weight with the selected rows and the task head blanked."""
    backbone = describe(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name in task_head_names(model):
        state[name].zero_()
    for head in heads:
        for projection in backbone.layers[head.layer].projections:
            rows = projection.rows(head.head)
            weight = state[f"{projection.module_name}.weight"]
            (weight.T if projection.transposed else weight)[rows] = 0
            if f"{projection.module_name}.bias" in state:
                state[f"{projection.module_name}.bias"][rows] = 0
    return state


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
        assert all(not torch.equal(parameters[n], head[n]) for n in task_head_names(model))

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
        # 3 heads × 3 projections × 8 rows × (32 weights + bias), classifier 2 × 32 + 2
        assert sum(p.numel() for p in tuner.parameters()) == 3 * 3 * 8 * 33 + 66
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
    def test_says_what_it_was_told(self):
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
        assert metadata.task == {"type": "classification"}
        assert metadata.labels == ["no", "yes"]
        assert metadata.training == {"epochs": 2}
        assert metadata.compute_dtype == "float32"
        assert metadata.selection["layers"][2]["selected"] == [0, 1]

    def test_takes_from_the_model_what_it_was_not_told(self):
        model = tiny_model("bert", id2label={0: "no", 1: "yes"})
        model.config.name_or_path = "/somewhere/else/backbone"
        model.config._commit_hash = "0123abc"
        fingerprint = backbone_fingerprint(model)
        metadata = HeadTuner(model, selection()).delta().metadata
        assert (metadata.model, metadata.revision) == ("backbone", "0123abc")
        assert metadata.labels == ["no", "yes"]
        assert metadata.fingerprint == fingerprint

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


class TestLoops:
    def test_an_optimizer_over_all_parameters_decays_no_frozen_one(self):
        model = tiny_model("bert")
        frozen = frozen_copy(model)
        tuner = HeadTuner(model, selection())
        train(model, model.parameters(), name="bert")
        tuner.detach()
        after = frozen_copy(model)
        assert all(torch.equal(after[key], frozen[key]) for key in frozen)

    def test_gradient_accumulation_adds_up(self):
        model, reference = tiny_model("bert"), tiny_model("bert")
        HeadTuner(model, selection())
        for network in (model, reference):
            for seed in (0, 1):
                network(**tiny_batch("bert", seed=seed, labels=True)).loss.backward()
        module = model.get_submodule("bert.encoder.layer.2.attention.self.value")
        expected = reference.bert.encoder.layer[2].attention.self.value.weight.grad
        torch.testing.assert_close(module.tuned_weight.grad, expected[module.rows])

    def test_gradient_checkpointing_gives_the_same_gradients(self):
        model, reference = tiny_model("bert"), tiny_model("bert")
        for network in (model, reference):
            HeadTuner(network, selection())
            network.train()
            for module in network.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
        model.gradient_checkpointing_enable({"use_reentrant": False})
        for network in (model, reference):
            network(**tiny_batch("bert", labels=True)).loss.backward()
        pairs = zip(model.named_parameters(), reference.named_parameters(), strict=True)
        for (name, parameter), (_, expected) in pairs:
            if expected.requires_grad:
                torch.testing.assert_close(parameter.grad, expected.grad, msg=name)

    def test_bfloat16_autocast_keeps_rows_and_gradients_in_float32(self):
        model = tiny_model("bert")
        frozen = frozen_copy(model)
        tuner = HeadTuner(model, selection())
        optimizer = torch.optim.AdamW(tuner.parameters(), lr=1e-2)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**tiny_batch("bert", labels=True)).loss
        loss.backward()
        assert {p.grad.dtype for p in tuner.parameters()} == {torch.float32}
        optimizer.step()
        rows, base = tuner.rows(), tuner.base_rows
        assert all(not torch.equal(rows[key], base[key]) for key in rows if "weight" in key)
        tuner.detach()
        after = frozen_copy(model)
        assert all(torch.equal(after[key], frozen[key]) for key in frozen)

    @pytest.mark.parametrize("name", NAMES)
    def test_a_bfloat16_backbone_trains_float32_rows_and_task_head(self, name):
        model = tiny_model(name, dtype=torch.bfloat16)
        fresh = tiny_model(name, dtype=torch.bfloat16)
        frozen = frozen_copy(model)
        tuner = HeadTuner(model, selection())
        assert {p.dtype for p in tuner.parameters()} == {torch.float32}
        rows = tuner.rows()
        train(model, tuner.parameters(), name=name, dtype=torch.bfloat16)
        batch = tiny_batch(name, seed=7, dtype=torch.bfloat16)
        assert model(**batch).logits.dtype == torch.float32
        delta = tuner.delta()
        assert delta.metadata.compute_dtype == "bfloat16"
        assert all(not torch.equal(delta.rows[key], rows[key]) for key in rows if "weight" in key)
        tuner.detach()
        assert not any(module._forward_pre_hooks for module in model.modules())
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        after = frozen_copy(model)
        assert all(torch.equal(after[key], frozen[key]) for key in frozen)
        delta.merge(fresh)
        assert torch.equal(fresh(**batch).logits, model(**batch).logits)

    def test_a_deep_copy_trains_apart(self):
        model = tiny_model("bert")
        tuner = HeadTuner(model, selection())
        rows = tuner.rows()
        twin_model, twin = copy.deepcopy((model, tuner))
        train(twin_model, twin.parameters(), name="bert")
        assert all(torch.equal(value, rows[key]) for key, value in tuner.rows().items())
        assert any(not torch.equal(value, rows[key]) for key, value in twin.rows().items())


class _Rows(torch.utils.data.Dataset):
    """Sixteen labelled rows of random tokens."""

    def __init__(self):
        batch = tiny_batch("bert", lengths=(8,) * 16, labels=True)
        self.rows = [{key: value[i] for key, value in batch.items()} for i in range(16)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class TestTrainer:
    """transformers.Trainer with its default fused AdamW."""

    @staticmethod
    def arguments(folder, **settings):
        return TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=4,
            num_train_epochs=2,
            learning_rate=1e-2,
            weight_decay=0.1,
            save_steps=4,
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            seed=3,
            **settings,
        )

    def run(self, folder, *, dtype=torch.float32, resume=None, **settings):
        model = tiny_model("bert", dtype=dtype)
        frozen = frozen_copy(model)
        tuner = HeadTuner(model, selection())
        trainer = Trainer(model, self.arguments(folder, **settings), train_dataset=_Rows())
        trainer.train(resume_from_checkpoint=resume)
        return model, tuner, frozen

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_resumes_from_its_checkpoint_to_the_same_rows(self, tmp_path, dtype):
        _, whole, _ = self.run(tmp_path / "whole", dtype=dtype)
        checkpoint = tmp_path / "whole" / "checkpoint-4"
        _, resumed, _ = self.run(tmp_path / "resumed", dtype=dtype, resume=str(checkpoint))
        expected = whole.rows()
        assert all(torch.equal(value, expected[key]) for key, value in resumed.rows().items())

    def test_reaches_the_forward_pass_and_leaves_the_rest_alone(self, tmp_path):
        model, tuner, frozen = self.run(tmp_path, optim="adamw_torch_fused")
        rows = tuner.base_rows
        assert any(not torch.equal(value, rows[key]) for key, value in tuner.rows().items())
        batch = tiny_batch("bert", seed=7)
        logits = model.eval()(**batch).logits
        checkpoint = tmp_path / "checkpoint-8"
        loaded = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
        assert torch.equal(loaded(**batch).logits, logits)
        tuner.detach()
        after = frozen_copy(model)
        assert all(torch.equal(after[key], frozen[key]) for key in frozen)

    def test_fused_adamw_takes_the_steps_of_the_plain_one(self, tmp_path):
        """Fused AdamW bumps no version: rows keyed on versions would not reach the forward pass."""
        _, fused, _ = self.run(tmp_path / "fused", optim="adamw_torch_fused")
        _, plain, _ = self.run(tmp_path / "plain", optim="adamw_torch")
        expected = plain.rows()
        for key, value in fused.rows().items():
            if not key.endswith("key.bias"):  # it has no true gradient, and AdamW scales up noise
                torch.testing.assert_close(value, expected[key], atol=1e-4, rtol=1e-3, msg=key)

    @pytest.mark.parametrize(
        "settings",
        [
            {"bf16": True},
            {"gradient_accumulation_steps": 2},
            {"gradient_checkpointing": True},
        ],
        ids=lambda settings: next(iter(settings)),
    )
    def test_trains_the_rows_and_nothing_else_with(self, tmp_path, settings):
        model, tuner, frozen = self.run(tmp_path, **settings)
        rows, base = tuner.rows(), tuner.base_rows
        assert all(not torch.equal(rows[key], base[key]) for key in rows if "weight" in key)
        tuner.detach()
        after = frozen_copy(model)
        assert all(torch.equal(after[key], frozen[key]) for key in frozen)


class TestDetach:
    def test_leaves_a_plain_model(self):
        model = tiny_model("bert")
        model.bert.embeddings.requires_grad_(False)
        types = {name: type(module) for name, module in model.named_modules()}
        flags = {name: p.requires_grad for name, p in model.named_parameters()}
        HeadTuner(model, selection()).detach()
        assert {name: type(module) for name, module in model.named_modules()} == types
        assert {name: p.requires_grad for name, p in model.named_parameters()} == flags

    def test_gives_the_very_modules_back_with_their_hooks(self):
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


class TestRefusals:
    def test_a_second_tuner(self):
        model = tiny_model("bert")
        HeadTuner(model, selection())
        with pytest.raises(TunerError, match="has a tuner already"):
            HeadTuner(model, selection())

    def test_a_change_of_dtype_before_anything_changes(self):
        model = tiny_model("bert")
        HeadTuner(model, selection())
        with pytest.raises(TunerError, match="dtype"):
            model.to(torch.bfloat16)
        assert {p.dtype for p in model.parameters()} == {torch.float32}

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
    def test_a_backbone_of_another_dtype(self, dtype):
        with pytest.raises(TunerError, match=str(dtype)):
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
