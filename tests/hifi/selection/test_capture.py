from __future__ import annotations

import pytest
import torch

from hifi.errors import CaptureError, InvalidArgumentError
from hifi.selection.capture import capture_head_outputs
from tests import oracles
from tests.architectures import ARCHITECTURES, LAYERS, NAMES, tiny_batch, tiny_model

TEXT = tuple(name for name in NAMES if not ARCHITECTURES[name].image)
LENGTHS = (9, 5, 12, 3)


def pad_left(batch):
    """Move the padding of every sample to its front."""
    rows = []
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        padding = len(mask) - int(mask.sum())
        rows.append((ids.roll(padding), mask.roll(padding)))
    ids, masks = zip(*rows, strict=True)
    return {"input_ids": torch.stack(ids), "attention_mask": torch.stack(masks)}


def capture(model, *batches):
    """Run batches; return per sample and layer O_h over its real tokens ``[H·G, S, D']``."""
    layers = [[] for _ in range(LAYERS)]

    def collect(layer, head_output, real):
        for output, mask in zip(head_output, real, strict=True):
            layers[layer].append(output[mask].transpose(0, 1).double().numpy().copy())

    with capture_head_outputs(model, on_head_output=collect) as run:
        for batch in batches:
            run(batch)
    return [list(sample) for sample in zip(*layers, strict=True)]


def assert_same(outputs, expected, *, atol=1e-12):
    """Compare head outputs, sample by sample and layer by layer."""
    assert len(outputs) == len(expected)
    for sample, other in zip(outputs, expected, strict=True):
        for output, wanted in zip(sample, other, strict=True):
            assert output.shape == wanted.shape
            assert abs(output - wanted).max() < atol


def refused(model, batch, *, param):
    """Return the error that a batch raises."""
    with pytest.raises(InvalidArgumentError) as caught:
        capture(model, batch)
    assert caught.value.param == param
    return caught.value


