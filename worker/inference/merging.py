"""Merge a head delta into its backbone and write the files of a plain transformers model."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hifi.deltas.delta import HeadDelta
from hifi.deltas.loading import load_backbone_at, write_merged_model
from worker.inference.failures import as_problems
from worker.inference.memory.backbones import find_backbone
from worker.tar import tar_size

if TYPE_CHECKING:
    from store.orders import DeltaOrder
    from store.settings import Settings
    from worker.inference.memory.deltas import DeltaCache


def merge(
    order: DeltaOrder, *, settings: Settings, deltas: DeltaCache, parent: Path
) -> tuple[Path, int]:
    """Merge a head delta into the backbone of this machine on which it was tuned.

    Args:
        order: names both.
        settings: have the folder of backbones, and whether the hub may be used.
        deltas: the source of head deltas.
        parent: of the new folder; used by this process only.

    Returns:
        A folder with the files that ``hifi merge`` writes, which the caller removes, and the size
        of its tar.

    Raises:
        ProblemError: ``model_not_found``, ``backbone_mismatch``, ``delta_invalid``,
            ``artifact_storage`` or ``disk_full``.
    """
    with as_problems(order):
        with deltas.hold(order.tenant, order.sha256) as file:
            delta = HeadDelta.load(file)
        source = find_backbone(settings, order.backbone)
        backbone = load_backbone_at(source, delta=delta)
        folder = Path(tempfile.mkdtemp(dir=parent))
        try:
            write_merged_model(folder, delta=delta, backbone=backbone)
            return folder, tar_size(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
