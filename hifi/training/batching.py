"""Batches of samples of similar length, in an order determined by seed and epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hifi.data.training_defaults import count_steps_per_epoch

Lengths = NDArray[np.int64]
Indices = NDArray[np.int64]
# Padded over real tokens at batch size 32 with MiniLM's tokenizer, in windows of 1, 10, 50 and 100
# batches: MRPC 1.50, 1.07, 1.02, 1.01; RTE 1.92, 1.08, 1.02, 1.01; SST-2 3.02, 1.23, 1.05, 1.03.
_WINDOW_BATCHES = 50
_WINDOWS = 4  # at least this many, so that batches differ between epochs in small splits too


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingBatches:
    """Every sample once per epoch, in batches of samples of similar length.

    The epoch's random order is cut into windows, each window is sorted by length and cut into
    batches, and the batches are shuffled. ``(epoch, index)`` alone determines a batch, so a run
    that resumes in the middle of an epoch needs no iterator state.

    Attributes:
        lengths: tokens of each sample, ``[n]``.
        batch_size: samples per batch; the last batch of an epoch's order may have fewer.
        seed: of the order.
    """

    lengths: Lengths
    batch_size: int
    seed: int

    @property
    def per_epoch(self) -> int:
        """The number of batches in an epoch."""
        return count_steps_per_epoch(rows=len(self.lengths), batch_size=self.batch_size)

    def epoch(self, epoch: int) -> list[Indices]:
        """Return the batches of one epoch.

        Args:
            epoch: from 0.

        Returns:
            :attr:`per_epoch` arrays of sample indices.
        """
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(len(self.lengths))
        batches: list[Indices] = []
        size = self.batch_size * max(1, min(_WINDOW_BATCHES, self.per_epoch // _WINDOWS))
        for start in range(0, len(order), size):
            window = order[start : start + size]
            window = window[np.argsort(-self.lengths[window], kind="stable")]
            batches += _cut(window, self.batch_size)
        return [batches[index] for index in generator.permutation(len(batches))]


def evaluation_batches(lengths: Lengths, *, batch_size: int) -> list[Indices]:
    """Divide all samples into batches of similar length, the longest first.

    Args:
        lengths: tokens of each sample, ``[n]``.
        batch_size: samples per batch; the last may have fewer.

    Returns:
        Arrays of sample indices, together 0..n-1 once each; use them to reorder the results.
    """
    return _cut(np.argsort(-lengths, kind="stable"), batch_size)


def length_groups(lengths: Lengths, *, tokens: int) -> list[Indices]:
    """Divide all samples into groups of similar length, each only as large as it must be.

    Args:
        lengths: tokens of each sample, ``[n]``.
        tokens: with padding, a group has at least so many; the last one may have fewer.

    Returns:
        Arrays of sample indices, together 0..n-1 once each; the longest samples first.
    """
    order = np.argsort(-lengths, kind="stable")
    groups: list[Indices] = []
    start = 0
    while start < len(order):
        size = -(-tokens // max(1, int(lengths[order[start]])))
        groups.append(order[start : start + size])
        start += size
    return groups


def gather(parts: Sequence[Tensor], batches: Sequence[Indices]) -> Tensor:
    """Concatenate the results of batches in the order of the samples.

    Args:
        parts: one ``[B, …]`` per batch, on the CPU; sizes may differ between batches.
        batches: the indices of each batch's samples, together 0..n-1 once each.

    Returns:
        ``[n, …]``, each sample padded with zeros on the right to the largest size.
    """
    shapes = [part.shape[1:] for part in parts]
    largest = [max(sizes) for sizes in zip(*shapes, strict=True)]
    whole = parts[0].new_zeros(sum(map(len, batches)), *largest)
    for part, indices, shape in zip(parts, batches, shapes, strict=True):
        places: tuple[Tensor | slice, ...] = (torch.from_numpy(indices), *map(slice, shape))
        whole[places] = part
    return whole


def _cut(order: Indices, size: int) -> list[Indices]:
    return [order[start : start + size] for start in range(0, len(order), size)]
