"""hifi.data.classes.contradictions: rows with the same texts and different labels."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from hifi.data.classes.contradictions import find_contradictions


def test_rows_of_one_text_with_one_label_do_not_contradict():
    assert find_contradictions([("a",), ("a",), ("b",)], np.array([1, 1, 0])) is None


def test_the_minority_of_each_text_is_counted():
    texts = [("a",), ("b",), ("a",), ("b",), ("a",), ("b",)]
    found = find_contradictions(texts, np.array([0, 2, 0, 1, 1, 0]))
    assert found is not None
    assert found.rows == 3  # one of a, two of b


@pytest.mark.parametrize(
    ("first", "second"), [(("a", "bc"), ("ab", "c")), (("a", ""), ("", "a")), (("ä",), ("a",))]
)
def test_different_texts_do_not_contradict(first: tuple[str, ...], second: tuple[str, ...]):
    assert find_contradictions([first, second], np.array([0, 1])) is None


def test_counts_as_a_count_by_hand():
    draw = random.Random(4)  # noqa: S311 - a draw, not a secret
    rows = [((draw.choice("abcdefgh"), draw.choice("xyz")), draw.randrange(5)) for _ in range(400)]
    by_text: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    for texts, label in rows:
        by_text[texts][label] += 1
    labels = np.array([label for _, label in rows])
    found = find_contradictions([texts for texts, _ in rows], labels)
    assert found is not None
    assert found.rows == sum(each.total() - max(each.values()) for each in by_text.values())
    first, second = (number - 1 for number in found.example)
    assert rows[first][0] == rows[second][0]
    assert labels[first] != labels[second]
