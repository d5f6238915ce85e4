"""Training speed in the same loop: HiFi against full fine-tuning and stock PEFT LoRA."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from benchmarks.data import minilm, mrpc_batches
from benchmarks.rows import Row, interleaved, print_rows
from benchmarks.speed.methods import Method, precision, prepare

LEARNING_RATE = 3e-4
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
Batches = Sequence[Mapping[str, Tensor]]


def measure(
    names: Sequence[str], build: Callable[[str], PreTrainedModel], batches: Batches, *, dtype: str
) -> dict[str, float]:
    """Return the median seconds per method, over the same batches, in turns."""
    methods = {name: prepare(name, build(name)) for name in names}
    optimizers = {
        name: torch.optim.AdamW(method.parameters, lr=LEARNING_RATE, fused=True)
        for name, method in methods.items()
    }
    runs = [partial(train, methods[n], optimizers[n], batches, dtype=dtype) for n in names]
    return dict(zip(names, interleaved(runs), strict=True))


def train(
    method: Method, optimizer: torch.optim.Optimizer, batches: Batches, *, dtype: str
) -> None:
    """Run the training loop of all methods: one step per batch, in order."""
    method.network.train()
    with method.during():
        for batch in batches:
            with precision(dtype):
                loss = method.network(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def _same_loop(
    dtype: str,
    attention: str,
    *,
    settings: Mapping[str, float] = NO_DROPOUT,
    frozen: str = "float32",
) -> list[Row]:
    """Compare the methods; ``frozen`` is the dtype of the frozen backbone of HiFi and LoRA."""

    def build(name: str) -> PreTrainedModel:
        held = getattr(torch, "float32" if name == "full" else frozen)
        return minilm(attn_implementation=attention, dtype=held, **settings)

    names = ("full", "lora-qk", "lora-qv", "tuner", "hifi")
    batches = mrpc_batches(12)
    seconds = measure(names, build, batches, dtype=dtype)
    dropout = "dropout off" if settings else "dropout as configured"
    label = f"MRPC, {dtype}, frozen weights in {frozen}, {attention}, {dropout}: "
    targets = {"full": 1.6, "lora-qk": 1.15, "lora-qv": 1.15}
    rate = sum(len(batch["labels"]) for batch in batches) / seconds["hifi"]
    rows = [Row(f"{label}HiFi", rate, unit="samples/s")]
    for rival, least in targets.items():
        rows.append(Row(f"{label}HiFi / {rival}", seconds[rival] / seconds["hifi"], f"≥ {least}"))
        rows.append(Row(f"{label}HeadTuner alone / {rival}", seconds[rival] / seconds["tuner"]))
    return rows


def _one_step() -> list[Row]:
    def build(_name: str) -> PreTrainedModel:
        torch.manual_seed(0)
        return BertForSequenceClassification(BertConfig(**NO_DROPOUT))

    torch.manual_seed(0)
    ids = torch.randint(1000, 30000, (16, 128))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 2}
    names = ("full", "tuner", "hifi", "hifi-mid-top", "hifi-prefix")
    seconds = measure(names, build, [batch] * 2, dtype="float32")
    label = "one step, BERT-base shape, 16×128, float32: "
    return [
        Row(f"{label}HiFi / full", seconds["hifi"] / seconds["full"], "≤ 0.62"),
        Row(f"{label}HeadTuner alone / full", seconds["tuner"] / seconds["full"]),
        Row(f"{label}mid-top / full", seconds["hifi-mid-top"] / seconds["full"], "≤ 0.44"),
        Row(
            f"{label}mid-top after the first epoch / full",
            seconds["hifi-prefix"] / seconds["full"],
            "≤ 0.30",
        ),
    ]


def main() -> Iterator[Row]:
    """Measure training speed; takes half an hour on two cores."""
    yield from _same_loop("float32", "sdpa")
    yield from _same_loop("bfloat16", "eager")
    yield from _same_loop("bfloat16", "eager", frozen="bfloat16")
    yield from _same_loop("float32", "sdpa", settings={})
    yield from _one_step()


if __name__ == "__main__":
    print_rows(main())
