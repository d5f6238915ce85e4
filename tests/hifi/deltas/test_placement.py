"""hifi.deltas.placement: rows land where each architecture keeps them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from tests.architectures import tiny_model
from tests.deltas import hand_made_delta

if TYPE_CHECKING:
    from hifi.deltas.delta import HeadDelta

D = 32  # hidden size of the tiny models


def patterned(delta: HeadDelta, *, row: float) -> HeadDelta:
    """Set every weight of the delta to ``row``, 2·``row``, 3·``row``, … for query, key, value."""
    factors = {"query": 1, "key": 2, "value": 3}
    rows = {
        name: torch.full_like(tensor, row * factors[name.split(".")[4]])
        for name, tensor in delta.rows.items()
    }
    return replace(delta, rows=rows)


class TestWhereRowsGo:
    def test_puts_rows_where_bert_keeps_them(self):
        model = tiny_model("bert")
        patterned(hand_made_delta(model), row=5.0).merge(model)
        attention = model.bert.encoder.layer[0].attention.self
        for projection, value in ((attention.query, 5), (attention.key, 10), (attention.value, 15)):
            is_tuned = (projection.weight == value).all(dim=1)
            assert is_tuned.nonzero().flatten().tolist() == list(range(8, 16))
            assert (projection.bias == value).nonzero().flatten().tolist() == list(range(8, 16))

    def test_puts_rows_where_modernbert_keeps_them(self):
        model = tiny_model("modernbert")
        patterned(hand_made_delta(model), row=5.0).merge(model)
        fused = model.model.layers[0].attn.Wqkv.weight
        assert (fused[8:16] == 5).all()
        assert (fused[D + 8 : D + 16] == 10).all()
        assert (fused[2 * D + 8 : 2 * D + 16] == 15).all()
        assert int((fused == 5).sum() + (fused == 10).sum() + (fused == 15).sum()) == 3 * 8 * D

    def test_puts_rows_into_the_columns_of_gpt2(self):
        model = tiny_model("gpt2")
        patterned(hand_made_delta(model), row=5.0).merge(model)
        fused = model.transformer.h[0].attn.c_attn
        assert (fused.weight[:, 8:16] == 5).all()
        assert (fused.weight[:, D + 8 : D + 16] == 10).all()
        assert (fused.weight[:, 2 * D + 8 : 2 * D + 16] == 15).all()
        assert (fused.bias[2 * D + 8 : 2 * D + 16] == 15).all()

    def test_puts_the_rows_of_a_key_value_group_where_llama_keeps_them(self):
        model = tiny_model("llama")
        patterned(hand_made_delta(model), row=5.0).merge(model)
        attention = model.model.layers[0].self_attn
        assert (attention.q_proj.weight == 5).all(dim=1).nonzero().flatten().tolist() == list(
            range(16, 32)
        )
        assert (attention.k_proj.weight == 10).all(dim=1).nonzero().flatten().tolist() == list(
            range(8, 16)
        )
