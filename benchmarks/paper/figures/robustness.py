"""The scores of heads after full fine-tuning with the settings of section 5.1, and before it.

Scores are computed in eval mode, so those of a frozen model do not depend on a batch size or a
learning rate, up to rounding. What can depend on them is a model that was trained with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from benchmarks.paper.figures.figure import Numbers, Request, plain
from benchmarks.paper.figures.training import steps_of, train
from benchmarks.paper.methods.plain import full
from hifi.data.settings import Scoring
from hifi.training.finetuning import select_prepared

if TYPE_CHECKING:
    from torch import Tensor

    from hifi.data.settings import Hyperparameters
    from hifi.selection.head_selection import HeadSelection
    from hifi.training.preparation import Prepared


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting of the paper.

    Attributes:
        batch_size, learning_rate: of full fine-tuning.
        max_length: tokens of a pair, in training and scoring.
        samples: n, that are scored; all rows if there are fewer.
    """

    batch_size: int = 32
    learning_rate: float = 2e-5
    max_length: int = 128
    samples: int = 300


STANDARD = "ST"
SETTINGS: Mapping[str, Setting] = {
    STANDARD: Setting(),
    "BS": Setting(batch_size=16),
    "LR": Setting(learning_rate=5e-5),
    "SL": Setting(max_length=64),
    "SS": Setting(samples=1000),
}
TUNED, FROZEN = "fine-tuned", "frozen"
CAPTION = "after full fine-tuning with each setting, and of the frozen model"
_WHY = (
    "Scores of a frozen model in eval mode cannot depend on batch size or learning rate (BS, LR); "
    "what is compared is the model after full fine-tuning with each setting, the frozen one beside "
    "it. Samples, task head and the order of rows are drawn by the seed."
)

Scores = Mapping[str, Mapping[str, "list[HeadSelection]"]]  # by setting and state, each of a seed


def numbers(
    request: Request,
    read: Callable[[HeadSelection], Tensor],
    *,
    compared: Callable[[np.ndarray], np.ndarray] = lambda means: means,
) -> Numbers:
    """Compute mean and deviation over seeds of a number of heads, in every setting and state.

    Args:
        request: the task, the seeds and the number of steps.
        read: reads the numbers of a selection, ``[L, …]``.
        compared: from means ``[L, …]`` to those whose ranks are compared, ``[L, N]``.
    """
    found = {
        name: {
            state: np.array([read(each).numpy() for each in seeds]) for state, seeds in by.items()
        }
        for name, by in measure(request).items()
    }
    ranked = {
        name: {state: compared(values.mean(0)) for state, values in by.items()}
        for name, by in found.items()
    }
    settings: dict[str, Any] = {}
    for name, by in found.items():
        (first, *_) = measure(request)[name][TUNED]
        settings[name] = {**asdict(SETTINGS[name]), "samples": first.n_samples}
        for state, values in by.items():
            settings[name][state] = {
                "mean": plain(values.mean(0)),
                "sd": plain(values.std(0, ddof=1)) if len(values) > 1 else None,
                f"spearman_with_{STANDARD}": rank_correlations(
                    ranked[name][state], ranked[STANDARD][state]
                ),
            }
    standard = ranked[STANDARD]
    return {
        "task": request.task,
        "seeds": list(request.seeds),
        "steps": request.steps,
        "settings": settings,
        "spearman_of_frozen_with_tuned": rank_correlations(standard[FROZEN], standard[TUNED]),
    }


@lru_cache(maxsize=1)  # two figures are drawn from the same trainings
def measure(request: Request) -> Scores:
    """Score the heads in every setting, with every seed, before and after training."""
    found: dict[str, dict[str, list[HeadSelection]]] = {
        name: {TUNED: [], FROZEN: []} for name in SETTINGS
    }
    splits = request.splits()
    for seed in request.seeds:
        for trained, names in _by_training().items():
            asked = asdict(trained)
            asked.pop("samples")
            run = request.run(splits, seed=seed, **asked)
            ready = run.prepare(has_validation=False)
            for name in names:
                found[name][FROZEN].append(_score(ready, run.settings, SETTINGS[name]))
            steps = steps_of(ready, run.settings, steps=request.steps)
            for _ in train(ready, full, settings=run.settings, steps=steps):
                pass
            for name in names:
                found[name][TUNED].append(_score(ready, run.settings, SETTINGS[name]))
            print(f"scored {', '.join(names)} with seed {seed}, {steps} steps", flush=True)
    return found


def _by_training() -> Mapping[Setting, list[str]]:
    """Return the names of the settings that share a training; they differ in samples alone."""
    groups: dict[Setting, list[str]] = {}
    for name, setting in SETTINGS.items():
        groups.setdefault(replace(setting, samples=Setting.samples), []).append(name)
    return groups


def _score(ready: Prepared, settings: Hyperparameters, setting: Setting) -> HeadSelection:
    samples = min(setting.samples, len(ready.data.train))
    scoring = Scoring(score="pagerank", k=1, n_samples=samples)  # k changes no score
    return select_prepared(ready, settings=settings, scoring=scoring)


def rank_correlations(first: np.ndarray, second: np.ndarray) -> list[float | None]:
    """Return Spearman's rank correlation of each layer, ``[L, N]``; None if one is constant."""
    found: list[float | None] = []
    for mine, theirs in zip(first, second, strict=True):
        is_constant = np.ptp(mine) == 0 or np.ptp(theirs) == 0
        found.append(None if is_constant else float(stats.spearmanr(mine, theirs).statistic))
    return found


def notes(numbers: Numbers, *, of: str) -> list[str]:
    """Describe the rank correlations with the standard setting, layer by layer.

    Args:
        numbers: of a figure.
        of: what is ranked, in words.
    """
    steps = "one epoch" if numbers["steps"] is None else f"{numbers['steps']} steps"
    seeds = ", ".join(map(str, numbers["seeds"]))
    what = f"Spearman's rank correlation of {of} with {STANDARD}'s, by layer:"
    lines = [_WHY, f"Task {numbers['task']}, {steps}, seeds {seeds}. {what}"]
    for state in (TUNED, FROZEN):
        for name, setting in numbers["settings"].items():
            if name != STANDARD:
                lines.append(_row(f"{state} {name}", setting[state][f"spearman_with_{STANDARD}"]))
    row = _row(f"{STANDARD} {FROZEN} with {TUNED}", numbers["spearman_of_frozen_with_tuned"])
    return [*lines, row]


def _row(name: str, values: list[float | None]) -> str:
    shown = " ".join("  – " if value is None else f"{value:.2f}" for value in values)
    known = [value for value in values if value is not None]
    return f"  {name}: {shown}" + (f", mean {np.mean(known):.2f}" if known else "")
