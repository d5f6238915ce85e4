"""hifi.training.batching: every sample once, similar lengths together, a repeatable order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hifi.training.batching import TrainingBatches, evaluation_batches, gather, length_groups

sizes = st.integers(1, 40)
length_lists = st.lists(st.integers(1, 128), min_size=1, max_size=300)


def batches(lengths, *, batch_size: int = 4, seed: int = 0) -> TrainingBatches:
    return TrainingBatches(lengths=np.array(lengths), batch_size=batch_size, seed=seed)


def as_lists(epoch) -> list[list[int]]:
    return [batch.tolist() for batch in epoch]


class TestTrainingBatches:
    @given(lengths=length_lists, batch_size=sizes, epoch=st.integers(0, 3))
    def test_an_epoch_has_every_sample_once(self, lengths, batch_size: int, epoch: int):
        plan = batches(lengths, batch_size=batch_size)
        made = plan.epoch(epoch)
        assert sorted(np.concatenate(made)) == list(range(len(lengths)))
        assert len(made) == plan.per_epoch
        assert sum(len(batch) < batch_size for batch in made) <= 1
        assert max(len(batch) for batch in made) <= batch_size

    def test_seed_and_epoch_determine_the_order(self):
        lengths = list(range(1, 50))
        order = as_lists(batches(lengths, seed=3).epoch(1))
        assert as_lists(batches(lengths, seed=3).epoch(1)) == order
        assert as_lists(batches(lengths, seed=3).epoch(0)) != order
        assert as_lists(batches(lengths, seed=4).epoch(1)) != order

    def test_epochs_of_different_seeds_are_not_each_other(self):
        lengths = [1] * 64
        assert as_lists(batches(lengths, seed=1).epoch(0)) != as_lists(batches(lengths).epoch(1))

    def test_a_batch_holds_samples_of_similar_length(self):
        lengths = np.random.default_rng(0).integers(1, 128, 2000)
        plan = batches(lengths, batch_size=16)
        padded = sum(len(batch) * lengths[batch].max() for batch in plan.epoch(0))
        assert padded < 1.1 * lengths.sum()  # about 1.85 without sorting

    def test_batches_do_not_come_in_the_order_of_their_lengths(self):
        plan = batches(range(1, 200))
        longest = [max(batch) for batch in plan.epoch(0)]
        assert longest not in (sorted(longest), sorted(longest, reverse=True))

    @pytest.mark.parametrize("lengths", [[7] * 100, list(range(1, 101)), [1, 2] * 20])
    def test_partners_change_between_epochs(self, lengths: list[int]):
        plan = batches(lengths)
        first, second = ({frozenset(b) for b in as_lists(plan.epoch(e))} for e in (0, 1))
        assert len(first & second) < 3


class TestEvaluationBatches:
    @given(lengths=length_lists, batch_size=sizes)
    def test_every_sample_comes_once_and_the_longest_first(self, lengths, batch_size: int):
        made = evaluation_batches(np.array(lengths), batch_size=batch_size)
        order = np.concatenate(made)
        assert sorted(order) == list(range(len(lengths)))
        assert [lengths[index] for index in order] == sorted(lengths, reverse=True)

    def test_the_indices_put_results_back_in_order(self):
        lengths = np.array([3, 9, 1, 5, 9])
        results = np.empty(5, dtype=np.int64)
        for indices in evaluation_batches(lengths, batch_size=2):
            results[indices] = lengths[indices] * 10
        assert results.tolist() == [30, 90, 10, 50, 90]

    @pytest.mark.parametrize("batch_size", [1, 5, 9])
    def test_only_the_last_batch_is_short(self, batch_size: int):
        made = evaluation_batches(np.arange(7), batch_size=batch_size)
        assert all(len(batch) == batch_size for batch in made[:-1])


class TestGather:
    def test_puts_samples_in_their_places(self):
        parts = [torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0]])]
        whole = gather(parts, [np.array([2, 0]), np.array([1])])
        assert whole.tolist() == [[3.0, 4.0], [5.0, 6.0], [1.0, 2.0]]

    def test_fills_shorter_batches_with_zeros(self):
        parts = [torch.ones(1, 3, 2), torch.full((2, 1, 2), 5.0)]
        whole = gather(parts, [np.array([1]), np.array([0, 2])])
        assert whole.shape == (3, 3, 2)
        assert whole[1].tolist() == [[1.0, 1.0]] * 3
        assert whole[0].tolist() == whole[2].tolist() == [[5.0, 5.0], [0.0, 0.0], [0.0, 0.0]]


class TestLengthGroups:
    @given(lengths=length_lists, tokens=st.integers(1, 300))
    def test_every_sample_is_in_one_group_of_just_enough_tokens(self, lengths, tokens: int):
        groups = length_groups(np.array(lengths), tokens=tokens)
        assert sorted(np.concatenate(groups)) == list(range(len(lengths)))
        longest = [max(lengths[index] for index in group) for group in groups]
        assert longest == sorted(longest, reverse=True)
        for group, width in zip(groups[:-1], longest, strict=False):
            assert (len(group) - 1) * width < tokens <= len(group) * width

    def test_equal_lengths_keep_their_order(self):
        groups = length_groups(np.array([3, 9, 3, 3, 4]), tokens=8)
        assert as_lists(groups) == [[1], [4, 0], [2, 3]]
