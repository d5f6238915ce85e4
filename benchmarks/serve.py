"""Answers for many tasks at once: a bank of head deltas against merged models and adapters."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from benchmarks.data import MAX_LENGTH, MODEL, minilm, read_rows
from benchmarks.rows import Row, print_rows
from benchmarks.selection import interleaved
from hifi.backbone import HeadId
from hifi.bank import HeadBank
from hifi.head_selection import HeadSelection
from hifi.models import resolve_model
from hifi.tuning import HeadTuner

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hifi.delta import HeadDelta

TASKS = ROWS = 64
LAYERS, HEADS, K = 6, 12, 3
CLOSE = 1e-5
_TASK = {"type": "classification", "text": ["sentence1", "sentence2"], "label": "label"}


def noise_deltas(model: PreTrainedModel, *, count: int) -> Iterator[HeadDelta]:
    """Make head deltas of ``K`` heads per layer, with noise in the place of training."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        heads = [
            HeadId(layer, int(head))
            for layer in range(LAYERS)
            for head in torch.randperm(HEADS, generator=generator)[:K]
        ]
        tuner = HeadTuner(model, HeadSelection.from_heads(heads, num_layers=LAYERS))
        for parameter in tuner.parameters():
            parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator)
        yield tuner.delta(task=_TASK, labels=["0", "1"])
        tuner.undo()


def mrpc_batch(rows: int) -> dict[str, Tensor]:
    """Tokenize the first rows of MRPC's validation split as one batch."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(MODEL).path)
    first, second = (
        [row[name] for row in read_rows("mrpc", "validation")[:rows]]
        for name in ("sentence1", "sentence2")
    )
    encoded = tokenizer(
        first, second, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt"
    )
    return dict(encoded)


@torch.inference_mode()
def _logits(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    logits: Tensor = model(**batch).logits
    return logits


@torch.inference_mode()
def _merge_in_turn(
    model: PreTrainedModel, deltas: Sequence[HeadDelta], batch: dict[str, Tensor]
) -> Tensor:
    answers = []
    for place, delta in enumerate(deltas):
        displaced = delta.merge(model)
        answers.append(_logits(model, {key: t[place : place + 1] for key, t in batch.items()}))
        displaced.merge(model)
    return torch.cat(answers)


@torch.inference_mode()
def _by_adapters(model: PeftModel, batch: dict[str, Tensor], names: list[str]) -> Tensor:
    logits: Tensor = model(**batch, adapter_names=names).logits
    return logits


def _adapters(deltas: Sequence[HeadDelta], folder: Path) -> PeftModel:
    """Load all deltas as stock PEFT adapters on one model."""
    model: PeftModel | None = None
    for number, delta in enumerate(deltas):
        path, name = folder / str(number), f"task{number}"
        delta.to_lora(path, minilm().eval())
        if model is None:
            model = PeftModel.from_pretrained(minilm(), path, adapter_name=name)
        else:
            model.load_adapter(path, adapter_name=name)
    if model is None:
        raise ValueError("no deltas")
    return model.eval()


def main() -> Iterator[Row]:
    """Measure all of it, ten minutes."""
    deltas = list(noise_deltas(minilm().eval(), count=TASKS))
    batch = mrpc_batch(ROWS)
    bank = HeadBank(AutoModel.from_pretrained(resolve_model(MODEL).path).eval())
    for number, delta in enumerate(deltas):
        bank.add(str(number), delta)
    names = [str(number) for number in range(TASKS)]
    merged = minilm().eval()
    deltas[0].merge(merged)
    plain = minilm().eval()
    mixed = partial(bank.forward, batch, names)
    one, ours, turns = interleaved(
        [partial(_logits, merged, batch), mixed, partial(_merge_in_turn, plain, deltas, batch)]
    )
    label = f"a batch of {ROWS} rows of MRPC over {TASKS} tasks (k={K}, MiniLM)"
    yield Row(f"{label}: rows per second", ROWS / ours, unit="/s")
    yield Row(f"{label} / one merged model on the same rows", one / ours, "≥ 0.85")
    yield Row(f"{label} / merging each task's delta in turn", turns / ours, "≥ 5")
    reference = _merge_in_turn(plain, deltas, batch)
    worst = (torch.stack(mixed()) - reference).abs().max().item()
    yield Row(f"{label}: largest difference to the merged models' logits", worst, f"≤ {CLOSE:g}")
    with tempfile.TemporaryDirectory() as folder:
        model = _adapters(deltas, Path(folder))
        adapters = [f"task{number}" for number in range(TASKS)]
        ours, peft = interleaved([mixed, partial(_by_adapters, model, batch, adapters)])
        yield Row(f"{label} / stock PEFT, {TASKS} adapters, adapter_names=", peft / ours, "≥ 15")
        answers = _by_adapters(model, batch, adapters)
        worst = (answers - reference).abs().max().item()
        yield Row("stock PEFT: largest difference to the merged models' logits", worst)
    size = sum(t.nbytes for t in (*deltas[0].rows.values(), *deltas[0].task_head.values()))
    yield Row("bytes of a resident task / the delta's own", bank.bytes_of("0") / size, "≤ 1.02")


if __name__ == "__main__":
    print_rows(main())
