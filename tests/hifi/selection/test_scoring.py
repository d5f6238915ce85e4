from __future__ import annotations

import copy
import gc
import warnings

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from hifi.errors import (
    CaptureError,
    ConvergenceError,
    InvalidArgumentError,
    UnsupportedArchitectureError,
)
from hifi.selection.capture import capture_head_outputs
from hifi.selection.richness import information_richness
from hifi.selection.scoring import sample_indices, select_heads
from hifi.tuning.tuner import HeadTuner
from tests import oracles
from tests.architectures import (
    ARCHITECTURES,
    GROUPED_HEADS,
    HIDDEN,
    LAYERS,
    NAMES,
    QUERY_HEADS,
    heads_per_layer,
    tiny_batch,
    tiny_model,
)

TEXT = tuple(name for name in NAMES if not ARCHITECTURES[name].image)
# Tiny random models have one strong direction: only a high share makes I differ between heads.
XI = 0.99


def some_batches(name, *, dtype=torch.float32):
    """Build two batches with eleven samples."""
    return [
        tiny_batch(name, dtype=dtype),
        tiny_batch(name, seed=1, lengths=(4, 14, 2, 7, 1, 9, 11), dtype=dtype),
    ]


def samples_of(batches):
    """Split batches into single samples without padding."""
    for batch in batches:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            yield {"input_ids": ids[None, mask.bool()]}


def stacked(selection, field):
    """Stack one field of every layer's scores."""
    return torch.stack([getattr(layer, field) for layer in selection.layers])


def assert_same_scores(selection, expected, *, atol=1e-12):
    """Assert equal I, and r and p* within a tolerance."""
    assert torch.equal(
        stacked(selection, "information_richness"), stacked(expected, "information_richness")
    )
    for field in ("correlation", "importance"):
        difference = (stacked(selection, field) - stacked(expected, field)).abs().max()
        assert difference < atol, field
    assert selection.heads == expected.heads


