"""The search for the best spans, and the threshold of no answer, against trying all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hifi.tasks.questions.spans import MOST_TOKENS, best_spans, best_threshold

SCORES = st.integers(-4, 4).map(float)  # many are equal


def random_windows(seed: int, *, windows: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits, and contexts of different lengths that begin at different tokens."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(windows, size, 2, generator=draw)
    first = torch.randint(1, 4, (windows, 1), generator=draw)
    last = torch.randint(4, size, (windows, 1), generator=draw)
    places = torch.arange(size)
    return logits, (places >= first) & (places <= last)


class TestBestSpans:
    @pytest.mark.parametrize(("windows", "size"), [(3, 6), (2, 50), (130, 9)])
    def test_are_the_best_of_all(self, windows: int, size: int):
        logits, is_context = random_windows(windows, windows=windows, size=size)
        found = best_spans(logits, is_context, count=5)
        for window in range(windows):
            starts, ends = logits[window].T
            every = {
                (first, last): (starts[first] + ends[last]).item()
                for first in range(size)
                for last in range(first, min(size, first + MOST_TOKENS))
                if is_context[window, first] and is_context[window, last]
            }
            best = sorted(every, key=lambda span: -every[span])[:5]
            pairs = zip(found.first[window].tolist(), found.last[window].tolist(), strict=True)
            assert list(pairs)[: len(best)] == best
            expected = [every[span] for span in best]
            assert found.scores[window].tolist()[: len(best)] == pytest.approx(expected)
            assert found.none[window].item() == pytest.approx((starts[0] + ends[0]).item())

    def test_has_no_more_spans_than_there_are(self):
        logits, is_context = random_windows(0, windows=1, size=5)
        is_context[0] = torch.tensor([False, False, True, True, False])
        scores = best_spans(logits, is_context, count=20).scores[0]
        assert scores.isfinite().sum() == 3
        assert (scores[3:] == -torch.inf).all()

    def test_of_equal_tokens_begins_at_the_first_one(self):
        is_context = torch.tensor([[False, True, True]])
        found = best_spans(torch.zeros(1, 3, 2), is_context)
        assert (found.first.item(), found.last.item()) == (1, 1)


class TestBestThreshold:
    @given(st.lists(st.tuples(SCORES, st.sampled_from([0.0, 0.5, 1.0]), st.booleans()), min_size=1))
    def test_no_threshold_is_better(self, rows: list[tuple[float, float, bool]]):
        margins, values, has_none = (np.array(each) for each in zip(*rows, strict=True))
        answered, declined = np.where(has_none, 0.0, values), has_none.astype(float)

        def worth(threshold: float) -> float:
            return float(np.where(margins > threshold, declined, answered).sum())

        chosen = best_threshold(margins, answered=answered, declined=declined)
        tried = np.arange(-5.5, 6.0, 0.5)
        assert worth(chosen) == pytest.approx(max(map(worth, tried.tolist())))

    def test_of_equally_good_ones_is_the_closest_to_0(self):
        margins = np.array([-3.0, 2.0, 6.0])
        worth = {"answered": np.array([1.0, 0.0, 0.0]), "declined": np.array([0.0, 1.0, 1.0])}
        assert best_threshold(margins, **worth) == pytest.approx(-0.5)

    def test_of_rows_that_all_have_an_answer_declines_none(self):
        margins = np.array([4.0, 7.0])
        chosen = best_threshold(margins, answered=np.ones(2), declined=np.zeros(2))
        assert chosen > 7.0
