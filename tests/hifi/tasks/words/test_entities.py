"""hifi.tasks.words.entities: entities of labelled words, and their scores, as seqeval has them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import (
    accuracy_score,
    classification_report,
    f1_score,
    precision_score,
    recall_score,
)
from seqeval.metrics.sequence_labeling import get_entities

from hifi.data import tags as tag_rows
from hifi.tasks.token_classification import TokenClassification
from hifi.tasks.windows import NO_TARGET
from hifi.tasks.words.entities import Agreement, WordLabels, f1, find_entities, share
from tests.measured import Measured

Rows = list[list[str]]

LABELS = ("O", "B-a", "I-a", "B-b", "I-b", "B-O", "I-O")
MEANING = WordLabels.of(LABELS)
TASK = TokenClassification(inputs=("tokens",), label="tags", classes=LABELS, metric="f1")


@st.composite
def two_readings(draw: st.DrawFn) -> tuple[Rows, Rows]:
    """Draw the wanted and the found tags of some rows."""
    pair = st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS))
    same = st.sampled_from(LABELS).map(lambda tag: (tag, tag))
    rows = draw(st.lists(st.lists(same | pair, min_size=1, max_size=8), min_size=1, max_size=5))
    return [[tag for tag, _ in row] for row in rows], [[tag for _, tag in row] for row in rows]


def labels_of(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Return the label and the row of each word."""
    labels = [LABELS.index(tag) for row in rows for tag in row]
    places = [place for place, row in enumerate(rows) for _ in row]
    return np.array(labels, dtype=np.int64), np.array(places, dtype=np.int64)


def triples(rows: Rows) -> list[tuple[str, int, int]]:
    """Return the entities of all rows together."""
    found = find_entities(*labels_of(rows), MEANING)
    return [(MEANING.types[kind], first, last) for first, last, kind in found.keys.tolist()]


