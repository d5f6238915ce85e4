"""Which rows belong to a head: shown by changing them and comparing the head outputs."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from peft import LoraConfig, get_peft_model

from hifi.backbones.heads import (
    SUPPORTED_ARCHITECTURES,
    HeadId,
    HiddenLayer,
    describe,
    first_token_layer,
    plain_projection,
    read_rows,
    task_head_layers,
    task_head_names,
    write_rows,
)
from hifi.errors import InvalidArgumentError, TunerError, UnsupportedArchitectureError
from tests.architectures import HIDDEN, LAYERS, NAMES, heads_per_layer, tiny_batch, tiny_model


def output_of(model, layer, batch):
    """Capture the input of W^O of one layer: ``[B, S, query heads, D']``."""
    backbone = describe(model)
    caught = []
    module = model.get_submodule(backbone.layers[layer].output_name)
    hook = module.register_forward_pre_hook(lambda _, arguments: caught.append(arguments[0]))
    with torch.no_grad():
        model(**batch)
    hook.remove()
    return caught[0].unflatten(-1, (backbone.num_query_heads, backbone.head_dim))


@pytest.mark.parametrize("name", NAMES)
class TestEveryArchitecture:
    def test_has_these_sizes(self, name):
        backbone = describe(tiny_model(name))
        assert backbone.num_layers == LAYERS
        assert backbone.num_heads == heads_per_layer(name)
        assert backbone.num_query_heads == 4
        assert backbone.head_dim == 8
        assert backbone.hidden_size == HIDDEN

    @pytest.mark.parametrize("projection", [0, 1, 2])
    def test_rows_move_their_own_head_output_and_no_other(self, name, projection):
        model, batch = tiny_model(name), tiny_batch(name, lengths=(9, 9))
        backbone = describe(model)
        where = backbone.layers[1].projections[projection]
        before = output_of(model, 1, batch)
        weight, bias = read_rows(model, where, 1)
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        write_rows(model, where, 1, weight=weight + noise, bias=bias)
        moved = (output_of(model, 1, batch) - before).abs().amax(dim=(0, 1, 3)) > 1e-6
        own = range(backbone.group_size, 2 * backbone.group_size)
        assert moved.nonzero().flatten().tolist() == list(own)

    def test_rows_are_read_back_as_written(self, name):
        model = tiny_model(name)
        where = describe(model).layers[2].projections[1]
        weight, bias = read_rows(model, where, 0)
        assert weight.shape == (8, HIDDEN)
        bias = None if bias is None else bias + 1
        write_rows(model, where, 0, weight=weight + 1, bias=bias)
        again, again_bias = read_rows(model, where, 0)
        assert torch.equal(again, weight + 1)
        assert (bias is None and again_bias is None) or torch.equal(again_bias, bias)

    def test_is_described_alike_bare_and_with_a_task_head(self, name):
        model = tiny_model(name)
        whole, bare = describe(model), describe(model.base_model)
        assert [len(layer.projections) for layer in bare.layers] == [3] * LAYERS
        prefix = whole.layers[0].output_name.removesuffix(bare.layers[0].output_name)
        assert prefix == f"{model.base_model_prefix}."


def position_scores(model, states):
    """Compute what layer 1 of a DeBERTa adds to the scores of given queries and keys."""
    encoder = model.deberta.encoder
    with torch.no_grad():
        return encoder.layer[1].attention.self.disentangled_attention_bias(
            states, states.flip(1), None, encoder.get_rel_embedding(), 3
        )


@pytest.mark.parametrize("name", ["deberta-v2", "deberta-v3"])
class TestRelativePositions:
    """DeBERTa projects its positions with the query and key rows of the hidden states."""

    @pytest.mark.parametrize("projection", [0, 1, 2])
    def test_rows_move_the_outputs_of_their_head_alone(self, name, projection):
        model, batch = tiny_model(name), tiny_batch(name)
        where = describe(model).layers[1].projections[projection]
        before = output_of(model, 1, batch)
        weight, bias = read_rows(model, where, 2)
        write_rows(model, where, 2, weight=weight + 0.5, bias=bias + 0.5)
        after = output_of(model, 1, batch)
        others = [0, 1, 3]
        assert torch.equal(after[:, :, others], before[:, :, others])
        assert (after[:, :, 2] - before[:, :, 2]).abs().max() > 1e-3

    @pytest.mark.parametrize(("projection", "moved"), [(0, [2]), (1, [2]), (2, [])])
    def test_query_and_key_rows_project_the_positions_of_their_head_alone(
        self, name, projection, moved
    ):
        model = tiny_model(name)
        states = torch.randn(2 * 4, 12, 8, generator=torch.Generator().manual_seed(0))
        where = describe(model).layers[1].projections[projection]
        before = position_scores(model, states)
        weight, bias = read_rows(model, where, 2)
        write_rows(model, where, 2, weight=weight + 0.5, bias=bias + 0.5)
        change = (position_scores(model, states) - before).abs().unflatten(0, (2, 4))
        assert change.amax(dim=(0, 2, 3)).nonzero().flatten().tolist() == moved

    def test_projections_of_their_own_belong_to_no_head(self, name):
        model = tiny_model(name, share_att_key=False)
        states = torch.randn(4, 12, 8, generator=torch.Generator().manual_seed(0))
        before = position_scores(model, states)
        for where in describe(model).layers[1].projections:
            weight, bias = read_rows(model, where, 2)
            write_rows(model, where, 2, weight=weight + 0.5, bias=bias + 0.5)
        assert torch.equal(position_scores(model, states), before)
        assert "pos_key_proj" not in repr(describe(model))


class TestRefusals:
    @pytest.mark.parametrize(
        "model",
        [
            lambda: tf.AlbertModel(
                tf.AlbertConfig(hidden_size=8, num_attention_heads=2, intermediate_size=8)
            ),
            lambda: tf.T5Model(tf.T5Config(d_model=8, num_heads=2, d_ff=8, num_layers=1)),
            lambda: tf.DebertaModel(
                tf.DebertaConfig(
                    hidden_size=8, num_attention_heads=2, intermediate_size=8, num_hidden_layers=1
                )
            ),
        ],
        ids=["shared weights", "encoder-decoder", "the first DeBERTa"],
    )
    def test_unknown_architectures_with_a_list_of_the_known(self, model):
        with pytest.raises(UnsupportedArchitectureError) as caught:
            describe(model())
        assert all(name in str(caught.value) for name in SUPPORTED_ARCHITECTURES)

    @pytest.mark.parametrize("wrap", [torch.nn.DataParallel, torch.nn.Sequential])
    def test_an_object_that_is_no_transformers_model(self, wrap):
        with pytest.raises(UnsupportedArchitectureError, match="supported architectures: bert"):
            describe(wrap(tiny_model("bert")))

    def test_a_model_that_peft_has_wrapped(self):
        config = LoraConfig(task_type="SEQ_CLS", target_modules=["query"])
        with pytest.raises(UnsupportedArchitectureError, match="supported architectures: bert"):
            describe(get_peft_model(tiny_model("bert"), config))

    def test_cross_attention(self):
        with pytest.raises(UnsupportedArchitectureError, match="cross attention"):
            describe(tiny_model("bert", is_decoder=True, add_cross_attention=True))

    @pytest.mark.parametrize("head", [HeadId(3, 0), HeadId(0, 4), HeadId(-1, 0)])
    def test_heads_outside(self, head):
        with pytest.raises(InvalidArgumentError, match=r"heads 0\.\.3"):
            describe(tiny_model("bert")).check_heads([head])

    def test_projections_that_are_wrapped(self):
        model = tiny_model("bert")
        where = describe(model).layers[0].projections[0]
        model.set_submodule(where.module_name, torch.nn.Sequential())
        with pytest.raises(TunerError, match="Sequential"):
            plain_projection(model, where)


class TestTaskHead:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("bert", {"classifier"}),
            ("roberta", {"classifier.dense", "classifier.out_proj"}),
            ("electra", {"classifier.dense", "classifier.out_proj"}),
            ("distilbert", {"pre_classifier", "classifier"}),
            ("modernbert", {"head.dense", "head.norm", "classifier"}),
            ("deberta-v3", {"pooler.dense", "classifier"}),
            ("mpnet", {"classifier.dense", "classifier.out_proj"}),
            ("gpt2", {"score"}),
            ("llama", {"score"}),
            ("qwen3", {"score"}),
            ("vit", {"classifier"}),
        ],
    )
    def test_is_every_parameter_outside_the_base_model(self, name, expected):
        names = task_head_names(tiny_model(name))
        assert {parameter.rpartition(".")[0] for parameter in names} == expected

    def test_of_question_answering_is_qa_outputs(self):
        config = tiny_model("bert").config
        names = task_head_names(tf.BertForQuestionAnswering(config))
        assert names == ("qa_outputs.weight", "qa_outputs.bias")

    @pytest.mark.parametrize("tied", [True, False])
    def test_of_a_causal_language_model_is_empty(self, tied):
        config = tiny_model("llama", tie_word_embeddings=tied).config
        assert task_head_names(tf.LlamaForCausalLM(config)) == ()

    def test_of_a_bare_model_is_empty(self):
        assert task_head_names(tiny_model("bert").bert) == ()

    def test_takes_further_modules(self):
        names = task_head_names(tiny_model("bert"), extra=["bert.pooler"])
        assert "bert.pooler.dense.weight" in names

    @pytest.mark.parametrize("name", ["bert.encoder", "bert.embeddings", "bert"])
    def test_refuses_parts_of_the_backbone(self, name):
        with pytest.raises(InvalidArgumentError, match="not part of its backbone"):
            task_head_names(tiny_model("bert"), extra=[name])

    def test_refuses_unknown_modules(self):
        with pytest.raises(InvalidArgumentError, match="pooler2"):
            task_head_names(tiny_model("bert"), extra=["bert.pooler2"])


