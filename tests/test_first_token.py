"""Skipping what a first-token task head never reads changes neither loss nor gradients."""

from __future__ import annotations

import pytest
import torch

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


@pytest.mark.parametrize("name", FAMILY)
def test_loss_and_gradients_stay(name):
    model = without_dropout(tiny_model(name, attention_probs_dropout_prob=0.0))
    heads = [HeadId(layer, 1) for layer in range(LAYERS)]
    tuner = HeadTuner(model, HeadSelection.from_heads(heads, num_layers=LAYERS))
    batch = tiny_batch(name, labels=True)
    loss = model(**batch).loss
    expected = torch.autograd.grad(loss, tuner.parameters())
    with first_token_only(model) as applied:
        assert applied
        shortened = model(**batch).loss
    gradients = torch.autograd.grad(shortened, tuner.parameters())
    torch.testing.assert_close(shortened, loss)
    for gradient, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-4)


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
