"""hifi.tuning.prefix: layers below the first tuned head run once, and no bit depends on that."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from hifi.backbones.heads import HeadId, describe
from hifi.errors import InvalidArgumentError, TunerError
from hifi.tuning.first_token import first_token_only
from hifi.tuning.prefix import FrozenPrefix
from hifi.tuning.states import StatePlaces
from hifi.tuning.tuner import HeadTuner
from tests.architectures import LAYERS, NAMES, tiny_batch, tiny_model
from tests.tiny_tuning import selection

NOTHING = StatePlaces(memory_bytes=0, disk_bytes=0)
MEMORY = StatePlaces(memory_bytes=1 << 20, disk_bytes=0)
DISK = StatePlaces(memory_bytes=0, disk_bytes=1 << 20)
PLACES = {"nothing": NOTHING, "memory": MEMORY, "disk": DISK}


def tuned(name: str = "bert", *, layer: int = 2, **config) -> HeadTuner:
    model = tiny_model(name, **config)
    return HeadTuner(model, selection([HeadId(layer, 1), HeadId(LAYERS - 1, 0)]))


def count_calls(tuner: HeadTuner, layer: int) -> list[int]:
    """Collect the samples of each call of a layer's own value projection.

    Query and key may project positions too.
    """
    seen: list[int] = []
    name = describe(tuner.model).layers[layer].module_names[-1]
    tuner.model.get_submodule(name).register_forward_pre_hook(
        lambda _, arguments: seen.append(len(arguments[0]))
    )
    return seen


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("name", NAMES)
class TestAnyArchitecture:
    def test_logits_and_gradients_are_those_of_the_whole_model(self, name: str, layer: int):
        tuner = tuned(name, layer=layer)
        batch = tiny_batch(name, labels=True)
        whole = tuner.model(**batch)
        expected = torch.autograd.grad(whole.loss, tuner.parameters())
        with FrozenPrefix(tuner) as prefix:
            for _ in range(2):  # computed, and kept
                output = prefix(batch, keys=range(4))
                torch.testing.assert_close(output.logits, whole.logits)
                gradients = torch.autograd.grad(output.loss, tuner.parameters())
                for gradient, reference in zip(gradients, expected, strict=True):
                    torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-4)

    def test_one_sample_alone_has_the_bits_of_the_whole_model(self, name: str, layer: int):
        tuner = tuned(name, layer=layer)
        batch = tiny_batch(name, lengths=(7,))
        with torch.no_grad(), FrozenPrefix(tuner) as prefix:
            logits = prefix(batch, keys=["one"]).logits
            assert torch.equal(logits, tuner.model(**batch).logits)

    def test_no_bit_depends_on_where_states_are_kept(self, name: str, layer: int):
        tuner = tuned(name, layer=layer)
        batch = tiny_batch(name)
        found = []
        for places in PLACES.values():
            with FrozenPrefix(tuner, places=places) as prefix, torch.no_grad():
                found += [prefix(batch, keys=range(4)).logits for _ in range(2)]
        assert all(torch.equal(logits, found[0]) for logits in found)

    def test_layers_below_run_once_for_each_sample(self, name: str, layer: int):
        tuner = tuned(name, layer=layer)
        below, above = count_calls(tuner, layer - 1), count_calls(tuner, layer)
        with FrozenPrefix(tuner) as prefix:
            assert prefix.num_layers == layer
            for _ in range(3):
                prefix(tiny_batch(name), keys=range(4))
        assert below == [1, 1, 1, 1]
        assert above == [4, 4, 4]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_states_do_not_depend_on_the_batch_in_which_a_sample_comes(attention: str):
    tuner = tuned(attn_implementation=attention)
    batch = tiny_batch("bert", lengths=(9, 5, 12, 3))
    alone = {name: value[1:2, :5] for name, value in batch.items()}
    with FrozenPrefix(tuner, places=NOTHING) as prefix:
        states = prefix.states(batch, keys=range(4))
        assert torch.equal(states[1, :5], prefix.states(alone, keys=[1])[0])
        assert not states[1, 5:].any()
    with FrozenPrefix(tuner) as prefix:
        prefix.states(alone, keys=[1])
        assert torch.equal(prefix.states(batch, keys=range(4)), states)


def test_states_in_bfloat16_stay_in_it():
    tuner = tuned(dtype=torch.bfloat16)
    with FrozenPrefix(tuner, places=DISK) as prefix:
        first, again = (prefix.states(tiny_batch("bert"), keys=range(4)) for _ in range(2))
    assert first.dtype == torch.bfloat16
    assert torch.equal(first, again)


def test_prefix_has_no_dropout_and_leaves_the_modes_as_they_are():
    tuner = tuned(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    batch = tiny_batch("bert")
    with FrozenPrefix(tuner, places=NOTHING) as prefix:
        expected = prefix.states(batch, keys=range(4))
        tuner.model.train()
        tuner.model.bert.encoder.layer[1].eval()
        before = [module.training for module in tuner.model.modules()]
        assert torch.equal(prefix.states(batch, keys=range(4)), expected)
        assert [module.training for module in tuner.model.modules()] == before


def test_random_states_do_not_depend_on_where_states_are_kept():
    tuner = tuned(hidden_dropout_prob=0.5)
    tuner.model.train()
    drawn = []
    for places in PLACES.values():
        with FrozenPrefix(tuner, places=places) as prefix:
            torch.manual_seed(0)
            for _ in range(2):
                prefix(tiny_batch("bert"), keys=range(4))
            drawn.append(torch.rand(1).item())
    assert len(set(drawn)) == 1


def test_works_with_first_token_only_and_gradient_checkpointing():
    tuner = tuned(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    batch = tiny_batch("bert", labels=True)
    expected = torch.autograd.grad(tuner.model(**batch).loss, tuner.parameters())
    tuner.model.train()
    tuner.model.gradient_checkpointing_enable({"use_reentrant": False})
    with FrozenPrefix(tuner) as prefix, first_token_only(tuner.model):
        for _ in range(2):
            loss = prefix(batch, keys=range(4)).loss
            gradients = torch.autograd.grad(loss, tuner.parameters())
            for gradient, reference in zip(gradients, expected, strict=True):
                torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-4)


def test_the_backward_pass_ends_at_the_first_tuned_layer():
    tuner = tuned()
    with FrozenPrefix(tuner) as prefix:
        states = prefix.states(tiny_batch("bert"), keys=range(4))
    assert not states.requires_grad


def test_a_tuned_head_in_layer_0_runs_the_whole_model():
    tuner = tuned(layer=0)
    batch = tiny_batch("bert")
    with torch.no_grad(), FrozenPrefix(tuner) as prefix:
        assert prefix.num_layers == 0
        assert torch.equal(prefix(batch, keys=range(4)).logits, tuner.model(**batch).logits)


@pytest.mark.parametrize("name", ["bert", "llama", "vit", "deberta-v2", "mpnet"])
def test_a_model_that_records_is_run_and_goes_on_recording(name: str):
    tuner = tuned(name, attn_implementation="eager")
    tuner.model.config.output_hidden_states = tuner.model.config.output_attentions = True
    batch = tiny_batch(name)
    whole = tuner.model(**batch)
    with FrozenPrefix(tuner) as prefix:
        output = prefix(batch, keys=range(4))
    torch.testing.assert_close(output.logits, whole.logits)
    real = batch["attention_mask"].bool() if "attention_mask" in batch else ...
    torch.testing.assert_close(output.hidden_states[-1][real], whole.hidden_states[-1][real])
    again = tuner.model(**batch)
    assert len(again.hidden_states) == len(whole.hidden_states) == LAYERS + 1
    assert len(again.attentions) == LAYERS


def test_the_model_is_unchanged_afterwards():
    tuner = tuned()
    batch = tiny_batch("bert")
    names = [name for name, _ in tuner.model.named_modules()]
    expected = tuner.model(**batch).logits
    own = tuner.model.bert.encoder.layer[0].forward
    vars(tuner.model.bert.encoder.layer[0])["forward"] = own  # as another library would
    with FrozenPrefix(tuner) as prefix:
        prefix(batch, keys=range(4))
        assert torch.equal(tuner.model(**batch).logits, expected)
        with pytest.raises(AttributeError):
            prefix({**batch, "labels": "nonsense"}, keys=range(4))
    assert torch.equal(tuner.model(**batch).logits, expected)
    assert [name for name, _ in tuner.model.named_modules()] == names
    assert vars(tuner.model.bert.encoder.layer[0]).pop("forward") is own
    assert "forward" not in vars(tuner.model.bert.encoder.layer[1])
    copy.deepcopy(tuner.model)


class TestFill:
    def test_keeps_a_whole_batch_from_one_pass(self):
        tuner = tuned()
        batch = tiny_batch("bert", lengths=(9, 5))
        calls = count_calls(tuner, 0)
        with FrozenPrefix(tuner) as prefix:
            filled = prefix.fill(batch, keys=["a", "b"])
            states = prefix.states(batch, keys=["a", "b"])
        assert calls == [2]
        assert {key: len(value) for key, value in filled.items()} == {"a": 9, "b": 5}
        assert torch.equal(states[0], filled["a"])
        assert torch.equal(states[1, :5], filled["b"])

    def test_a_sample_that_is_lost_is_computed_by_the_callers_function(self):
        tuner = tuned()
        batch = tiny_batch("bert", lengths=(9, 5))
        with FrozenPrefix(tuner, places=NOTHING) as prefix:
            expected = prefix.fill(batch, keys=["a", "b"])
            asked: list[int] = []

            def compute(index: int):
                asked.append(index)
                return prefix.fill(batch, keys=["a", "b"])

            states = prefix.states(batch, keys=["a", "b"], compute=compute)
        assert asked == [0]
        assert torch.equal(states[1, :5], expected["b"])


class TestInputs:
    def test_inputs_of_each_token_and_of_all_samples_are_divided(self):
        tuner = tuned()
        batch = tiny_batch("bert", lengths=(6, 4))
        batch["token_type_ids"] = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0]])
        batch["position_ids"] = torch.arange(1, 7)[None]
        with FrozenPrefix(tuner) as prefix:
            logits = prefix(batch, keys=range(2)).logits
        torch.testing.assert_close(logits, tuner.model(**batch).logits)

    def test_without_a_mask_all_tokens_are_real(self):
        tuner = tuned()
        batch = {"input_ids": tiny_batch("bert", lengths=(6, 6))["input_ids"]}
        with FrozenPrefix(tuner) as prefix:
            logits = prefix(batch, keys=range(2)).logits
        torch.testing.assert_close(logits, tuner.model(**batch).logits)

    @pytest.mark.parametrize(
        ("change", "keys", "message"),
        [
            ({}, range(3), "3 keys"),
            ({"attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])}, range(2), "right"),
            ({"attention_mask": torch.tensor([[1, 0, 1], [1, 1, 1]])}, range(2), "right"),
            ({"attention_mask": torch.ones(2, 1, 3, 3)}, range(2), "attention_mask"),
            ({"position_ids": torch.zeros(3, 3).long()}, range(2), "position_ids"),
            ({"input_ids": torch.ones(2, 3, 3, 3).long()}, range(2), "batch"),
            ({"input_ids": torch.ones(2, 3, 3).long()}, range(2), "attention_mask"),
            ({"input_ids": None}, range(2), "batch"),
            ({"input_ids": torch.ones(0, 3).long(), "attention_mask": None}, [], "at least one"),
            ({"input_ids": torch.ones(2, 0).long(), "attention_mask": None}, "ab", "at least one"),
            ({}, torch.arange(2), "tolist"),
            ({}, list(torch.arange(2)), "tolist"),
            ({}, [("train", torch.tensor(row)) for row in range(2)], "tolist"),
        ],
    )
    def test_a_batch_that_cannot_be_divided_is_refused(self, change, keys, message):
        batch = {**tiny_batch("bert", lengths=(3, 3)), **change}
        with (
            FrozenPrefix(tuned()) as prefix,
            pytest.raises(InvalidArgumentError, match=message),
        ):
            prefix(batch, keys=keys)

    def test_no_images_are_refused(self):
        batch = tiny_batch("vit")
        with (
            FrozenPrefix(tuned("vit")) as prefix,
            pytest.raises(InvalidArgumentError, match="0 samples"),
        ):
            prefix({"pixel_values": batch["pixel_values"][:0]}, keys=[])

    def test_a_key_of_another_sample_is_refused(self):
        with FrozenPrefix(tuned()) as prefix:
            prefix(tiny_batch("bert", lengths=(6, 4)), keys=[0, 1])
            with pytest.raises(InvalidArgumentError, match="one of 4 tokens"):
                prefix(tiny_batch("bert", lengths=(6, 5)), keys=[0, 1])


@pytest.mark.parametrize("layer", [0, 2])
def test_a_closed_prefix_is_refused(layer: int):
    batch = tiny_batch("bert")
    with FrozenPrefix(tuned(layer=layer)) as prefix:
        prefix(batch, keys=range(4))
    prefix.close()  # again
    for use in (prefix, prefix.states, prefix.fill):
        with pytest.raises(TunerError, match="closed"):
            use(batch, keys=range(4))


class TestTuner:
    def test_a_detached_one_is_refused(self):
        tuner = tuned()
        tuner.detach()
        with pytest.raises(TunerError, match="detached"):
            FrozenPrefix(tuner)

    @pytest.mark.parametrize(
        "name", ["embeddings.LayerNorm.bias", "encoder.layer.1.output.dense.weight"]
    )
    def test_something_trained_below_is_refused(self, name: str):
        tuner = tuned()
        tuner.model.bert.get_parameter(name).requires_grad = True
        with pytest.raises(TunerError, match=name):
            FrozenPrefix(tuner)

    @pytest.mark.parametrize(
        ("name", "parameter"),
        [
            ("deberta-v2", "encoder.rel_embeddings.weight"),
            ("deberta-v2", "encoder.LayerNorm.bias"),
            ("deberta-v2", "encoder.conv.conv.weight"),
            ("mpnet", "encoder.relative_attention_bias.weight"),
        ],
    )
    def test_something_trained_that_layers_below_read_is_refused(self, name: str, parameter: str):
        tuner = tuned(name)
        tuner.model.base_model.get_parameter(parameter).requires_grad = True
        with pytest.raises(TunerError, match=parameter):
            FrozenPrefix(tuner)

    def test_something_trained_above_is_not(self):
        tuner = tuned()
        tuner.model.bert.encoder.layer[2].output.dense.weight.requires_grad = True
        FrozenPrefix(tuner).close()


def test_states_are_on_disk_only_while_they_are_needed(tmp_path: Path):
    places = StatePlaces(memory_bytes=0, folder=tmp_path)
    with FrozenPrefix(tuned(), places=places) as prefix:
        prefix(tiny_batch("bert"), keys=range(4))
    assert list(tmp_path.iterdir()) == []
