"""Presets: several settings by one name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, get_args

from hifi.data.training_defaults import AUTO
from hifi.errors import InvalidArgumentError

Preset = Literal["paper"]
PRESETS: tuple[str, ...] = get_args(Preset)
PRESET_WORDS = (
    "settings for those that are left open or auto: paper trains as published (a random task "
    "head, 3 epochs, a rate of 2e-4); the heads are selected as published anyway"
)

# Arguments of ``finetune``. How heads are scored and selected is the paper's by default. The
# learning rate is that of Tab. 5 for most tasks.
_SETTINGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "paper": MappingProxyType(
            {
                "head_start": "random",
                "epochs": 3,
                "learning_rate": 2e-4,
            }
        )
    }
)


def fill_from_preset(arguments: Mapping[str, Any], *, preset: str | None) -> dict[str, Any]:
    """Return arguments with a preset's values in the place of those that are left open.

    Args:
        arguments: by name; None and ``auto`` are open.
        preset: its name; None changes nothing.

    Raises:
        InvalidArgumentError: an unknown preset.
    """
    if preset is None:
        return dict(arguments)
    if preset not in PRESETS:
        limit = f"one of {', '.join(PRESETS)}"
        raise InvalidArgumentError("preset", value=preset, limit=limit)
    values = _SETTINGS[preset]
    return {
        name: values[name] if name in values and (given is None or given == AUTO) else given
        for name, given in arguments.items()
    }
