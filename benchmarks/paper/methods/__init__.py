"""The compared methods, declared as data; a new one is an entry here and its file.

Usual rates: those of full, head-only, LoRA and HiFi are near the best in ``results/quality.jsonl``,
about five times the paper's for its larger backbone (Tab. 5). The others are guesses in this
proportion. A search tries a quarter to four times the usual rate; tables tell when the best of them
is at an end.

Methods that need packages of their own name their environment, in which their model is trained or
computed by a process: see :mod:`benchmarks.paper.rivals`.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.paper.methods import adapterhub, setfit
from benchmarks.paper.methods.ablations import TABLE_3, ablation
from benchmarks.paper.methods.adapters import (
    QUERY_KEY,
    QUERY_VALUE,
    ia3,
    lora,
    prefix_tuning,
    shira,
)
from benchmarks.paper.methods.base import LOSSY, Method
from benchmarks.paper.methods.child_tuning import child_tuning
from benchmarks.paper.methods.diff_pruning import diff_pruning
from benchmarks.paper.methods.head_starts import AUTO, PROBE, RANDOM
from benchmarks.paper.methods.heads import K, tuned_heads
from benchmarks.paper.methods.linear_probe import run_probe
from benchmarks.paper.methods.plain import bitfit, full, head_only
from benchmarks.paper.methods.rival import trained_by

# How the quality depends on the stored bytes: LoRA by rank, heads by number. `lora-qv` has rank 8,
# `hifi-budget` as many heads as three of each layer.
_RANKS = (1, 2, 4, 16, 32)
_BUDGETS = (1, 2, 4, 8, 12, 24, 36)
# Heads of each layer besides `hifi`, which tunes K of them.
_OTHER_K = (1, 2, 4, 5, 6, 8)

_RIVALS = {
    "full": (trained_by(full), 1e-4),
    "head-only": (trained_by(head_only), 2e-2),
    "bitfit": (trained_by(bitfit, encodings=LOSSY), 2e-3),
    "lora-qk": (trained_by(lora(QUERY_KEY)), 1e-3),
    "lora-qv": (trained_by(lora(QUERY_VALUE), encodings=LOSSY), 1e-3),
    **{
        f"lora-qv-r{rank}": (trained_by(lora(QUERY_VALUE, rank=rank), encodings=LOSSY), 1e-3)
        for rank in _RANKS
    },
    "prefix": (trained_by(prefix_tuning), 1e-2),
    "ia3": (trained_by(ia3, encodings=LOSSY), 1e-2),
    "shira": (trained_by(shira), 2e-3),
    "child-tuning": (trained_by(child_tuning), 1e-4),
    "diff-pruning": (trained_by(diff_pruning), 2e-4),
}
_ADAPTERHUB = {
    "adapter": (adapterhub.adapter(adapterhub.HOULSBY), 1e-3),
    "compacter": (adapterhub.adapter(adapterhub.COMPACTER), 3e-3),
}
_OURS = {
    **{name: ablation(name) for name in TABLE_3},
    "hifi": ablation("hifi", encodings=LOSSY),
    "hifi-budget": ablation("hifi-budget", encodings=LOSSY),
    "hifi-mid-top": tuned_heads(score="pagerank", strategy="mid-top"),
    **{
        f"hifi-heads-{budget}": tuned_heads(
            score="gradient", strategy="budget", budget=budget, encodings=LOSSY
        )
        for budget in _BUDGETS
    },
    **{f"hifi-k{k}": tuned_heads(score="pagerank", strategy="layer-wise", k=k) for k in _OTHER_K},
}
METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(name="probe", run=run_probe, usual_rate=None, head_starts=(PROBE,)),
        *(
            Method(name=name, run=run, usual_rate=rate, head_starts=(RANDOM, PROBE))
            for name, (run, rate) in _RIVALS.items()
        ),
        *(
            Method(
                name=name,
                run=run,
                usual_rate=rate,
                head_starts=(RANDOM, PROBE),
                environment=adapterhub.ENVIRONMENT,
            )
            for name, (run, rate) in _ADAPTERHUB.items()
        ),
        # Its logistic regression is fitted, as a probe is.
        Method(
            name="setfit",
            run=setfit.run_setfit,
            usual_rate=None,
            head_starts=(PROBE,),
            environment=setfit.ENVIRONMENT,
            classifies_few=True,
        ),
        *(
            Method(
                name=name, run=run, usual_rate=5e-4, head_starts=(PROBE, RANDOM), has_defaults=True
            )
            for name, run in _OURS.items()
        ),
        # What the library does unasked.
        Method(
            name="hifi-default",
            run=tuned_heads(encodings=LOSSY),
            usual_rate=5e-4,
            head_starts=(AUTO,),
            has_defaults=True,
        ),
    )
}
# How many heads of each layer a method tunes (Fig. 6).
HEADS_PER_LAYER: Mapping[str, int] = {
    name: k for k, name in sorted([(K, "hifi"), *((k, f"hifi-k{k}") for k in _OTHER_K)])
}
# Methods of one kind and different sizes, which a picture of quality against bytes connects.
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "BitFit": ("bitfit",),
    "IA³": ("ia3",),
    "LoRA": ("lora-qv", *(f"lora-qv-r{rank}" for rank in _RANKS)),
    "HiFi heads": ("hifi-budget", *(f"hifi-heads-{budget}" for budget in _BUDGETS)),
}
# The methods of a table or a figure, by a name that stands for all of them on the command line.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "table-3": tuple(TABLE_3),
    "k": tuple(HEADS_PER_LAYER),
    "stored": tuple(name for names in FAMILIES.values() for name in names),
}