def tensors(wanted: Rows, found: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and targets of rows, padded, with a token without a label before each word."""
    longest = 2 * max(map(len, wanted)) + 1
    logits = torch.zeros(len(wanted), longest, len(LABELS))
    targets = torch.full((len(wanted), longest, 2), NO_TARGET, dtype=torch.int32)
    for row, (true, guesses) in enumerate(zip(wanted, found, strict=True)):
        targets[row, :, 1] = row
        for place, (tag, guess) in enumerate(zip(true, guesses, strict=True)):
            targets[row, 2 * place + 1, 0] = LABELS.index(tag)
            logits[row, 2 * place + 1, LABELS.index(guess)] = 1
    return logits, targets


def measured(wanted: Rows, found: Rows) -> tuple[torch.Tensor, Measured]:
    """Return the logits of rows, and the split that they are compared with."""
    logits, targets = tensors(wanted, found)
    return logits, Measured(targets)


@pytest.fixture(autouse=True)
def no_undefined_metrics():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class TestWordLabels:
    def test_of_tags(self):
        meaning = WordLabels.of(("I-b", "O", "B-a", "B-b", "I-a"))
        assert meaning.types == ("b", "a")
        assert meaning.type_of.tolist() == [0, -1, 1, 0, 1]
        assert meaning.begins.tolist() == [False, False, True, True, False]
        assert meaning.outside == 1
        assert meaning.other.tolist() == [0, 4]

    def test_of_a_type_that_is_called_as_the_tag_of_no_entity(self):
        meaning = WordLabels.of(("O", "B-O", "I-O"))
        assert (meaning.types, meaning.outside) == (("O",), 0)
        assert meaning.type_of.tolist() == [-1, 0, 0]
        assert (meaning.first.tolist(), meaning.other.tolist()) == ([1], [2])

    def test_without_the_tag_of_no_entity_has_a_class_of_each_word(self):
        meaning = WordLabels.of(("NOUN", "VERB"))
        found = find_entities(np.array([0, 0, 1]), np.zeros(3, dtype=np.int64), meaning)
        assert found.keys.tolist() == [[0, 0, 0], [1, 1, 0], [2, 2, 1]]
        assert meaning.outside == 0


class TestFindEntities:
    def test_do_not_reach_into_another_row(self):
        assert triples([["B-a"], ["I-a", "I-a"]]) == [("a", 0, 0), ("a", 1, 2)]

    def test_of_no_words_are_none(self):
        nothing = np.zeros(0, dtype=np.int64)
        assert find_entities(nothing, nothing, MEANING).keys.shape == (0, 3)

    @given(two_readings())
    def test_are_those_of_seqeval(self, drawn: tuple[Rows, Rows]):
        rows, _ = drawn
        expected = [
            (kind, first, last)
            for kind, first, last in get_entities([tag for row in rows for tag in [*row, "O"]])
        ]
        spaced = {}
        for place, row in enumerate(rows):
            spaced |= {len(spaced) + word: len(spaced) + word + place for word in range(len(row))}
        found = [(kind, spaced[first], spaced[last]) for kind, first, last in triples(rows)]
        assert found == expected

    @given(two_readings())
    def test_are_those_of_tags_in_data(self, drawn: tuple[Rows, Rows]):
        for row in drawn[0]:
            expected = tag_rows.find_entities(row)
            assert triples([row]) == [(each.type, each.first, each.last) for each in expected]


class TestAgreement:
    def test_counts_entities_whose_words_and_type_are_right(self):
        wanted = labels_of([["B-a", "I-a", "O", "B-b"], ["B-a"]])
        found = labels_of([["B-a", "O", "O", "B-b"], ["B-b"]])
        each = [find_entities(*rows, MEANING) for rows in (found, wanted)]
        counts = Agreement.of(*each, types=3)
        assert counts.right.tolist() == [0, 1, 0]
        assert counts.found.tolist() == [1, 2, 0]
        assert counts.wanted.tolist() == [2, 1, 0]

    def test_of_nothing_is_nothing(self):
        assert (share(0, 0), f1(0, 0)) == (0.0, 0.0)


class TestScores:
    def test_of_a_known_example(self):
        wanted = [["O", "B-a", "I-a", "O"], ["B-b", "O"]]
        found = [["B-a", "I-a", "I-a", "O"], ["B-b", "O"]]
        scores = TASK.evaluate(*measured(wanted, found))
        assert scores == {"f1": 0.5, "precision": 0.5, "recall": 0.5, "accuracy": 4 / 6}

    @given(two_readings())
    def test_are_those_of_seqeval(self, drawn: tuple[Rows, Rows]):
        wanted, found = drawn
        scores = TASK.evaluate(*measured(wanted, found))
        assert scores["precision"] == pytest.approx(precision_score(wanted, found, zero_division=0))
        assert scores["recall"] == pytest.approx(recall_score(wanted, found, zero_division=0))
        assert scores["f1"] == pytest.approx(f1_score(wanted, found, zero_division=0))
        assert scores["accuracy"] == pytest.approx(accuracy_score(wanted, found))

    @given(two_readings())
    def test_of_each_type_are_those_of_seqeval(self, drawn: tuple[Rows, Rows]):
        wanted, found = drawn
        report = TASK.report(*measured(wanted, found), split="test")
        assert (report.split, report.classes, report.confusion) == ("test", 3, None)
        entities = sum(each.support for each in report.per_class)
        assert entities == len(triples(wanted))
        if not entities and not triples(found):
            return
        expected = classification_report(wanted, found, output_dict=True, zero_division=0)
        for scores in report.per_class:
            known = expected.get(scores.label, {})
            assert scores.support == known.get("support", 0)
            assert scores.precision == pytest.approx(known.get("precision", 0))
            assert scores.recall == pytest.approx(known.get("recall", 0))
            assert scores.f1 == pytest.approx(known.get("f1-score", 0))

    @given(two_readings())
    def test_count_entities_of_each_type(self, drawn: tuple[Rows, Rows]):
        wanted, found = drawn
        targets = tensors(wanted, found)[1]
        counts = TASK.count_rows(targets)
        assert counts == {
            kind: sum(name == kind for name, _, _ in triples(wanted)) for kind in ("a", "b", "O")
        }
        assert TASK.count_answers(targets) == max(1, sum(counts.values()))
