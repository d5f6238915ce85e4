"""hifi.selection.scores.gradient: plain autograd's norms, and nothing left behind."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as tf

from hifi.backbones.heads import HeadId
from hifi.errors import CaptureError, InvalidArgumentError, TunerError
from hifi.selection.head_selection import HeadSelection
from hifi.selection.scoring import select_heads
from hifi.tuning.tuner import HeadTuner
from tests.architectures import (
    ARCHITECTURES,
    LAYERS,
    NAMES,
    QUERY_HEADS,
    heads_per_layer,
    tiny_batch,
    tiny_model,
)
from tests.hifi.selection.scores.slices import head_weights

TEXT = tuple(name for name in NAMES if not ARCHITECTURES[name].image)


def two_batches(name, *, dtype=torch.float64):
    """Build two labelled batches with nine samples."""
    return [
        tiny_batch(name, dtype=dtype, labels=True),
        tiny_batch(name, seed=1, lengths=(4, 14, 2, 7, 1), dtype=dtype, labels=True),
    ]


def gradient_values(model, batches, *, score="gradient", **arguments):
    """Return the scores of every head, ``[L, H]``."""
    selection = select_heads(model, batches, k=1, score=score, **arguments)
    assert selection.score == score
    return torch.stack([layer.values for layer in selection.layers])


def autograd_values(model, name, batches):
    """Sum the squares of the gradients that a plain backward pass leaves in the weights."""
    model = copy.deepcopy(model)
    expected = torch.zeros(LAYERS, heads_per_layer(name), dtype=torch.float64)
    for batch in batches:
        model.zero_grad()
        model(**batch).loss.backward()
        for layer, head, parts in head_weights(model, name, gradient=True):
            expected[layer, head] += sum(part.square().sum() for part in parts)
    return expected


class TestValues:
    @pytest.mark.parametrize("name", NAMES)
    def test_equal_those_of_plain_autograd(self, name):
        model, batches = tiny_model(name, dtype=torch.float64), two_batches(name)
        values = gradient_values(model, batches)
        torch.testing.assert_close(
            values, autograd_values(model, name, batches), rtol=1e-9, atol=1e-15
        )
        assert values.std() > 0

    @pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
    def test_are_close_in_float32(self, name):
        batches = two_batches(name, dtype=torch.float32)
        values = gradient_values(tiny_model(name), batches)
        expected = autograd_values(tiny_model(name), name, batches)
        torch.testing.assert_close(values, expected, rtol=1e-3, atol=1e-9)

    def test_are_of_the_given_loss(self):
        model, batch = tiny_model("bert", dtype=torch.float64), two_batches("bert")[0]
        named = {**{k: v for k, v in batch.items() if k != "labels"}, "targets": batch["labels"]}

        def loss(output, batch):
            assert output.loss is None
            return 3 * torch.nn.functional.cross_entropy(output.logits, batch["targets"])

        values = gradient_values(model, [named], loss=loss)
        torch.testing.assert_close(values, 9 * gradient_values(model, [batch]))

    @pytest.mark.parametrize("name", TEXT)
    def test_do_not_depend_on_padding(self, name):
        model, batches = tiny_model(name, dtype=torch.float64), two_batches(name)
        wide = [
            {
                key: value if key == "labels" else torch.nn.functional.pad(value, (0, 7))
                for key, value in batch.items()
            }
            for batch in batches
        ]
        left = [
            {
                key: value
                if key == "labels"
                else torch.stack(
                    [row.roll(len(row) - int(n)) for row, n in zip(value, lengths, strict=True)]
                )
                for key, value in batch.items()
            }
            for batch in batches
            for lengths in [batch["attention_mask"].sum(1)]
        ]
        expected = gradient_values(model, batches)
        for others in (wide, left):
            torch.testing.assert_close(gradient_values(model, others), expected, rtol=1e-9, atol=0)

    def test_take_labels_of_tokens_with_their_tokens(self):
        settings = ARCHITECTURES["bert"]
        config = settings.config(**settings.arguments, num_labels=3)
        model = tf.BertForTokenClassification(config).double().eval()
        batch = tiny_batch("bert")
        mask = batch["attention_mask"]
        batch["labels"] = torch.where(mask.bool(), batch["input_ids"] % 3, -100)
        moved = {
            name: torch.stack(
                [row.roll(int((1 - m).sum())) for row, m in zip(value, mask, strict=True)]
            )
            for name, value in batch.items()
        }
        expected = autograd_values(model, "bert", [batch])
        torch.testing.assert_close(gradient_values(model, [batch]), expected, rtol=1e-9, atol=0)
        torch.testing.assert_close(gradient_values(model, [moved]), expected, rtol=1e-9, atol=0)

    def test_take_questions_with_choices(self):
        settings = ARCHITECTURES["bert"]
        model = tf.BertForMultipleChoice(settings.config(**settings.arguments)).double().eval()
        batch = tiny_batch("bert", lengths=(4, 6, 2, 5, 3, 6))
        batch = {name: value.view(2, 3, -1) for name, value in batch.items()}
        batch["labels"] = torch.tensor([2, 0])
        expected = autograd_values(model, "bert", [batch])
        torch.testing.assert_close(gradient_values(model, [batch]), expected, rtol=1e-9, atol=0)

    def test_take_labels_of_several_classes_at_once(self):
        model = tiny_model("bert", dtype=torch.float64, num_labels=12)
        batch = tiny_batch("bert")  # twelve tokens: as many as there are classes
        model.config.problem_type = "multi_label_classification"
        batch["labels"] = torch.rand(4, 12, dtype=torch.float64).round()
        wide = {
            name: value if name == "labels" else torch.nn.functional.pad(value, (0, 7))
            for name, value in batch.items()
        }
        short = {
            name: value if name == "labels" else torch.where(torch.arange(12) < 9, value, 0)
            for name, value in batch.items()
        }
        for each in (batch, wide, short):
            expected = autograd_values(model, "bert", [each])
            torch.testing.assert_close(gradient_values(model, [each]), expected, rtol=1e-9, atol=0)

    def test_come_with_the_numbers_of_the_paper(self):
        model, batches = tiny_model("bert", dtype=torch.float64), two_batches("bert")
        plain = select_heads(model, batches, k=1)
        selection = select_heads(model, batches, k=1, score="gradient")
        for scores, expected in zip(selection.layers, plain.layers, strict=True):
            assert torch.equal(scores.information_richness, expected.information_richness)
            torch.testing.assert_close(scores.importance, expected.importance, rtol=0, atol=1e-12)
            assert int(scores.values.argmax()) == scores.selected[0]

    def test_compare_all_layers_for_a_budget(self):
        model, batches = tiny_model("bert", dtype=torch.float64), two_batches("bert")
        selection = select_heads(model, batches, score="gradient", strategy="budget", budget=5)
        values = autograd_values(model, "bert", batches).flatten()
        best = sorted(values.argsort(descending=True)[:5].tolist())
        assert selection.heads == tuple(HeadId(*divmod(place, QUERY_HEADS)) for place in best)


class TestModel:
    @pytest.mark.parametrize("name", ["bert", "modernbert", "gpt2", "qwen3", "deberta-v3", "mpnet"])
    def test_is_what_it_was(self, name):
        model = tiny_model(name).train()
        for number, parameter in enumerate(model.parameters()):
            parameter.requires_grad_(number % 2 == 0)
            parameter.grad = torch.full_like(parameter, 2.0) if number % 3 == 0 else None
        weights = copy.deepcopy(model.state_dict())
        flags = [parameter.requires_grad for parameter in model.parameters()]
        gradients = [parameter.grad for parameter in model.parameters()]
        gradient_values(model, two_batches(name, dtype=torch.float32))
        assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
        assert [parameter.requires_grad for parameter in model.parameters()] == flags
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            assert parameter.grad is gradient
            assert gradient is None or bool((gradient == 2).all())
            assert not parameter._post_accumulate_grad_hooks
        assert all(module.training for module in model.modules())

    def test_is_what_it_was_after_an_error(self):
        model = tiny_model("bert").train()

        def stop(_):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            gradient_values(model, two_batches("bert"), on_batch=stop)
        assert all(p.requires_grad and p.grad is None for p in model.parameters())
        assert not any(p._post_accumulate_grad_hooks for p in model.parameters())

    def test_may_be_called_where_gradients_are_off(self):
        model, batches = tiny_model("bert"), two_batches("bert")
        expected = gradient_values(model, batches)
        with torch.no_grad():
            assert torch.equal(gradient_values(model, batches), expected)

    @pytest.mark.parametrize(
        ("name", "tokens"),
        [("bert", 1), ("roberta", 1), ("deberta-v3", 1), ("distilbert", 12), ("mpnet", 12)],
    )
    def test_computes_of_the_last_layer_what_the_task_head_reads(self, name, tokens):
        model, batch = tiny_model(name), tiny_batch(name, labels=True)
        base = model.base_model
        layers = base.transformer.layer if name == "distilbert" else base.encoder.layer
        seen = []
        block = layers[-1].ffn if name == "distilbert" else layers[-1].intermediate
        hook = block.register_forward_hook(lambda *call: seen.append(call[2].shape[1]))
        gradient_values(model, [batch])
        hook.remove()
        assert seen == [tokens]

    def test_holds_one_gradient_at_a_time_and_none_of_what_is_frozen(self):
        model = tiny_model("bert")
        most = []

        def count(_):
            most.append(sum(parameter.grad is not None for parameter in model.parameters()))

        hooks = [p.register_hook(count) for n, p in model.named_parameters() if "query.weight" in n]
        gradient_values(model, two_batches("bert"))
        for hook in hooks:
            hook.remove()
        assert most == [0] * 2 * LAYERS


class TestRefusals:
    @pytest.mark.parametrize("score", ["gradient", "gradient-ratio"])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, score, dtype):
        with pytest.raises(InvalidArgumentError, match=r'needs float32.*dtype="float32"') as caught:
            gradient_values(tiny_model("bert", dtype=dtype), [], score=score)
        assert (caught.value.param, caught.value.value) == ("score", score)

    def test_batches_without_labels(self):
        with pytest.raises(InvalidArgumentError, match="labels in every batch"):
            gradient_values(tiny_model("bert"), [tiny_batch("bert")])

    def test_a_model_without_a_task_head(self):
        batch = tiny_batch("bert", labels=True)
        with pytest.raises(InvalidArgumentError, match=r"model='BertModel'.*task head, or loss="):
            gradient_values(tiny_model("bert").bert, [batch])

    @pytest.mark.parametrize(
        "loss",
        [
            lambda output, _: output.logits,
            lambda output, _: output.logits.mean().item(),
            lambda output, _: output.logits.mean().detach(),
        ],
    )
    def test_a_loss_that_is_no_scalar_of_the_output(self, loss):
        with pytest.raises(InvalidArgumentError, match=r"loss=.*scalar"):
            gradient_values(tiny_model("bert"), [tiny_batch("bert")], loss=loss)

    def test_a_loss_that_is_not_finite(self):
        with pytest.raises(CaptureError, match="loss of a calibration batch is nan"):
            gradient_values(
                tiny_model("bert"),
                [tiny_batch("bert")],
                loss=lambda output, _: output.logits.mean() * torch.nan,
            )

    def test_a_gradient_that_is_not_finite(self):
        with pytest.raises(CaptureError, match="a head's gradient is infinite"):
            gradient_values(
                tiny_model("bert"),
                [tiny_batch("bert")],
                loss=lambda output, _: (output.logits * 0).sum().sqrt(),
            )

    def test_a_tuned_model(self):
        model = tiny_model("bert")
        tuner = HeadTuner(model, HeadSelection.from_heads([HeadId(1, 2)], num_layers=LAYERS))
        with pytest.raises(TunerError, match="detach the tuner"):
            gradient_values(model, two_batches("bert"))
        tuner.undo()