class TestHeadOutputs:
    @pytest.mark.parametrize("name", NAMES)
    def test_are_those_of_the_naive_reference(self, name):
        model = tiny_model(name, dtype=torch.float64)
        batch = tiny_batch(name, dtype=torch.float64, labels=True)
        assert_same(capture(model, batch), oracles.head_outputs(model, batch))

    @pytest.mark.parametrize(
        "config",
        [
            {"pos_att_type": "c2p"},
            {"pos_att_type": "p2c"},
            {"share_att_key": False},
            {"position_buckets": 16},
        ],
    )
    def test_are_those_of_each_variant_of_deberta(self, config):
        model = tiny_model("deberta-v3", dtype=torch.float64, **config)
        batch = tiny_batch("deberta-v3")
        assert_same(capture(model, batch), oracles.head_outputs(model, batch))

    @pytest.mark.parametrize("name", NAMES)
    def test_of_a_bare_backbone_are_the_same(self, name):
        model = tiny_model(name, dtype=torch.float64)
        batch = tiny_batch(name, dtype=torch.float64, labels=True)
        assert_same(capture(model.base_model, batch), capture(model, batch), atol=1e-15)

    @pytest.mark.parametrize("name", TEXT)
    def test_do_not_depend_on_the_side_of_the_padding(self, name):
        model = tiny_model(name, dtype=torch.float64)
        batch = tiny_batch(name)
        mixed = {
            key: torch.cat([batch[key][:2], value[2:]]) for key, value in pad_left(batch).items()
        }
        expected = capture(model, batch)
        assert_same(capture(model, pad_left(batch)), expected)
        assert_same(capture(model, mixed), expected)

    @pytest.mark.parametrize("name", TEXT)
    def test_do_not_depend_on_columns_of_padding_alone(self, name):
        model = tiny_model(name, dtype=torch.float64)
        batch = tiny_batch(name)
        wide = {key: torch.nn.functional.pad(value, (6, 7)) for key, value in batch.items()}
        assert_same(capture(model, wide), capture(model, batch))

    @pytest.mark.parametrize("name", ["bert", "gpt2"])
    def test_follow_position_ids_that_come_with_the_batch(self, name):
        model = tiny_model(name, dtype=torch.float64)
        batch = pad_left(tiny_batch(name))
        places = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        expected = capture(model, batch)
        assert_same(capture(model, batch | {"position_ids": places}), expected)
        shifted = capture(model, batch | {"position_ids": places + 1})
        assert abs(shifted[0][0] - expected[0][0]).max() > 1e-3

    def test_follow_one_row_of_position_ids_for_all_samples(self):
        model = tiny_model("bert", dtype=torch.float64)
        batch = pad_left(tiny_batch("bert"))
        places = torch.arange(12)[None]
        expected = capture(model, batch | {"position_ids": places.repeat(4, 1)})
        assert_same(capture(model, batch | {"position_ids": places}), expected, atol=1e-15)

    def test_follow_token_types_through_left_padding(self):
        model = tiny_model("bert", dtype=torch.float64)
        batch = tiny_batch("bert")
        batch["token_type_ids"] = (torch.arange(12) > 2).long().repeat(4, 1)
        moved = pad_left(batch)
        moved["token_type_ids"] = pad_left(batch | {"input_ids": batch["token_type_ids"]})[
            "input_ids"
        ]
        assert_same(capture(model, moved), capture(model, batch))

    def test_are_the_same_for_embeddings_in_the_place_of_tokens(self):
        model = tiny_model("llama", dtype=torch.float64)
        batch = pad_left(tiny_batch("llama"))
        embedded = {
            "inputs_embeds": model.get_input_embeddings()(batch["input_ids"]).detach().float(),
            "attention_mask": batch["attention_mask"],
        }
        # Embeddings come in another dtype than the model's here.
        assert_same(capture(model, embedded), capture(model, batch), atol=1e-5)

    def test_without_a_mask_are_over_all_tokens(self):
        batch = tiny_batch("bert", lengths=(7, 7))
        outputs = capture(tiny_model("bert"), {"input_ids": batch["input_ids"]})
        assert [sample[0].shape[1] for sample in outputs] == [7, 7]

    @pytest.mark.parametrize(("name", "special"), [("vit", 1), ("deit", 2)])
    def test_of_an_image_are_over_patches_and_special_tokens(self, name, special):
        outputs = capture(tiny_model(name), tiny_batch(name))
        assert outputs[0][0].shape[1] == 4 + special

    def test_of_images_of_another_size_follow_their_flag(self):
        model = tiny_model("vit", dtype=torch.float64)
        larger = {"pixel_values": torch.randn(2, 3, 12, 16, dtype=torch.float64)}
        with pytest.raises(ValueError, match="image size"):
            capture(model, larger | {"interpolate_pos_encoding": False})
        outputs = capture(model, larger | {"interpolate_pos_encoding": True})
        assert outputs[0][0].shape[1] == 3 * 4 + 1

        def interpolate(_, args, kwargs):
            return args, kwargs | {"interpolate_pos_encoding": True}

        embeddings = model.base_model.embeddings
        embeddings.register_forward_pre_hook(interpolate, with_kwargs=True)
        assert_same(outputs, oracles.head_outputs(model, larger))

    def test_of_each_choice_are_those_of_a_sample(self):
        model = tiny_model("bert", dtype=torch.float64)
        batch = tiny_batch("bert", lengths=(4, 6, 2, 5, 3, 6))
        choices = {key: value.view(2, 3, -1) for key, value in batch.items()}
        assert_same(capture(model, choices), capture(model, batch), atol=1e-15)

    def test_accept_a_bool_or_float_mask(self):
        model = tiny_model("bert", dtype=torch.float64)
        batch = tiny_batch("bert")
        for dtype in (torch.bool, torch.float32):
            other = batch | {"attention_mask": batch["attention_mask"].to(dtype)}
            assert_same(capture(model, other), capture(model, batch), atol=1e-15)

    @pytest.mark.parametrize("name", ["vit", "bert"])
    def test_come_in_the_dtype_of_the_model_whatever_that_of_the_input(self, name):
        model = tiny_model(name, dtype=torch.bfloat16)
        seen = set()
        with capture_head_outputs(
            model, on_head_output=lambda _, output, __: seen.add(output.dtype)
        ) as run:
            run(tiny_batch(name, dtype=torch.float64))
        assert seen == {torch.bfloat16}

    def test_of_float32_embeddings_come_in_the_dtype_of_the_model(self):
        embeddings = torch.randn(2, 5, 32)
        outputs = capture(tiny_model("llama", dtype=torch.bfloat16), {"inputs_embeds": embeddings})
        assert [sample[0].shape[1] for sample in outputs] == [5, 5]

    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    def test_do_not_depend_on_the_attention_implementation(self, attention):
        model = tiny_model("modernbert", dtype=torch.float64)
        expected = capture(model, tiny_batch("modernbert"))
        model.set_attn_implementation(attention)
        # Eager attention takes its softmax in float32, whatever the dtype of the model.
        assert_same(capture(model, tiny_batch("modernbert")), expected, atol=1e-5)


