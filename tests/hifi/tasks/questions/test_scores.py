"""Exact match and F1 of answers, against another reading of SQuAD's definition."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hifi.tasks.questions.scores import exact_match, f1, normalize

ANSWERS = st.text(st.sampled_from("aAn the.,!é-ß 1\u00a0'"), max_size=12)


class TestNormalize:
    @pytest.mark.parametrize(
        ("answer", "plain"),
        [
            ("The  Eiffel Tower.", "eiffel tower"),
            ("a man, an ant; the end", "man ant end"),
            ("U.S.", "us"),
            ("the", ""),
            ("Theatre", "theatre"),  # no article
            ("Élan", "élan"),
            ("", ""),
        ],
    )
    def test_leaves_out_case_punctuation_articles_and_white_space(self, answer: str, plain: str):
        assert normalize(answer) == plain


class TestScores:
    @pytest.mark.parametrize(
        ("found", "wanted", "exact", "overlap"),
        [
            ("the Tower", ["tower"], 1.0, 1.0),
            ("Eiffel Tower", ["tower"], 0.0, 2 / 3),
            ("Eiffel Tower", ["tower", "the Eiffel tower"], 1.0, 1.0),
            ("tower tower", ["tower"], 0.0, 2 / 3),  # each word counts as often as in both
            ("bridge", ["tower"], 0.0, 0.0),
            ("", [], 1.0, 1.0),
            ("tower", [], 0.0, 0.0),
            ("", ["tower"], 0.0, 0.0),
            ("", ["the"], 1.0, 1.0),  # nothing is left of the only answer
            ("tower", ["the", "tower"], 1.0, 1.0),
        ],
    )
    def test_of_known_answers(self, found: str, wanted: list[str], exact: float, overlap: float):
        assert exact_match(found, wanted) == exact
        assert f1(found, wanted) == pytest.approx(overlap)

    @given(ANSWERS, st.lists(ANSWERS, max_size=3))
    def test_are_those_of_the_definition(self, found: str, wanted: list[str]):
        golds = [gold for gold in wanted if plain_words(gold)] or [""]
        exact = max(float(plain_words(found) == plain_words(gold)) for gold in golds)
        overlap = max(word_f1(plain_words(found), plain_words(gold)) for gold in golds)
        assert exact_match(found, wanted) == exact
        assert f1(found, wanted) == pytest.approx(overlap)


def plain_words(answer: str) -> list[str]:
    """Normalize step by step: lower case, punctuation, articles, white space."""
    lower = "".join(char for char in answer.lower() if char not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", lower).split()


def word_f1(found: list[str], gold: list[str]) -> float:
    """Compute precision and recall by taking away each word that is found."""
    left, same = list(gold), 0
    for word in found:
        if word in left:
            left.remove(word)
            same += 1
    if not found or not gold:
        return float(found == gold)
    if not same:
        return 0.0
    precision, recall = same / len(found), same / len(gold)
    return 2 * precision * recall / (precision + recall)
