"""hifi.tasks.windows: each token of a text is answered from one window, and by its neighbours."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hifi.tasks.windows import OVERLAP, Window, by_row, cut_windows


def ids_of(*, before: int, body: int, after: int, sequence: int = 0) -> list[int | None]:
    """Frame a text by special tokens; the second of a pair follows the first one."""
    other = [0, 0, 0, None] if sequence else []
    return [None] * before + other + [sequence] * body + [None] * after


@st.composite
def texts(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the tokens of a text, and a length of windows that leaves room for one of them."""
    sequence = draw(st.integers(0, 1))
    before, after = draw(st.integers(0, 3)), draw(st.integers(0, 2))
    ids = ids_of(before=before, body=draw(st.integers(1, 80)), after=after, sequence=sequence)
    others = sum(each != sequence for each in ids)
    return {"sequence_ids": ids, "most": others + draw(st.integers(1, 30)), "sequence": sequence}


def body_of(window: Window, ids: list[int | None], sequence: int) -> list[int]:
    """Return which tokens of the text itself a window has, from the whole text's ids."""
    first = ids.index(sequence)
    return [place - first for place in window.tokens.tolist() if ids[place] == sequence]


class TestCutWindows:
    @given(texts())
    def test_every_token_is_owned_once_by_a_window_that_has_it(self, text: dict[str, Any]):
        ids, sequence = text["sequence_ids"], text["sequence"]
        windows = cut_windows(**text)
        owned = [token for window in windows for token in window.owned]
        assert owned == list(range(ids.count(sequence)))
        assert all(set(each.owned) <= set(body_of(each, ids, sequence)) for each in windows)

    @given(texts())
    def test_places_are_those_of_the_owned_tokens(self, text: dict[str, Any]):
        ids, sequence = text["sequence_ids"], text["sequence"]
        first = ids.index(sequence)
        for window in cut_windows(**text):
            places = window.places(np.array(window.owned))
            assert (window.tokens[places] - first).tolist() == list(window.owned)

    @given(texts())
    def test_each_has_at_most_so_many_tokens_and_all_that_are_not_cut(self, text: dict[str, Any]):
        ids, sequence = text["sequence_ids"], text["sequence"]
        others = [place for place, each in enumerate(ids) if each != sequence]
        for window in cut_windows(**text):
            assert len(window.tokens) <= text["most"]
            tokens = window.tokens.tolist()
            assert tokens == sorted(tokens)
            assert [place for place in tokens if ids[place] != sequence] == others

    @given(texts())
    def test_neighbours_share_a_quarter_and_are_full(self, text: dict[str, Any]):
        ids, sequence = text["sequence_ids"], text["sequence"]
        windows = cut_windows(**text)
        room = text["most"] - sum(each != sequence for each in ids)
        if ids.count(sequence) <= room:
            assert len(windows) == 1
            return
        bodies = [body_of(window, ids, sequence) for window in windows]
        assert {len(body) for body in bodies} == {room}
        for first, second in pairwise(bodies):
            assert len(set(first) & set(second)) >= room // OVERLAP
            assert second[0] > first[0]

    @given(texts())
    def test_a_token_is_owned_by_the_window_in_whose_middle_it_is(self, text: dict[str, Any]):
        ids, sequence = text["sequence_ids"], text["sequence"]
        windows = cut_windows(**text)
        bodies = [body_of(window, ids, sequence) for window in windows]

        def margin(body: list[int], token: int) -> int:
            """Return how many tokens are around a token on its shorter side."""
            left = token - body[0] if body[0] else len(ids)  # the text begins there
            right = body[-1] - token if body[-1] < ids.count(sequence) - 1 else len(ids)
            return min(left, right)

        for window, body in zip(windows, bodies, strict=True):
            for token in window.owned:
                best = max(margin(each, token) for each in bodies if token in each)
                assert margin(body, token) >= best - 1  # of an even overlap either is in the middle

    def test_by_hand(self):
        ids = ids_of(before=1, body=10, after=1)
        windows = cut_windows(ids, most=8)  # room for 6, of which 1 overlaps
        assert [each.tokens.tolist() for each in windows] == [
            [0, 1, 2, 3, 4, 5, 6, 11],
            [0, 5, 6, 7, 8, 9, 10, 11],
        ]
        assert [each.owned for each in windows] == [range(5), range(5, 10)]

    @pytest.mark.parametrize("ids", [[], [None, None], [None, 1, None]])
    def test_a_text_without_tokens_is_one_window_that_owns_none(self, ids: list[int | None]):
        (window,) = cut_windows(ids, most=2)
        assert window.tokens.tolist() == list(range(len(ids)))
        assert list(window.owned) == []


class TestByRow:
    @pytest.mark.parametrize(
        ("table", "expected"),
        [
            ([[0, 5, 6], [2, 7, 8], [2, 9, 10]], [[[5, 6]], [], [[7, 8], [9, 10]]]),
            ([[1, 5, 6]], [[], [[5, 6]], []]),
            ([], [[], [], []]),
        ],
    )
    def test_has_an_entry_for_every_row(self, table: list[list[int]], expected: list[Any]):
        parts = by_row(torch.tensor(table, dtype=torch.int64).reshape(-1, 3), rows=3)
        assert [part.tolist() for part in parts] == expected
