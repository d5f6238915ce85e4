"""Where a task head can start, as ``finetune`` names it: ours by its argument, rivals by these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from benchmarks.paper.methods.linear_probe import start_from_probe

if TYPE_CHECKING:
    from hifi.data.settings import Hyperparameters
    from hifi.training.preparation import Prepared

AUTO, PROBE, RANDOM = "auto", "probe", "random"


def start_at_random(ready: Prepared, settings: Hyperparameters) -> None:
    """Leave the task head as the seed has initialised it."""


HEAD_STARTS: Mapping[str, Callable[[Prepared, Hyperparameters], object]] = {
    RANDOM: start_at_random,
    PROBE: start_from_probe,
}