class TestScores:
    @pytest.mark.parametrize("name", NAMES)
    def test_equal_the_naive_ones_in_float64(self, name):
        model = tiny_model(name, dtype=torch.float64)
        batches = some_batches(name, dtype=torch.float64)
        selection = select_heads(model, batches, k=2, xi=XI)
        naive = oracles.scores(model, batches, groups=heads_per_layer(name), xi=XI)
        assert len(selection.layers) == len(naive) == LAYERS
        for scores, expected in zip(selection.layers, naive, strict=True):
            information = scores.information_richness.numpy()
            np.testing.assert_array_equal(information, expected.information_richness)
            np.testing.assert_allclose(scores.correlation, expected.correlation, atol=1e-12)
            np.testing.assert_allclose(scores.importance, expected.importance, atol=1e-9)
            ranked = sorted(np.argsort(-expected.importance, kind="stable")[:2].tolist())
            assert scores.selected == tuple(ranked)
        assert stacked(selection, "information_richness").std() > 0
        assert selection.n_samples == 11

    @pytest.mark.parametrize("name", NAMES)
    def test_come_close_to_the_naive_ones_in_float32(self, name):
        model, batches = tiny_model(name), some_batches(name)
        naive = oracles.scores(model, batches, groups=heads_per_layer(name), xi=XI)
        for scores, expected in zip(
            select_heads(model, batches, k=1, xi=XI).layers, naive, strict=True
        ):
            # One sample in eleven may fall to the other side of ξ.
            information = scores.information_richness.numpy()
            np.testing.assert_allclose(information, expected.information_richness, atol=0.1)
            np.testing.assert_allclose(scores.correlation, expected.correlation, atol=2e-5)
            np.testing.assert_allclose(scores.importance, expected.importance, atol=0.01)

    @pytest.mark.parametrize("teleport", ["information", "uniform"])
    @pytest.mark.parametrize("damping", [0.0, 0.5, 0.95])
    def test_follow_damping_and_teleport(self, damping, teleport):
        model, batches = tiny_model("bert", dtype=torch.float64), some_batches("bert")
        selection = select_heads(model, batches, k=1, damping=damping, teleport=teleport)
        naive = oracles.scores(
            model, batches, groups=QUERY_HEADS, damping=damping, teleport=teleport
        )
        for scores, expected in zip(selection.layers, naive, strict=True):
            np.testing.assert_allclose(scores.importance, expected.importance, atol=3e-9)

    def test_have_the_promised_types(self):
        selection = select_heads(tiny_model("llama"), some_batches("llama"), k=1)
        for scores in selection.layers:
            assert scores.information_richness.shape == scores.importance.shape == (GROUPED_HEADS,)
            assert scores.correlation.shape == (GROUPED_HEADS, GROUPED_HEADS)
            tensors = (scores.information_richness, scores.correlation, scores.importance)
            assert {tensor.dtype for tensor in tensors} == {torch.float64}
            assert scores.correlation.diagonal().tolist() == [0] * GROUPED_HEADS
            assert type(scores.iterations) is int
            assert type(scores.selected) is tuple

    def test_of_a_bfloat16_model_are_taken_from_upcast_values(self):
        model = tiny_model("bert", dtype=torch.bfloat16)
        batches = some_batches("bert")
        outputs = {}

        def collect(layer, head_output, real):
            for output, mask in zip(head_output, real, strict=True):
                outputs.setdefault(layer, []).append(output[mask].transpose(0, 1).double().numpy())

        with capture_head_outputs(model, on_head_output=collect) as run:
            for batch in batches:
                run(batch)
        selection = select_heads(model, batches, k=1, xi=0.9)
        for layer, samples in outputs.items():
            counts = [[oracles.richness(head, xi=0.9) for head in sample] for sample in samples]
            information = selection.layers[layer].information_richness.tolist()
            assert information == pytest.approx(np.mean(counts, axis=0).tolist(), abs=1e-15)

    def test_of_a_real_backbone_equal_a_singular_value_decomposition(self, minilm_path):
        tokenizer = AutoTokenizer.from_pretrained(minilm_path)
        texts = [
            "A head delta holds the rows of a few attention heads.",
            "Yes.",
            "Thousands of them share one backbone, and each can be merged back bit for bit.",
            "The walk of PageRank follows the correlation between the heads' mean outputs. " * 3,
        ]
        batch = dict(tokenizer(texts, padding=True, return_tensors="pt"))
        counts = {}

        def count(layer, head_output, real):
            counts[layer] = [
                [oracles.richness(head[mask].double().numpy(), xi=0.9) for head in sample]
                for sample, mask in zip(head_output.transpose(1, 2), real, strict=True)
            ]

        model = AutoModel.from_pretrained(minilm_path)
        with capture_head_outputs(model, on_head_output=count) as run:
            run(batch)
        selection = select_heads(model, [batch])
        for layer, scores in enumerate(selection.layers):
            expected = np.mean(counts[layer], axis=0)
            np.testing.assert_array_equal(scores.information_richness, expected)
        assert len(selection.heads) == 6 * 3


