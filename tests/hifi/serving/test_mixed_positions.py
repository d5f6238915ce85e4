"""hifi.serving.mixed_positions: each sample's positions are projected with its own task's rows."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch

from hifi.backbones.heads import HeadId, describe
from hifi.selection.head_selection import HeadSelection
from hifi.serving.bank import HeadBank
from hifi.tuning.tuner import HeadTuner
from tests.architectures import LAYERS, tiny_batch, tiny_model
from tests.tuned_tasks import CLOSE, bare, row, several

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hifi.deltas.delta import HeadDelta

LENGTHS = (9, 5, 12, 3, 7, 7)
# Few samples of two tasks, then many of one, in the order in which the bank computes them.
NAMES = [None, "a", "b", "c", "c", "c"]
METHOD = "disentangled_attention_bias"


def noisy_delta(model: PreTrainedModel, *, seed: int) -> HeadDelta:
    """Make a delta without a task head: noise in a head of every layer."""
    heads = [HeadId(layer, (layer + seed) % 4) for layer in range(LAYERS)]
    tuner = HeadTuner(model, HeadSelection.from_heads(heads, num_layers=LAYERS))
    generator = torch.Generator().manual_seed(seed)
    for parameter in tuner.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    delta = tuner.delta()
    tuner.detach()
    return delta


def position_scores(model: PreTrainedModel, batch: dict[str, Tensor], run: Any) -> list[Tensor]:
    """Collect what the layers add to their attention scores, ``[B, H, S, S]``."""
    seen: list[Tensor] = []
    kind = type(model.encoder.layer[0].attention.self)
    stock = getattr(kind, METHOD)

    def spy(*arguments: Any) -> Tensor:
        scores = stock(*arguments)
        seen.append(scores.unflatten(0, (len(batch["input_ids"]), -1)))
        return scores

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, METHOD, spy)
        run()
    return seen


@pytest.fixture(params=["deberta-v2", "deberta-v3"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


class TestScores:
    def test_of_each_sample_are_those_of_its_merged_backbone(self, name: str):
        tasks = {key: several(name)[key] for key in "abc"}
        model, batch = bare(name), tiny_batch(name, lengths=LENGTHS)
        bank = HeadBank(model)
        for key, tuned in tasks.items():
            bank.add(key, tuned.delta)
        mixed = position_scores(model, batch, lambda: bank.forward(batch, NAMES))
        for place, key in enumerate(NAMES):
            own = bare(name) if key is None else tasks[key].model.base_model
            alone = row(batch, place)
            with torch.no_grad():
                merged = position_scores(own, alone, lambda own=own, alone=alone: own(**alone))
            for scores, expected in zip(mixed, merged, strict=True):
                real = LENGTHS[place]
                difference = scores[place, :, :real, :real] - expected[0, :, :real, :real]
                assert difference.abs().max() <= CLOSE

    def test_project_the_positions_once_for_all_samples(self, name: str):
        model, batch = bare(name), tiny_batch(name, lengths=LENGTHS)
        bank = HeadBank(model)
        for key in "abc":
            bank.add(key, several(name)[key].delta)
        calls: list[int] = []
        query = model.encoder.layer[0].attention.self.query_proj
        query.register_forward_pre_hook(lambda _, arguments: calls.append(len(arguments[0])))
        bank.forward(batch, NAMES)
        assert calls == [6, 1]


class TestVariants:
    @pytest.mark.parametrize(
        "config",
        [
            {"pos_att_type": "c2p"},
            {"pos_att_type": "p2c"},
            {"share_att_key": False},
            {"share_att_key": False, "pos_att_type": "p2c"},
            {"relative_attention": False, "position_biased_input": True},
            {"position_buckets": -1},
            {"norm_rel_ebd": "none"},
            {"type_vocab_size": 2},
        ],
    )
    def test_answer_as_merged_backbones(self, config: dict[str, Any]):
        model = tiny_model("deberta-v3", **config).base_model
        batch = tiny_batch("deberta-v3", lengths=LENGTHS)
        merged = [copy.deepcopy(model) for _ in range(2)]
        bank = HeadBank(model)
        for seed, own in enumerate(merged):
            bank.add(str(seed), noisy_delta(own, seed=seed))
        names = ["0", "1", "0", "1", "1", "1"]
        answers = bank.forward(batch, names)
        for place, (key, answer) in enumerate(zip(names, answers, strict=True)):
            with torch.no_grad():
                expected = merged[int(key)](**batch).last_hidden_state[place]
            assert (answer - expected).abs().max() <= CLOSE

    def test_are_recognised_by_their_configuration(self):
        for config, is_shared in (
            ({}, True),
            ({"share_att_key": False}, False),
            ({"relative_attention": False}, False),
        ):
            layers = describe(tiny_model("deberta-v3", **config)).layers
            assert all((layer.positions is not None) == is_shared for layer in layers)


class TestTheModel:
    def test_is_as_it_was_after_a_batch(self, name: str):
        model, batch = bare(name), tiny_batch(name, lengths=LENGTHS)
        with torch.no_grad():
            expected = model(**batch).last_hidden_state
        bank = HeadBank(model)
        bank.add("a", several(name)["a"].delta)
        bank.forward(batch, ["a"] * 6)
        with torch.no_grad():
            assert torch.equal(model(**batch).last_hidden_state, expected)
        for layer in model.encoder.layer:
            attention = layer.attention.self
            assert METHOD not in vars(attention)
            assert attention.num_attention_heads == 4

    def test_is_as_it_was_after_an_exception(self, name: str):
        model = bare(name)
        bank = HeadBank(model)
        bank.add("a", several(name)["a"].delta)
        last = model.encoder.layer[-1].attention.output
        hook = last.register_forward_pre_hook(lambda *_: pytest.fail("stopped"))
        with pytest.raises(pytest.fail.Exception):
            bank.forward(tiny_batch(name, lengths=LENGTHS), ["a"] * 6)
        hook.remove()
        assert all(METHOD not in vars(layer.attention.self) for layer in model.encoder.layer)
        assert all(not layer._products for layer in bank._mixed._layers)
