"""One text asked of many tasks: shared layers run once, against a row for each task."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from transformers import AutoModel

from benchmarks.data import MODEL, minilm, read_rows, tokenize_pairs
from benchmarks.rows import Row, interleaved, print_rows
from benchmarks.serving.deltas import mrpc_delta
from hifi.backbones.heads import HeadId, describe
from hifi.backbones.models import resolve_model
from hifi.selection.head_selection import HeadSelection
from hifi.serving.bank import HeadBank

TASKS = 8
TURNS = 15
CLOSE = 1e-5
# Which layers have tuned heads, how many in each, and the target.
_ALLOTMENTS = {
    "mid-top": (range(3, 6), 3, "≥ 1.7"),
    "a budget in the last third of the layers": (range(4, 6), 9, "≥ 2.2"),
}


def _selection(layers: range, *, k: int, seed: int) -> HeadSelection:
    """Draw ``k`` heads of each of these layers."""
    backbone = describe(minilm())
    draw = torch.Generator().manual_seed(seed)
    heads = [
        HeadId(layer, head)
        for layer in layers
        for head in torch.randperm(backbone.num_heads, generator=draw)[:k].tolist()
    ]
    return HeadSelection.from_heads(heads, num_layers=backbone.num_layers)


def main() -> Iterator[Row]:
    """Measure fan-outs of one text and of eight; takes a minute."""
    names = [f"task{number}" for number in range(TASKS)]
    model = minilm().eval()
    for allotment, (layers, k, target) in _ALLOTMENTS.items():
        bank = HeadBank(AutoModel.from_pretrained(resolve_model(MODEL).path).eval())
        for seed, name in enumerate(names):
            bank.add(name, mrpc_delta(model, _selection(layers, k=k, seed=seed), seed=seed))
        for texts in (1, 8):
            rows = read_rows("mrpc", "validation")[:texts]
            batch = dict(tokenize_pairs(rows, padding=True, return_tensors="pt"))
            repeated = {key: value.repeat_interleave(TASKS, 0) for key, value in batch.items()}
            apart = partial(bank.forward, repeated, names * texts)
            together = partial(bank.fan_out, batch, [names] * texts)
            alone, shared = interleaved([apart, together], turns=TURNS)
            what = f"{texts} text{'s' * (texts > 1)} of MRPC, {TASKS} tasks, {allotment}"
            yield Row(f"{what}: fan-out / a row for each task", alone / shared, target)
            found = [answer for answers in together() for answer in answers]
            pairs = zip(apart(), found, strict=True)
            worst = max((one - two).abs().max().item() for one, two in pairs)
            yield Row(f"{what}: largest difference", worst, f"≤ {CLOSE:g}")
        bank.close()


if __name__ == "__main__":
    print_rows(main())