class TestInvariance:
    @pytest.mark.parametrize("name", TEXT)
    def test_padding_batch_size_and_order_change_nothing_in_float64(self, name):
        model = tiny_model(name, dtype=torch.float64)
        batches = some_batches(name)
        expected = select_heads(model, batches, k=1, xi=XI)
        alone = list(samples_of(batches))
        left = {
            key: torch.stack(
                [torch.nn.functional.pad(value, (20 - len(value), 0)) for value in values]
            )
            for key, values in {
                "input_ids": [sample["input_ids"][0] for sample in alone],
                "attention_mask": [
                    torch.ones(sample["input_ids"].shape[1]).long() for sample in alone
                ],
            }.items()
        }
        wide = [
            {key: torch.nn.functional.pad(value, (0, 9)) for key, value in batch.items()}
            for batch in batches
        ]
        for others in (alone, alone[::-1], batches[::-1], [left], wide):
            assert_same_scores(select_heads(model, others, k=1, xi=XI), expected)

    def test_renaming_heads_renames_scores(self):
        model = tiny_model("bert", dtype=torch.float64)
        order = [2, 0, 3, 1]
        rows = torch.arange(HIDDEN).view(QUERY_HEADS, -1)[order].flatten()
        renamed = copy.deepcopy(model)
        for layer in renamed.bert.encoder.layer:
            for name in ("query", "key", "value"):
                projection = getattr(layer.attention.self, name)
                projection.weight.data = projection.weight.data[rows]
                projection.bias.data = projection.bias.data[rows]
            dense = layer.attention.output.dense
            dense.weight.data = dense.weight.data[:, rows]
        plain = select_heads(model, some_batches("bert"), k=2, xi=XI)
        other = select_heads(renamed, some_batches("bert"), k=2, xi=XI)
        for scores, expected in zip(other.layers, plain.layers, strict=True):
            assert torch.equal(scores.information_richness, expected.information_richness[order])
            torch.testing.assert_close(
                scores.correlation, expected.correlation[order][:, order], atol=1e-12, rtol=0
            )
            assert {order[head] for head in scores.selected} == set(expected.selected)

    def test_information_does_not_change_when_squares_of_head_outputs_underflow(self):
        model = tiny_model("bert", dtype=torch.float64)
        expected = select_heads(model, some_batches("bert"), k=1, xi=XI)
        value = model.bert.encoder.layer[0].attention.self.value
        value.weight.data *= 1e-170
        value.bias.data *= 1e-170
        scores = select_heads(model, some_batches("bert"), k=1, xi=XI).layers[0]
        assert torch.equal(scores.information_richness, expected.layers[0].information_richness)
        assert scores.information_richness.max() > 1

    def test_a_tuner_on_the_model_changes_nothing(self):
        model = tiny_model("bert")
        expected = select_heads(model, some_batches("bert"), k=2)
        tuner = HeadTuner(model, expected)
        assert_same_scores(select_heads(model, some_batches("bert"), k=2), expected, atol=1e-15)
        tuner.detach()

    def test_a_second_run_gives_the_same_bits(self):
        model = tiny_model("gpt2").train()
        first, second = (select_heads(model, some_batches("gpt2"), k=1) for _ in range(2))
        assert first.to_dict() == second.to_dict()


