"""Skipping tokens that a first-token task head never reads changes no loss or gradient."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from hifi.backbones.heads import HeadId
from hifi.selection.head_selection import HeadSelection
from hifi.tuning.first_token import first_token_only
from hifi.tuning.tuner import HeadTuner
from tests.architectures import LAYERS, tiny_batch, tiny_model

FAMILY = ("bert", "roberta", "xlm-roberta", "electra")
VARIANTS = [
    *product(FAMILY, ("eager", "sdpa")),
    ("deberta-v2", "eager"),
    ("deberta-v3", "eager"),
]


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


@pytest.mark.parametrize("lengths", [(9, 5, 12, 3), (7, 7), (1, 4)])
@pytest.mark.parametrize(("name", "attention"), VARIANTS)
def test_loss_and_gradients_stay(name, lengths, attention):
    model = without_dropout(
        tiny_model(name, attention_probs_dropout_prob=0.0, attn_implementation=attention)
    )
    heads = [HeadId(layer, 1) for layer in range(LAYERS)]
    tuner = HeadTuner(model, HeadSelection.from_heads(heads, num_layers=LAYERS))
    batch = tiny_batch(name, labels=True, lengths=lengths)
    loss = model(**batch).loss
    expected = torch.autograd.grad(loss, tuner.parameters())
    with first_token_only(model) as applied:
        assert applied
        shortened = model(**batch).loss
    gradients = torch.autograd.grad(shortened, tuner.parameters())
    torch.testing.assert_close(shortened, loss)
    for gradient, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "attention"), VARIANTS)
def test_in_float64_every_gradient_of_a_plain_model_is_that_of_the_whole_layer(name, attention):
    model = without_dropout(
        tiny_model(name, attention_probs_dropout_prob=0.0, attn_implementation=attention)
    ).double()
    batch = tiny_batch(name, labels=True)
    parameters = [p for n, p in model.named_parameters() if ".pooler" not in n or name == "bert"]
    expected = torch.autograd.grad(model(**batch).loss, parameters)
    with first_token_only(model):
        gradients = torch.autograd.grad(model(**batch).loss, parameters)
    for gradient, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference, atol=1e-12, rtol=1e-9)


def test_keys_and_values_of_the_last_layer_are_not_computed(monkeypatch):
    model = tiny_model("bert").train()
    called, forward = [], nn.Linear.forward
    monkeypatch.setattr(
        nn.Linear, "forward", lambda self, x: (called.append(self), forward(self, x))[1]
    )
    with first_token_only(model):
        model(**tiny_batch("bert"))
    for name in ("key", "value"):
        layers = [getattr(layer.attention.self, name) for layer in model.bert.encoder.layer]
        assert [projection in called for projection in layers] == [True, True, False]


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_projections_that_an_adapter_wraps_are_called(name):
    plain = without_dropout(tiny_model("bert", attention_probs_dropout_prob=0.0))
    config = LoraConfig(target_modules=[name], r=2, init_lora_weights=False)
    model = get_peft_model(plain, config).base_model.model
    batch = tiny_batch("bert")
    expected = model(**batch).logits
    with first_token_only(model) as applied:
        assert applied
        torch.testing.assert_close(model(**batch).logits, expected)


@pytest.mark.parametrize("name", ["query", "key", "value"])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_on_projections_run(name, kind):
    model = tiny_model("bert").train()
    called = []
    projection = getattr(model.bert.encoder.layer[-1].attention.self, name)
    getattr(projection, kind)(lambda *_: called.append(name))
    with first_token_only(model):
        model(**tiny_batch("bert"))
    assert called == [name]


def test_an_attention_function_that_is_not_known_is_called():
    called = []

    def counted(module, *arguments, **more):
        called.append(module)
        return sdpa_attention_forward(module, *arguments, **more)

    AttentionInterface.register("counted", counted)
    AttentionMaskInterface.register("counted", sdpa_mask)
    model = tiny_model("bert", attn_implementation="counted").train()
    with first_token_only(model):
        model(**tiny_batch("bert"))
    assert len(called) == LAYERS


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_mask_that_differs_between_heads(attention):
    model = without_dropout(
        tiny_model("bert", attention_probs_dropout_prob=0.0, attn_implementation=attention)
    )
    batch = tiny_batch("bert", lengths=(6, 6))
    hidden = torch.rand(2, 4, 6, 6, generator=torch.Generator().manual_seed(3)) < 0.4
    hidden[..., 0] = False
    batch["attention_mask"] = torch.where(hidden, torch.finfo(torch.float32).min, 0.0)
    expected = model(**batch).logits
    with first_token_only(model):
        torch.testing.assert_close(model(**batch).logits, expected)


def test_dropout_of_attention_shares_is_that_of_the_whole_layer(monkeypatch):
    model = without_dropout(
        tiny_model("bert", attention_probs_dropout_prob=0.0, attn_implementation="eager")
    )
    model.bert.encoder.layer[-1].attention.self.dropout.p = 0.4
    batch = tiny_batch("bert")
    kept = torch.rand(4, 12, generator=torch.Generator().manual_seed(1)) < 0.6  # [H, S]

    def dropout(shares, p=0.5, training=True, inplace=False):  # noqa: ARG001 - torch's own
        if not training or p == 0.0:
            return shares
        whole = kept[:, None] if shares.dim() == 4 else kept  # [B, H, S, S] or [B, H, S]
        return shares * whole / (1 - p)

    monkeypatch.setattr(nn.functional, "dropout", dropout)
    expected = model(**batch).logits
    with first_token_only(model):
        torch.testing.assert_close(model(**batch).logits, expected)
    monkeypatch.undo()
    model.bert.eval()
    expected = model(**batch).logits
    model.bert.encoder.layer[-1].attention.output.training = True  # as in fine-tuning
    with first_token_only(model):
        torch.testing.assert_close(model(**batch).logits, expected)


@pytest.mark.parametrize("mode", ["bfloat16", "autocast"])
def test_in_bfloat16_it_is_as_close_as_the_whole_layer(mode):
    model = without_dropout(tiny_model("bert", attention_probs_dropout_prob=0.0))
    batch = tiny_batch("bert", lengths=tuple(range(1, 30)))
    exact = copy.deepcopy(model).double()(**batch).logits
    if mode == "bfloat16":
        model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        whole = (model(**batch).logits - exact).square().mean()
        with first_token_only(model):
            short = (model(**batch).logits - exact).square().mean()
    assert 0 < short < 2 * whole


def test_a_decoder_is_left_alone():
    with first_token_only(tiny_model("bert", is_decoder=True).train()) as applied:
        assert not applied


def test_a_forward_that_others_have_put_in_its_place_is_called():
    model = tiny_model("bert").train()
    attention = model.bert.encoder.layer[-1].attention.self
    with first_token_only(model):
        assert "forward" in vars(attention)
    assert "forward" not in vars(attention)
    called, forward = [], attention.forward
    attention.forward = theirs = lambda *a, **k: (called.append(1), forward(*a, **k))[1]
    with first_token_only(model):
        model(**tiny_batch("bert"))
    assert called == [1]
    assert attention.forward is theirs


def test_in_eval_mode_every_token_is_what_it_was():
    model = tiny_model("bert")
    batch = tiny_batch("bert")
    expected = model.bert(**batch).last_hidden_state
    with first_token_only(model):
        assert torch.equal(model.bert(**batch).last_hidden_state, expected)


def test_the_last_layer_computes_one_token_and_only_in_training():
    model = tiny_model("bert")
    batch = tiny_batch("bert")
    with first_token_only(model):
        assert model.train().bert(**batch).last_hidden_state.shape[1] == 1
        assert model.eval().bert(**batch).last_hidden_state.shape[1] == 12
    assert model.train().bert(**batch).last_hidden_state.shape[1] == 12


def test_leaves_other_models_alone():
    model = tiny_model("distilbert").train()
    with first_token_only(model) as applied:
        assert not applied
        assert model.distilbert(**tiny_batch("distilbert")).last_hidden_state.shape[1] == 12


def test_hooks_are_removed_after_an_exception():
    model = tiny_model("bert").train()
    with pytest.raises(KeyError), first_token_only(model):
        raise KeyError
    assert model.bert(**tiny_batch("bert")).last_hidden_state.shape[1] == 12


def test_gradient_checkpointing_recomputes_inside_the_block():
    model = without_dropout(tiny_model("bert", attention_probs_dropout_prob=0.0))
    batch = tiny_batch("bert", labels=True)
    expected = torch.autograd.grad(model(**batch).loss, model.bert.embeddings.parameters())
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with first_token_only(model):
        model(**batch).loss.backward()
    for parameter, gradient in zip(model.bert.embeddings.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-4)
