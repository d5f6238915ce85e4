"""Skipping what a first-token task head never reads changes neither loss nor gradients."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hifi.backbone import HeadId
from hifi.first_token import first_token_only
from hifi.head_selection import HeadSelection
from hifi.tuning import HeadTuner
from tests.architectures import LAYERS, tiny_batch, tiny_model

FAMILY = ("bert", "roberta", "xlm-roberta", "electra")


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("lengths", [(9, 5, 12, 3), (7, 7), (1, 4)])
@pytest.mark.parametrize("name", FAMILY)
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


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", FAMILY)
def test_in_float64_every_gradient_of_a_plain_model_is_that_of_the_whole_layer(name, attention):
    model = without_dropout(
        tiny_model(name, attention_probs_dropout_prob=0.0, attn_implementation=attention)
    ).double()
    batch = tiny_batch(name, labels=True)
    parameters = [p for n, p in model.named_parameters() if "pooler" not in n or name == "bert"]
    expected = torch.autograd.grad(model(**batch).loss, parameters)
    with first_token_only(model):
        gradients = torch.autograd.grad(model(**batch).loss, parameters)
    for gradient, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference, atol=1e-12, rtol=1e-9)


def test_keys_and_values_of_the_last_layer_are_not_computed():
    model = tiny_model("bert").train()
    called = []
    for layer in model.bert.encoder.layer:
        layer.attention.self.key.register_forward_hook(lambda module, *_: called.append(module))
    with first_token_only(model):
        model(**tiny_batch("bert"))
    assert called == [layer.attention.self.key for layer in model.bert.encoder.layer[:-1]]


def test_projections_that_an_adapter_wraps_are_called():
    plain = without_dropout(tiny_model("bert", attention_probs_dropout_prob=0.0))
    config = LoraConfig(target_modules=["key"], r=2, init_lora_weights=False)
    model = get_peft_model(plain, config).base_model.model
    batch = tiny_batch("bert")
    expected = model(**batch).logits
    with first_token_only(model) as applied:
        assert applied
        torch.testing.assert_close(model(**batch).logits, expected)


def test_dropout_of_attention_shares_stays():
    model = without_dropout(tiny_model("bert"))
    for layer in model.bert.encoder.layer[:-1]:
        layer.attention.self.eval()  # no dropout but the last layer's
    last = model.bert.encoder.layer[-1].attention.self
    batch = tiny_batch("bert", lengths=(12,))

    def logits(p):
        last.dropout.p = p
        with first_token_only(model):
            return torch.stack([model(**batch).logits for _ in range(400)]).squeeze(1)

    assert logits(0.0).std(0).max() < 1e-6
    shared, mean = logits(0.3), logits(0.0)[0]
    assert shared.std(0).min() > 1e-3
    torch.testing.assert_close(shared.mean(0), mean, atol=0.1, rtol=0.0)


def test_a_decoder_is_left_alone():
    with first_token_only(tiny_model("bert", is_decoder=True).train()) as applied:
        assert not applied


def test_a_forward_that_others_have_replaced_comes_back():
    model = tiny_model("bert").train()
    attention = model.bert.encoder.layer[-1].attention.self
    with first_token_only(model):
        pass
    assert "forward" not in vars(attention)
    attention.forward = theirs = attention.forward
    with first_token_only(model):
        assert attention.forward is not theirs
    assert attention.forward is theirs


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
