"""Merge a head delta into its backbone and write the files of a plain transformers model."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hifi.deltas.delta import HeadDelta
from hifi.deltas.loading import load_backbone_at, write_merged_model
from worker.inference.failures import typed_problems
from worker.inference.memory.backbones import find_backbone

if TYPE_CHECKING:
    from store.orders import DeltaOrder
    from store.settings import Settings
    from worker.inference.memory.deltas import DeltaCache


class Merger:
    """Merges head deltas into backbones of this machine.

    Args:
        settings: have the folder of backbones, and whether the hub may be used.
        deltas: the source of head deltas.
        folder: for merged models; used by this process only.
    """

    def __init__(self, settings: Settings, *, deltas: DeltaCache, folder: Path) -> None:
        self._settings = settings
        self._deltas = deltas
        self._folder = folder

    def merge(self, order: DeltaOrder) -> Path:
        """Merge a delta into the backbone on which it was tuned.

        Returns:
            A folder with the files that ``hifi merge`` writes; the caller removes it.

        Raises:
            ProblemError: ``model_not_found``, ``backbone_mismatch``, ``delta_invalid``,
                ``artifact_storage`` or ``disk_full``.
        """
        with typed_problems(order):
            with self._deltas.hold(order.tenant, order.sha256) as file:
                delta = HeadDelta.load(file)
            source = find_backbone(self._settings, order.backbone)
            backbone = load_backbone_at(source, delta=delta)
            folder = Path(tempfile.mkdtemp(dir=self._folder))
            try:
                write_merged_model(folder, delta=delta, backbone=backbone)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        return folder
