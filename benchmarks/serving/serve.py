"""Batches that mix tasks: a bank of head deltas against merged models and PEFT adapters."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModel

from benchmarks.data import MODEL, minilm, read_rows, tokenize_pairs
from benchmarks.rows import Row, interleaved, print_rows
from benchmarks.serving.deltas import K, minilm_deltas
from hifi.backbones.models import resolve_model
from hifi.serving.bank import HeadBank
from worker.inference.scheduler import Scheduler, Ticket
from worker.inference.serving import BATCH_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hifi.deltas.delta import HeadDelta

TASKS = ROWS = 64
CLOSE = 1e-5


@torch.inference_mode()
def _logits(
    model: PreTrainedModel | PeftModel, batch: dict[str, Tensor], **settings: Any
) -> Tensor:
    logits: Tensor = model(**batch, **settings).logits
    return logits


@torch.inference_mode()
def _merge_in_turn(
    model: PreTrainedModel, deltas: Sequence[HeadDelta], batch: dict[str, Tensor]
) -> Tensor:
    answers = []
    for place, delta in enumerate(deltas):
        displaced = delta.merge(model)
        answers.append(_logits(model, _part(batch, [place])))
        displaced.merge(model)
    return torch.cat(answers)


def _part(batch: dict[str, Tensor], places: Sequence[int]) -> dict[str, Tensor]:
    """Return some rows, padded to the longest of them."""
    index = torch.tensor(places)
    longest = int(batch["attention_mask"][index].sum(dim=1).max())
    return {key: tensor[index, :longest] for key, tensor in batch.items()}


def _by_length(batch: dict[str, Tensor]) -> list[list[int]]:
    """Form batches as the inference process would, with each row from a different tenant."""
    most = BATCH_TOKENS["cpu"]
    scheduler = Scheduler[int](max_tokens=most, tenant_tokens=most, max_wait_seconds=0.0)
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    scheduler.add([Ticket(None, str(place), length, place) for place, length in enumerate(lengths)])
    batches = []
    while len(scheduler):
        batches.append([ticket.work for ticket in scheduler.take()])
    return batches


def _in_batches(
    bank: HeadBank, batch: dict[str, Tensor], names: Sequence[str], *, parts: list[list[int]]
) -> list[Tensor]:
    answers: dict[int, Tensor] = {}
    for places in parts:
        logits = bank.forward(_part(batch, places), [names[place] for place in places])
        answers.update(zip(places, logits, strict=True))
    return [answers[place] for place in range(len(names))]


def _adapters(deltas: Sequence[HeadDelta], names: Sequence[str], folder: Path) -> PeftModel:
    """Load all deltas as stock PEFT adapters on one model."""
    for name, delta in zip(names, deltas, strict=True):
        delta.to_lora(folder / name, minilm().eval())
    model = PeftModel.from_pretrained(minilm(), folder / names[0], adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(folder / name, adapter_name=name)
    return model.eval()


def main() -> Iterator[Row]:
    """Measure mixed batches; takes ten minutes."""
    deltas = minilm_deltas(TASKS)
    rows = read_rows("mrpc", "validation")[:ROWS]
    batch = dict(tokenize_pairs(rows, padding=True, return_tensors="pt"))
    bank = HeadBank(AutoModel.from_pretrained(resolve_model(MODEL).path).eval())
    names = [f"task{number}" for number in range(TASKS)]
    for name, delta in zip(names, deltas, strict=True):
        bank.add(name, delta)
    merged = minilm().eval()
    deltas[0].merge(merged)
    plain = minilm().eval()
    mixed = partial(bank.forward, batch, names)
    parts = _by_length(batch)
    served = partial(_in_batches, bank, batch, names, parts=parts)
    in_turn = partial(_merge_in_turn, plain, deltas, batch)
    one, ours, turns, cut = interleaved([partial(_logits, merged, batch), mixed, in_turn, served])
    label = f"a batch of {ROWS} rows of MRPC over {TASKS} tasks (k={K}, MiniLM)"
    yield Row(f"{label}: rows per second", ROWS / ours, unit="/s")
    yield Row(f"{label} / one merged model on the same rows", one / ours, "≥ 0.85")
    yield Row(f"{label} / merging each task's delta in turn", turns / ours, "≥ 5")
    label_cut = f"the same {ROWS} rows in the inference process's {len(parts)} batches by length"
    yield Row(f"{label_cut}: rows per second", ROWS / cut, unit="/s")
    yield Row(f"{label_cut} / merging each task's delta in turn", turns / cut)
    reference = in_turn()
    for answered, way in ((label, mixed), (label_cut, served)):
        worst = (torch.stack(way()) - reference).abs().max().item()
        far = f"{answered}: largest difference to the merged models' logits"
        yield Row(far, worst, f"≤ {CLOSE:g}")
    with tempfile.TemporaryDirectory() as folder:
        tuned = _adapters(deltas, names, Path(folder))
        by_adapters = partial(_logits, tuned, batch, adapter_names=names)
        ours, peft = interleaved([mixed, by_adapters])
        yield Row(f"{label} / stock PEFT, {TASKS} adapters, adapter_names=", peft / ours, "≥ 15")
        worst = (by_adapters() - reference).abs().max().item()
        yield Row("stock PEFT: largest difference to the merged models' logits", worst)
    own = sum(t.nbytes for t in (*deltas[0].rows.values(), *deltas[0].task_head.values()))
    resident = bank.bytes_of(names[0])
    yield Row("bytes of a resident task / the delta's own", resident / own, "≤ 1.02")


if __name__ == "__main__":
    print_rows(main())
