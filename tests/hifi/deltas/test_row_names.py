"""hifi.deltas.row_names: one spelling per head, and shapes that belong together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hifi.backbones.heads import HeadId
from hifi.deltas.delta import HeadDelta, row_key
from hifi.errors import (
    InvalidArgumentError,
)
from tests.architectures import tiny_model
from tests.deltas import hand_made_delta, rows_of


class TestConstruction:
    def delta_with(self, **rows: Tensor | None) -> None:
        model = tiny_model("bert")
        delta = hand_made_delta(model, heads=[HeadId(0, 1), HeadId(2, 0)])
        names = {
            "layers.0.heads.1." + name.replace("_", "."): tensor for name, tensor in rows.items()
        }
        changed = {**delta.rows, **names}
        HeadDelta(
            rows={name: tensor for name, tensor in changed.items() if tensor is not None},
            task_head={},
            metadata=delta.metadata,
        )

    @pytest.mark.parametrize(
        ("rows", "match"),
        [
            ({"query_weight": None}, r"query\.weight='missing'"),
            ({"key_weight": torch.zeros(8)}, r"key\.weight=\[8\]"),
            ({"value_weight": torch.zeros(8, 0)}, r"value\.weight=\[8, 0\]"),
            ({"key_bias": torch.zeros(7)}, r"key\.bias=\[7\]"),
            ({"key_weight": torch.zeros(4, 32), "key_bias": torch.zeros(4)}, r"as the value's"),
            ({"query_weight": torch.zeros(9, 32), "query_bias": torch.zeros(9)}, "multiple of 8"),
            ({"query_weight": torch.zeros(8, 31)}, "multiple of 8"),
            ({"key_bias": None}, r"layers\.2\.heads\.0\.key\.bias=\[8\]"),
            ({"output_weight": torch.zeros(8, 32)}, "tensor name="),
        ],
    )
    def test_refuses_rows_that_cannot_be_one_backbones(
        self, rows: dict[str, Tensor | None], match: str
    ):
        with pytest.raises(InvalidArgumentError, match=match):
            self.delta_with(**rows)

    @pytest.mark.parametrize(
        "name",
        [
            "layers.00.heads.1.query.weight",
            "layers.-1.heads.1.query.weight",
            "layers.0.heads.123456.query.weight",
            "layers.0.heads.1.query.weight.scale",
            "layers.0.heads.1.query",
            "layers.٣.heads.1.query.weight",
            "layers.0.heads.1.query.weight\n",
            "",
        ],
    )
    def test_refuses_names_in_any_other_spelling(self, name: str):
        delta = hand_made_delta(tiny_model("bert"))
        with pytest.raises(InvalidArgumentError, match="tensor name"):
            replace(delta, rows={**delta.rows, name: torch.zeros(8, 32)})

    def test_refuses_a_base_of_other_heads(self):
        model = tiny_model("bert")
        delta = hand_made_delta(model)
        with pytest.raises(InvalidArgumentError, match="base"):
            replace(delta, base=rows_of(model, heads=[HeadId(1, 1)]))

    def test_holds_tensors_without_a_gradient(self):
        delta = hand_made_delta(tiny_model("bert"))
        rows = {name: tensor.requires_grad_() for name, tensor in delta.rows.items()}
        assert not any(tensor.requires_grad for tensor in replace(delta, rows=rows).rows.values())

    def test_does_not_change_when_the_model_trains_on(self):
        model = tiny_model("bert")
        delta = hand_made_delta(model)
        query = model.bert.encoder.layer[0].attention.self.query
        name = "layers.0.heads.1.query.weight"
        live = replace(
            delta,
            rows={**delta.rows, name: query.weight[8:16]},
            base={**delta.base, name: query.weight.detach()[8:16]},
            task_head={"classifier.weight": model.classifier.weight},
        )
        held = [live.rows[name], live.base[name], live.task_head["classifier.weight"]]
        before = [tensor.clone() for tensor in held]
        with torch.no_grad():
            query.weight.add_(1)
            model.classifier.weight.add_(1)
        assert all(torch.equal(*pair) for pair in zip(held, before, strict=True))

    def test_cannot_be_changed(self):
        delta = hand_made_delta(tiny_model("bert"))
        with pytest.raises(AttributeError):
            delta.rows = {}

    def test_lists_its_heads_in_order_of_their_numbers(self):
        heads = [HeadId(10, 2), HeadId(2, 10), HeadId(2, 9)]
        model = tiny_model(
            "bert", num_hidden_layers=11, num_attention_heads=16, intermediate_size=4
        )
        assert hand_made_delta(model, heads=heads).heads == tuple(sorted(heads))


class TestNames:
    def test_row_key(self):
        assert row_key(HeadId(3, 11), "key", "bias") == "layers.3.heads.11.key.bias"