class TestTheModelAfterwards:
    def test_has_its_training_flags_back(self):
        model = tiny_model("bert").train()
        model.bert.encoder.layer[1].eval()
        flags = [module.training for module in model.modules()]
        capture(model, tiny_batch("bert"))
        assert [module.training for module in model.modules()] == flags

    def test_ran_without_dropout(self):
        model = tiny_model("bert", hidden_dropout_prob=0.5)
        expected = capture(model, tiny_batch("bert"))
        assert_same(capture(model.train(), tiny_batch("bert")), expected, atol=1e-15)

    def test_ran_without_gradients_and_caches_nothing_unfit_for_them(self):
        model = tiny_model("llama").train()
        kinds = set()

        def note(_, output, __):
            # An inference tensor, once cached by a module, can never be trained through again.
            kinds.add((output.requires_grad, output.is_inference()))

        with capture_head_outputs(model, on_head_output=note) as run:
            run(tiny_batch("llama"))
        assert kinds == {(False, False)}
        model(**tiny_batch("llama", labels=True)).loss.backward()

    def test_is_restored_by_an_exception_in_the_block(self):
        model = tiny_model("bert").train()
        calls = []

        def fail_after_a_batch():
            with capture_head_outputs(model, on_head_output=lambda *_: calls.append(1)) as run:
                run(tiny_batch("bert"))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail_after_a_batch()
        assert all(module.training for module in model.modules())
        seen = len(calls)
        model(**tiny_batch("bert"))
        assert len(calls) == seen == LAYERS

    def test_is_restored_by_an_exception_in_the_callback(self):
        model = tiny_model("bert").train()

        def fail(*_):
            raise ZeroDivisionError

        with (
            pytest.raises(ZeroDivisionError),
            capture_head_outputs(model, on_head_output=fail) as run,
        ):
            run(tiny_batch("bert"))
        assert all(module.training for module in model.modules())
        model(**tiny_batch("bert"))

    def test_keeps_its_configuration(self):
        model = tiny_model("bert", attn_implementation="eager", output_hidden_states=True)
        model.config.output_attentions = True
        before = model.config.to_dict()
        assert_same(
            capture(model, tiny_batch("bert") | {"output_attentions": True}),
            oracles.head_outputs(tiny_model("bert"), tiny_batch("bert")),
            atol=1e-4,
        )
        assert model.config.to_dict() == before
        assert len(model(**tiny_batch("bert")).attentions) == LAYERS

    def test_never_recorded_an_attention_or_a_hidden_state(self):
        model = tiny_model("bert", attn_implementation="eager", output_hidden_states=True)
        model.config.output_attentions = True
        outputs = []
        model.bert.register_forward_hook(lambda *call: outputs.append(call[2]))
        capture(model, tiny_batch("bert"))
        assert outputs[0].attentions is None
        assert outputs[0].hidden_states is None

    @pytest.mark.parametrize(
        "name", ["output_attentions", "output_hidden_states", "return_dict", "use_cache"]
    )
    @pytest.mark.parametrize("flag", [True, False])
    def test_records_nothing_that_a_batch_asks_for(self, name, flag):
        model = tiny_model("llama", attn_implementation="eager")
        outputs = []
        model.model.register_forward_hook(lambda *call: outputs.append(call[2]))
        capture(model, tiny_batch("llama") | {name: flag})
        assert set(outputs[0]) == {"last_hidden_state"}

    def test_builds_no_key_value_cache(self, monkeypatch):
        def refuse(*_, **__):
            raise AssertionError("a cache was built")

        monkeypatch.setattr("transformers.models.llama.modeling_llama.DynamicCache", refuse)
        capture(tiny_model("llama"), tiny_batch("llama"))