class TestSelectHeads:
    def test_choices_count_as_samples(self):
        batch = tiny_batch("bert", lengths=(4, 6, 2, 5, 3, 6))
        choices = {key: value.view(2, 3, -1) for key, value in batch.items()}
        choices["labels"] = torch.tensor([0, 2])
        model = tiny_model("bert")
        selection = select_heads(model, [choices], k=1)
        assert selection.n_samples == 6
        assert_same_scores(selection, select_heads(model, [batch], k=1), atol=1e-15)

    @pytest.mark.parametrize(("num_layers", "open_layers"), [(2, [1]), (3, [2]), (4, [2, 3])])
    def test_mid_top_selects_in_the_upper_half_and_scores_everywhere(self, num_layers, open_layers):
        model = tiny_model("bert", num_hidden_layers=num_layers)
        everywhere = select_heads(model, some_batches("bert"), k=2)
        selection = select_heads(model, some_batches("bert"), k=2, strategy="mid-top")
        for layer, (scores, expected) in enumerate(
            zip(selection.layers, everywhere.layers, strict=True)
        ):
            assert torch.equal(scores.importance, expected.importance)
            assert scores.selected == (expected.selected if layer in open_layers else ())
        assert selection.heads == tuple(h for h in everywhere.heads if h.layer in open_layers)

    def test_selects_heads_in_order_and_as_layers_say(self):
        selection = select_heads(tiny_model("vit"), some_batches("vit"), k=3)
        assert list(selection.heads) == sorted(selection.heads)
        for layer, scores in enumerate(selection.layers):
            assert selection.selected_in(layer) == scores.selected
            worst = set(range(QUERY_HEADS)) - set(scores.selected)
            assert int(scores.importance.argmin()) in worst

    def test_takes_integers_of_numpy(self):
        selection = select_heads(tiny_model("bert"), some_batches("bert"), k=np.int64(2))
        assert type(selection.k) is int
        assert_same_scores(selection, select_heads(tiny_model("bert"), some_batches("bert"), k=2))

    def test_can_select_every_head(self):
        selection = select_heads(tiny_model("bert"), some_batches("bert"), k=QUERY_HEADS)
        assert len(selection.heads) == LAYERS * QUERY_HEADS

    def test_k_counts_groups_where_keys_are_grouped(self):
        selection = select_heads(tiny_model("qwen3"), some_batches("qwen3"), k=GROUPED_HEADS)
        assert len(selection.heads) == LAYERS * GROUPED_HEADS

    def test_records_its_settings(self):
        selection = select_heads(
            tiny_model("bert"), some_batches("bert"), k=1, xi=0.5, damping=0.7, strategy="mid-top"
        )
        assert (selection.k, selection.xi, selection.damping) == (1, 0.5, 0.7)
        assert (selection.strategy, selection.teleport) == ("mid-top", "information")
        assert (selection.num_layers, selection.n_samples) == (LAYERS, 11)

    def test_xi_is_nine_tenths_by_default_and_counts(self):
        model, batches = tiny_model("modernbert"), some_batches("modernbert")
        default = select_heads(model, batches, k=1)
        assert default.xi == 0.9
        assert_same_scores(select_heads(model, batches, k=1, xi=0.9), default, atol=1e-15)
        other = select_heads(model, batches, k=1, xi=0.5)
        assert not torch.equal(stacked(other, "importance"), stacked(default, "importance"))

    def test_warns_that_xi_does_not_count_with_the_uniform_teleport(self):
        model, batches = tiny_model("modernbert"), some_batches("modernbert")
        with pytest.warns(UserWarning, match=r"xi=0.5 has no influence") as caught:
            low = select_heads(model, batches, k=1, xi=0.5, teleport="uniform")
        assert caught[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            default = select_heads(model, batches, k=1, teleport="uniform")
        difference = stacked(low, "importance") - stacked(default, "importance")
        assert difference.abs().max() < 1e-8

    def test_reports_the_samples_seen_after_each_batch(self):
        seen = []
        select_heads(tiny_model("bert"), some_batches("bert"), k=1, on_batch=seen.append)
        assert seen == [4, 11]

    def test_an_exception_of_the_callback_ends_it_and_restores_the_model(self):
        model = tiny_model("bert").train()

        def cancel(_):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            select_heads(model, some_batches("bert"), k=1, on_batch=cancel)
        assert all(module.training for module in model.modules())
        assert not select_heads(model, some_batches("bert"), k=1).layers[0].importance.isnan().any()

    def test_changes_neither_weights_nor_batches(self):
        model, batches = tiny_model("bert", dtype=torch.float64), some_batches("bert")
        weights, inputs = copy.deepcopy(model.state_dict()), copy.deepcopy(batches)
        select_heads(model, batches, k=1)
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
        for batch, expected in zip(batches, inputs, strict=True):
            assert all(torch.equal(value, expected[name]) for name, value in batch.items())

    @pytest.mark.parametrize("heads", [1, QUERY_HEADS])
    def test_changes_no_activation(self, heads):
        # With one head the transposed float64 output is already as wanted: it must be a copy.
        model = tiny_model("bert", dtype=torch.float64, num_attention_heads=heads)
        seen = []
        model.bert.register_forward_hook(lambda *call: seen.append(call[2].last_hidden_state))
        model(**tiny_batch("bert"))
        select_heads(model, [tiny_batch("bert")], k=1)
        assert torch.equal(*seen)

    def test_memory_does_not_grow_with_the_number_of_samples(self):
        alive = []

        def count(samples):
            if samples in (8, 48):
                gc.collect()
                kinds = (each for each in gc.get_objects() if issubclass(type(each), torch.Tensor))
                sizes = [each.nbytes for each in kinds]
                alive.append((len(sizes), sum(sizes)))

        batches = (tiny_batch("bert", seed=seed) for seed in range(12))
        select_heads(tiny_model("bert"), batches, k=1, on_batch=count)
        assert len(alive) == 2
        assert alive[0] == alive[1]


class TestRefusals:
    @pytest.mark.parametrize(
        ("param", "values", "limit"),
        [
            ("k", [0, -1, 5, 2.0, True, "3", float("nan")], "from 1 to the 4 heads"),
            ("xi", [0, 1, -0.5, 1.5, float("nan"), True, "0.9"], r"\(0, 1\)"),
            ("damping", [1, -0.1, float("nan"), False, "0.85", None], r"\[0, 1\)"),
            ("strategy", ["top", None, 1], "layer-wise, mid-top"),
            ("teleport", ["inverse", None, 1], "information, uniform"),
        ],
    )
    def test_an_argument_outside_its_range(self, param, values, limit):
        model = tiny_model("bert")
        for value in values:
            with pytest.raises(InvalidArgumentError, match=f"{param}=.*{limit}") as caught:
                select_heads(model, [], **{param: value})
            assert caught.value.param == param
            assert caught.value.value is value

    def test_the_whole_share(self):
        # information_richness itself allows ξ = 1.
        assert information_richness(torch.eye(3), xi=1) == 3
        with pytest.raises(InvalidArgumentError, match="xi=1 "):
            select_heads(tiny_model("bert"), [], xi=1)

    def test_the_upper_half_of_a_single_layer(self):
        with pytest.raises(InvalidArgumentError, match=r"strategy='mid-top'.*two layers"):
            select_heads(tiny_model("bert", num_hidden_layers=1), [], strategy="mid-top")

    def test_more_heads_than_there_are_groups(self):
        with pytest.raises(InvalidArgumentError, match=r"k=3.*2 heads"):
            select_heads(tiny_model("llama"), [], k=3)

    def test_no_batches(self):
        with pytest.raises(InvalidArgumentError, match="at least one batch"):
            select_heads(tiny_model("bert"), [])

    def test_one_batch_in_the_place_of_batches(self):
        with pytest.raises(InvalidArgumentError, match="iterable of mappings"):
            select_heads(tiny_model("bert"), tiny_batch("bert"))

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_head_outputs_that_are_not_finite(self, value):
        model = tiny_model("bert")
        model.bert.encoder.layer[1].attention.self.value.bias.data[3] = value
        with pytest.raises(CaptureError, match="layer 1"):
            select_heads(model, some_batches("bert"), k=1)

    def test_a_damping_that_does_not_converge(self):
        with pytest.raises(ConvergenceError, match=r"damping=0.9999"):
            select_heads(tiny_model("llama"), some_batches("llama"), k=1, damping=0.9999)

    def test_an_unknown_architecture(self):
        model = tiny_model("bert")
        model.config.model_type = "t5"
        with pytest.raises(UnsupportedArchitectureError, match="'t5'"):
            select_heads(model, [])

    def test_heads_of_a_single_dimension(self):
        model = BertModel(BertConfig(hidden_size=4, num_attention_heads=4, num_hidden_layers=1))
        with pytest.raises(InvalidArgumentError, match="D' ≥ 2"):
            select_heads(model, [{"input_ids": torch.ones(1, 3, dtype=torch.long)}], k=1)


class TestSampleIndices:
    def test_draws_without_replacement(self):
        drawn = sample_indices(50, n=50, seed=3)
        assert sorted(drawn) == list(range(50))
        assert drawn != sorted(drawn)

    def test_follows_the_seed(self):
        assert sample_indices(1000, n=30, seed=1) == sample_indices(1000, n=30, seed=1)
        assert sample_indices(1000, n=30, seed=1) != sample_indices(1000, n=30, seed=2)

    @pytest.mark.parametrize("n", [0, 11, -1, True, 2.0])
    def test_refuses_more_than_there_are(self, n):
        with pytest.raises(InvalidArgumentError, match=r"n=.*from 1 to the 10 samples"):
            sample_indices(10, n=n, seed=0)

    def test_takes_integers_of_numpy(self):
        assert sample_indices(10, n=np.int32(4), seed=0) == sample_indices(10, n=4, seed=0)
