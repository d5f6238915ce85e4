"""Shared by tests of a tuner: its heads, a short training, and the weights that must not change."""

from __future__ import annotations

import torch

from hifi.backbones.checkpoint import new_parameter_names
from hifi.backbones.heads import describe
from hifi.selection.head_selection import HeadSelection
from tests.architectures import LAYERS, tiny_batch
from tests.deltas import HEADS


def selection(heads=HEADS):
    return HeadSelection.from_heads(heads, num_layers=LAYERS)


def train(model, parameters, *, name, steps=3, **batch):
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    model.train()
    for step in range(steps):
        model(**tiny_batch(name, seed=step, labels=True, **batch)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def frozen_copy(model, heads=HEADS):
    """Every weight with the selected rows and the task head blanked."""
    backbone = describe(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name in new_parameter_names(model):
        state[name].zero_()
    for head in heads:
        for projection in backbone.layers[head.layer].projections:
            rows = projection.rows(head.head)
            weight = state[f"{projection.module_name}.weight"]
            (weight.T if projection.transposed else weight)[rows] = 0
            if f"{projection.module_name}.bias" in state:
                state[f"{projection.module_name}.bias"][rows] = 0
    return state
