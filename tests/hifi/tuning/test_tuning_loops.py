"""HeadTuner in the usual training loops: a plain one, and transformers.Trainer."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from hifi.tuning.tuner import HeadTuner
from tests.architectures import NAMES, tiny_batch, tiny_model
from tests.tiny_tuning import frozen_copy, selection, train


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