class TestRun:
    def test_gives_the_number_of_samples(self):
        with capture_head_outputs(tiny_model("bert"), on_head_output=lambda *_: None) as run:
            assert run(tiny_batch("bert")) == 4
            assert run({"input_ids": torch.ones(2, 3, 5, dtype=torch.long)}) == 6

    def test_stops_after_the_last_output_projection_once_the_first_pass_is_verified(self):
        model = tiny_model("bert")
        calls = []
        model.bert.encoder.layer[-1].intermediate.register_forward_hook(lambda *_: calls.append(1))
        capture(model, *[tiny_batch("bert")] * 3)
        assert len(calls) == 1

    def test_runs_the_backbone_alone(self):
        model = tiny_model("bert")
        model.classifier.register_forward_hook(lambda *_: pytest.fail("the task head ran"))
        capture(model, tiny_batch("bert", labels=True))

    @pytest.mark.parametrize("index", range(LAYERS))
    def test_refuses_a_layer_that_runs_twice(self, index):
        model = tiny_model("bert")
        layer = model.bert.encoder.layer[index]
        once = layer.forward
        layer.forward = lambda *args, **kwargs: (once(*args, **kwargs), once(*args, **kwargs))[1]
        with pytest.raises(
            CaptureError, match=rf"layer {index} ran instead of layer {index + 1} of 3"
        ):
            capture(model, tiny_batch("bert"))

    @pytest.mark.parametrize(
        ("index", "message"),
        [(1, "layer 2 ran instead of layer 1 of 3"), (2, "ran 2 of 3 layers")],
    )
    def test_refuses_a_pass_without_a_layer(self, index, message):
        model = tiny_model("bert")
        model.bert.encoder.layer[index].forward = lambda hidden, *_, **__: hidden
        with pytest.raises(CaptureError, match=message):
            capture(model, tiny_batch("bert"))

    def test_refuses_layers_out_of_order(self):
        model = tiny_model("bert")
        layers = model.bert.encoder.layer
        with capture_head_outputs(model, on_head_output=lambda *_: None) as run:
            model.bert.encoder.layer = torch.nn.ModuleList([layers[1], layers[0], layers[2]])
            with pytest.raises(CaptureError, match="layer 1 ran instead of layer 0"):
                run(tiny_batch("bert"))

    @pytest.mark.parametrize(
        "change",
        [
            lambda hidden: hidden.flatten(0, 1),  # unpadded, as flash attention packs it
            lambda hidden: hidden[:, :5],
            lambda hidden: hidden[:3],
            lambda hidden: hidden[..., :16],
        ],
    )
    def test_refuses_head_outputs_of_another_shape(self, change):
        model = tiny_model("bert")
        dense = model.bert.encoder.layer[1].attention.output.dense
        dense.register_forward_pre_hook(lambda _, args: (change(args[0]),))
        with pytest.raises(CaptureError, match=r"layer 1: .* expected \(4, 12, 32\)"):
            capture(model, tiny_batch("bert"))

    def test_refuses_an_output_projection_without_a_positional_input(self):
        model = tiny_model("bert")
        dense = model.bert.encoder.layer[0].attention.output.dense
        dense.register_forward_pre_hook(lambda *_: ())
        with pytest.raises(CaptureError, match=r"layer 0: .*without a tensor"):
            capture(model, tiny_batch("bert"))

    def test_leaves_the_model_to_its_user_between_batches(self):
        model, seen = tiny_model("bert"), []
        with capture_head_outputs(
            model, on_head_output=lambda layer, *_: seen.append(layer)
        ) as run:
            for _ in range(2):
                run(tiny_batch("bert"))
                assert model(**tiny_batch("bert")).logits.shape == (4, 2)
        assert seen == [*range(LAYERS), *range(LAYERS)]

    def test_goes_on_after_a_refused_batch(self):
        seen = []
        with capture_head_outputs(
            tiny_model("bert"), on_head_output=lambda layer, *_: seen.append(layer)
        ) as run:
            with pytest.raises(InvalidArgumentError):
                run({})
            run(tiny_batch("bert"))
        assert seen == list(range(LAYERS))


