"""Hand-made profiles."""

from __future__ import annotations

from typing import Any

from hifi.data.profile import ColumnProfile, DatasetProfile, Kind

PAIR: dict[str, Kind] = {"sentence1": "text", "sentence2": "text", "label": "integer"}


def profile(problems: dict[str, Any] | None = None, **kinds: Kind) -> DatasetProfile:
    """Make a profile of columns of these kinds, with these problems by column, use and split."""
    columns = [
        ColumnProfile(
            name=name, type=kind, kind=kind, num_classes=2, problems=(problems or {}).get(name, {})
        )
        for name, kind in kinds.items()
    ]
    return DatasetProfile(rows={"train": 10, "validation": 2}, columns=columns)
