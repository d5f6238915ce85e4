"""HiFi: fine-tune only the attention heads that matter for a task.

The names below are loaded on first use (PEP 562), so that ``import hifi`` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hifi.backbones.heads import HeadId
    from hifi.backbones.models import resolve_model
    from hifi.deltas.delta import HeadDelta
    from hifi.errors import HifiError
    from hifi.selection.head_selection import HeadSelection
    from hifi.selection.scoring import select_heads
    from hifi.serving.bank import HeadBank
    from hifi.training.events import Control, TrainingEvent
    from hifi.training.finetuning import FinetuneResult, finetune
    from hifi.tuning.prefix import FrozenPrefix
    from hifi.tuning.states import StatePlaces
    from hifi.tuning.tuner import HeadTuner

__version__ = "0.1.0"

__all__ = [
    "Control",
    "FinetuneResult",
    "FrozenPrefix",
    "HeadBank",
    "HeadDelta",
    "HeadId",
    "HeadSelection",
    "HeadTuner",
    "HifiError",
    "StatePlaces",
    "TrainingEvent",
    "__version__",
    "finetune",
    "resolve_model",
    "select_heads",
]

# No module may share a name with an export: importing it would overwrite the export.
_HOME_OF = {
    "Control": "hifi.training.events",
    "FinetuneResult": "hifi.training.finetuning",
    "FrozenPrefix": "hifi.tuning.prefix",
    "HeadBank": "hifi.serving.bank",
    "HeadDelta": "hifi.deltas.delta",
    "HeadId": "hifi.backbones.heads",
    "HeadSelection": "hifi.selection.head_selection",
    "HeadTuner": "hifi.tuning.tuner",
    "HifiError": "hifi.errors",
    "StatePlaces": "hifi.tuning.states",
    "TrainingEvent": "hifi.training.events",
    "finetune": "hifi.training.finetuning",
    "resolve_model": "hifi.backbones.models",
    "select_heads": "hifi.selection.scoring",
}


def __getattr__(name: str) -> object:
    """Load an exported name from its module."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    """Return the exported names, loaded or not."""
    return sorted({*globals(), *__all__})