class TestBadBatches:
    @pytest.mark.parametrize("shape", [(4, 1, 12, 12), (4, 12, 12), (4, 13), (12,)])
    def test_a_mask_of_another_shape_is_refused(self, shape):
        batch = tiny_batch("bert") | {"attention_mask": torch.ones(shape)}
        assert refused(tiny_model("bert"), batch, param="attention_mask").value == shape

    @pytest.mark.parametrize("value", [0.5, 2, -10000.0, float("-inf"), float("nan")])
    def test_a_mask_of_other_values_is_refused(self, value):
        batch = tiny_batch("bert")
        batch["attention_mask"] = batch["attention_mask"].float()
        batch["attention_mask"][2, 1] = value
        assert "0" in refused(tiny_model("bert"), batch, param="attention_mask").limit

    def test_a_sample_without_a_real_token_is_refused_by_its_number(self):
        batch, empty = tiny_batch("bert"), tiny_batch("bert")
        empty["attention_mask"][1] = 0
        with pytest.raises(InvalidArgumentError, match=r"sample 6.*counted from 1"):
            capture(tiny_model("bert"), batch, empty)

    def test_a_choice_without_a_real_token_is_refused_by_its_number(self):
        batch = tiny_batch("bert", lengths=(4, 6, 2, 0, 3, 6))
        choices = {key: value.view(2, 3, -1) for key, value in batch.items()}
        error = refused(tiny_model("bert"), choices, param="attention_mask")
        assert "sample 4" in str(error)

    @pytest.mark.parametrize("batch", [{}, {"labels": torch.ones(2)}])
    def test_a_batch_without_input_is_refused(self, batch):
        assert "input_ids" in refused(tiny_model("bert"), batch, param="batches").limit

    @pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
    def test_an_empty_batch_is_refused(self, shape):
        batch = {"input_ids": torch.ones(shape, dtype=torch.long)}
        assert refused(tiny_model("bert"), batch, param="input_ids").value == shape

    def test_tokens_of_another_rank_are_refused(self):
        batch = {"input_ids": torch.ones(5, dtype=torch.long)}
        assert refused(tiny_model("bert"), batch, param="batches").value == (5,)

    def test_something_else_than_a_mapping_is_refused(self):
        assert refused(tiny_model("bert"), "input_ids", param="batches").value == "str"

    def test_an_input_that_is_no_tensor_is_refused(self):
        batch = {"input_ids": [[1, 2, 3]]}
        assert refused(tiny_model("bert"), batch, param="input_ids").value == "list"
