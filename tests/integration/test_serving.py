"""A short run of the benchmarks' inference churn, and the check of its results."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks.serving.churn import Churned, churn
from benchmarks.serving.churn_tasks import CLOSE, is_right
from tests.tiny_tasks import WORDS

SECONDS, TASKS, TEXTS = 20.0, 36, 12


@pytest.fixture(scope="module")
def churned(backbone: Path) -> Churned:
    draw = random.Random(0)  # noqa: S311 - no secret
    texts = [(_words(draw), _words(draw)) for _ in range(TEXTS)]
    return churn(backbone, texts, count=TASKS, seconds=SECONDS)


def _words(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(1, 40)))


@pytest.mark.process
@pytest.mark.matrix
class TestChurn:
    def test_every_answer_is_that_of_its_merged_model(self, churned: Churned):
        assert churned.wrong == []
        assert churned.right >= TASKS

    def test_no_answer_comes_from_another_tenants_delta(self, churned: Churned):
        assert churned.strangers == 0

    def test_only_missing_deltas_are_refused(self, churned: Churned):
        assert churned.errors == {}
        assert churned.refused > 0

    def test_deltas_came_and_went_and_were_evicted(self, churned: Churned):
        assert churned.added > 0
        assert churned.deleted > 0
        assert 0.0 < churned.resident < 0.5

    def test_memory_stays_flat(self, churned: Churned):
        assert churned.quarter(3) <= 1.05 * churned.quarter(1)


def answer(**scores: float) -> dict[str, Any]:
    label = max(scores, key=scores.__getitem__)
    return {"label": label, "score": scores[label], "scores": scores}


class TestJudge:
    def test_accepts_rounding_differences(self):
        near = answer(yes=0.7 + CLOSE / 2, no=0.3 - CLOSE / 2)
        assert is_right(near, answer(yes=0.7, no=0.3))
        assert is_right({"value": -1.0 + CLOSE / 2}, {"value": -1.0})

    @pytest.mark.parametrize(
        "wrong",
        [
            answer(yes=0.7 + 2 * CLOSE, no=0.3 - 2 * CLOSE),
            answer(yes=0.7, no=0.3) | {"label": "no", "score": 0.3},
            answer(yes=0.7, no=0.3) | {"score": 0.3},
            answer(yes=0.7, no=0.3) | {"label": "perhaps"},
            answer(yes=0.7, perhaps=0.3),
            answer(yes=0.7, no=0.3, perhaps=0.0),
            {"value": 0.7},
        ],
    )
    def test_rejects_larger_differences(self, wrong: dict[str, Any]):
        assert not is_right(wrong, answer(yes=0.7, no=0.3))

    def test_distinguishes_numbers(self):
        assert not is_right({"value": 1.0 + 2 * CLOSE}, {"value": 1.0})
        assert not is_right(answer(yes=1.0, no=0.0), {"value": 1.0})

    def test_accepts_either_label_in_a_tie(self):
        undecided = {"yes": 0.4, "no": 0.4 - CLOSE / 2, "perhaps": 0.2 + CLOSE / 2}
        turned = {"label": "no", "score": undecided["no"], "scores": undecided}
        assert is_right(turned, answer(**undecided))
        third = {"label": "perhaps", "score": undecided["perhaps"], "scores": undecided}
        assert not is_right(third, answer(**undecided))
