"""benchmarks.paper.splits: which rows a run sees."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.paper.splits import (
    PER_CLASS,
    Splits,
    check_shots,
    draw_splits,
    trial_splits,
)
from benchmarks.paper.tasks import TASKS
from hifi.errors import DataError, InvalidArgumentError
from tests.tiny_tasks import write_jsonl


def read(glue: Path, task: str, split: str) -> list[dict]:
    path = glue / "data" / "glue" / task / f"{split}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def draw(glue: Path, task: str = "cola", *, shots: str, seed: int = 0, **settings) -> Splits:
    return draw_splits(glue / "data" / "glue", TASKS[task], shots=shots, seed=seed, **settings)


def places(rows: list[dict]) -> list[int]:
    return [row["idx"] for row in rows]


class TestFull:
    def test_has_the_files_rows_and_reports_validation(self, glue: Path):
        splits = draw(glue, shots="full")
        assert splits.train == read(glue, "cola", "train")
        assert splits.validation == read(glue, "cola", "validation")
        assert splits.test is None

    def test_the_cap_draws_the_same_rows_for_every_seed(self, glue: Path):
        capped = draw(glue, shots="full", most_rows=30, seed=1)
        assert len(set(places(capped.train))) == 30
        assert places(capped.train) == sorted(places(capped.train))
        assert capped.train == draw(glue, shots="full", most_rows=30, seed=2).train
        assert capped.train != draw(glue, shots="full").train[:30]

    def test_a_cap_above_the_rows_changes_nothing(self, glue: Path):
        assert len(draw(glue, shots="full", most_rows=1000).train) == 80

    def test_a_test_file_is_measured_too(self, tmp_path: Path, glue: Path):
        folder = tmp_path / "cola"
        folder.mkdir()
        rows = read(glue, "cola", "train")
        for split, few in (("train", rows), ("validation", rows[:9]), ("test", rows[9:14])):
            write_jsonl(folder / f"{split}.jsonl", few)
        assert draw_splits(tmp_path, TASKS["cola"], shots="full", seed=0).test == rows[9:14]

    def test_a_separator_of_lines_inside_a_text_ends_no_row(self, tmp_path: Path):
        folder = tmp_path / "cola"
        folder.mkdir()
        rows = [{"sentence": "one\u2028two\x85three", "label": 1, "idx": 0}]
        for split in ("train", "validation"):
            text = json.dumps(rows[0], ensure_ascii=False) + "\n"
            (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
        assert draw_splits(tmp_path, TASKS["cola"], shots="full", seed=0).train == rows

    def test_a_missing_file_is_named(self, tmp_path: Path):
        with pytest.raises(DataError, match=r"cola.train\.jsonl cannot be read: No such file"):
            draw_splits(tmp_path, TASKS["cola"], shots="full", seed=0)


class TestPerClass:
    def test_has_16_rows_of_each_class_in_disjoint_splits(self, glue: Path):
        splits = draw(glue, shots="16")
        for rows in (splits.train, splits.validation):
            assert Counter(row["label"] for row in rows) == {0: PER_CLASS, 1: PER_CLASS}
        assert not set(places(splits.train)) & set(places(splits.validation))
        known = read(glue, "cola", "train")
        assert all(row in known for row in (*splits.train, *splits.validation))

    def test_the_original_validation_split_is_the_test_split(self, glue: Path):
        assert draw(glue, shots="16").test == read(glue, "cola", "validation")

    def test_the_seed_decides(self, glue: Path):
        assert draw(glue, shots="16", seed=1).train == draw(glue, shots="16", seed=1).train
        assert draw(glue, shots="16", seed=1).train != draw(glue, shots="16", seed=2).train

    def test_a_regression_is_refused(self, glue: Path):
        with pytest.raises(InvalidArgumentError, match="not of stsb, which has no classes"):
            draw(glue, "stsb", shots="16")

    def test_too_few_rows_of_a_class_are_refused(self, tmp_path: Path, glue: Path):
        folder = tmp_path / "cola"
        folder.mkdir()
        rows = [row for row in read(glue, "cola", "train") if row["label"] or row["idx"] < 62]
        assert Counter(row["label"] for row in rows)[0] == 31
        for split in ("train", "validation"):
            write_jsonl(folder / f"{split}.jsonl", rows)
        with pytest.raises(InvalidArgumentError, match="cola has 31 rows of the class 0"):
            draw_splits(tmp_path, TASKS["cola"], shots="16", seed=0)


class TestRows:
    def test_has_as_many_disjoint_rows_in_training_and_validation(self, glue: Path):
        splits = draw(glue, "stsb", shots="20")
        chosen = [*places(splits.train), *places(splits.validation)]
        assert len(splits.train) == len(splits.validation) == 20
        assert len(set(chosen)) == 40
        assert splits.test == read(glue, "stsb", "validation")

    def test_more_than_half_of_the_rows_are_refused(self, glue: Path):
        assert len(draw(glue, shots="40").train) == 40
        with pytest.raises(InvalidArgumentError, match="at most 40 of cola"):
            draw(glue, shots="41")


class TestTrials:
    @pytest.mark.parametrize("shots", ["full", "16"])
    def test_a_fifth_of_each_class_is_held_out_of_the_training_rows(self, glue: Path, shots: str):
        whole = draw(glue, shots=shots)
        splits = trial_splits(whole, TASKS["cola"], seed=0)
        counts = Counter(row["label"] for row in whole.train)
        held = Counter(row["label"] for row in splits.validation)
        assert held == {label: count // 5 for label, count in counts.items()}
        assert sorted(places(splits.train + splits.validation)) == sorted(places(whole.train))
        assert splits.test is None

    def test_of_many_rows_some_are_drawn(self):
        rows = [{"idx": row, "label": row % 4 == 0} for row in range(4000)]
        splits = trial_splits(Splits(rows, rows[:5]), TASKS["cola"], seed=0)
        drawn = places(splits.train + splits.validation)
        assert len(set(drawn)) == len(drawn) == 2560
        assert len(splits.train) - 4 * len(splits.validation) in range(8)
        shares = [sum(row["label"] for row in each) / len(each) for each in (splits.train, rows)]
        assert shares[0] == pytest.approx(shares[1], abs=0.03)
        assert places(splits.train) == sorted(places(splits.train))

    def test_the_seed_decides(self, glue: Path):
        whole = draw(glue, "stsb", shots="full")
        first, second = (trial_splits(whole, TASKS["stsb"], seed=seed) for seed in (0, 1))
        assert len(first.validation) == 16
        assert first.validation != second.validation


class TestCheckShots:
    def test_returns_the_shortest_form(self):
        assert [check_shots(text) for text in ("full", "016", "64")] == ["full", "16", "64"]

    @pytest.mark.parametrize("shots", ["15", "-64", "1e3", "all", ""])
    def test_refuses_anything_else(self, shots: str):
        with pytest.raises(InvalidArgumentError, match=r"full, 16 \(of each class\) or a larger"):
            check_shots(shots)