class TestTaskHeadLayers:
    @pytest.mark.parametrize(
        ("name", "config", "hidden"),
        [
            ("bert", {}, None),
            ("mpnet", {}, HiddenLayer("classifier.dense", "tanh")),
            ("deberta-v3", {}, HiddenLayer("pooler.dense", "gelu")),
            ("deberta-v3", {"pooler_hidden_act": "tanh"}, HiddenLayer("pooler.dense", "tanh")),
            ("modernbert", {"classifier_activation": "relu"}, HiddenLayer("head.dense", "relu")),
        ],
    )
    def test_have_the_activation_of_the_model(self, name, config, hidden):
        layers = task_head_layers(tiny_model(name, **config))
        assert layers.hidden == hidden


class TestFirstTokenBlock:
    @pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta", "electra"])
    def test_is_known_in_the_bert_family(self, name):
        last = first_token_layer(tiny_model(name))
        assert last.attention.endswith("encoder.layer.2.attention.self")
        assert last.output.endswith("encoder.layer.2.attention.output")

    @pytest.mark.parametrize("name", ["deberta-v2", "deberta-v3"])
    def test_is_known_in_deberta_except_for_the_attention(self, name):
        last = first_token_layer(tiny_model(name))
        assert last.attention is None
        assert last.output.endswith("encoder.layer.2.attention.output")

    def test_is_none_where_tokens_are_convolved_after_the_last_layer(self):
        assert first_token_layer(tiny_model("deberta-v2", num_hidden_layers=1)) is None

    @pytest.mark.parametrize("name", ["distilbert", "modernbert", "mpnet", "vit", "gpt2", "llama"])
    def test_is_none_elsewhere(self, name):
        assert first_token_layer(tiny_model(name)) is None

    def test_is_none_in_a_class_that_may_pool_otherwise(self):
        class MeanPoolForSequenceClassification(tf.BertForSequenceClassification):
            pass

        model = MeanPoolForSequenceClassification(tiny_model("bert").config)
        assert first_token_layer(model) is None

    def test_is_none_where_every_token_is_read(self):
        config = tiny_model("bert").config
        assert first_token_layer(tf.BertForTokenClassification(config)) is None
