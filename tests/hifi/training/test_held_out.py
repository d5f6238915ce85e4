"""The test split is scored once and chooses nothing; the report is of the best step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import pytest

from hifi.data.spec import IfLabelled
from hifi.errors import DataError, JobCancelled, JobPaused, MissingColumnError
from hifi.training import preparation
from hifi.training.events import Control, TrainingEvent
from tests.tiny_runs import STEPS, TRAIN, VALIDATION, file_of, record, run, stop_at
from tests.tiny_tasks import save_text_model, text_rows, write_jsonl

if TYPE_CHECKING:
    from hifi.tasks.report import ClassReport

TEST = text_rows(15, seed=9)
NUMBERS = [{"text": "w1 w2", "label": 0.25}, {"text": "w31 w32", "label": 0.5}] * 8


def rows_of(report: ClassReport | None) -> int:
    return 0 if report is None else sum(map(sum, report.confusion))


class TestTest:
    def test_is_measured_as_validation_is(self, bert: Path):
        result = run(bert, test=VALIDATION)
        assert dict(result.test) == dict(result.metrics)
        assert set(result.test) == {"accuracy", "f1", "matthews", "loss"}

    def test_is_scored_once_and_with_the_best_steps_weights(self, bert: Path):
        """Labels that are turned round make every step worse than the start."""
        turned = [{**row, "label": 1 - row["label"]} for row in TRAIN]
        heard: list[TrainingEvent] = []
        arguments: dict[str, Any] = {"validation": turned, "learning_rate": 3e-2, "epochs": 8}
        result = run(bert, test=turned, **arguments, on_event=record(heard))
        last = [event for event in heard if event.kind == "evaluated"][-1]
        assert result.best_step < last.step
        assert dict(result.test) == dict(result.metrics) != dict(last.metrics)
        [tested] = [event for event in heard if event.kind == "tested"]
        assert dict(tested.metrics) == dict(result.test)
        assert tested.message == f"test accuracy {result.test['accuracy']:.4f}"
        assert [event.kind for event in heard[-4:]] == [
            *["evaluating"] * 2,  # of 24 rows, the last two of three batches
            "tested",
            "finished",
        ]
        assert heard[-3].message == "test batch 3 of 3"

    def test_changes_no_byte(self, bert: Path, undisturbed: bytes, tmp_path: Path):
        for test in (TEST, [{"text": "w1", "label": 1}]):
            assert file_of(run(bert, test=test), tmp_path) == undisturbed

    def test_does_not_need_a_validation_split(self, bert: Path):
        result = run(bert, validation=None, test=TEST)
        assert (result.metrics, result.best_step) == ({}, STEPS)
        assert result.test["accuracy"] >= 0
        assert (result.report and result.report.split, rows_of(result.report)) == ("test", 15)

    def test_a_loss_that_is_not_finite_ends_no_run(self, bert: Path):
        test = [{"text": "w1", "label": 1e25}, {"text": "w2", "label": 0.5}]  # 1e50 is infinite
        result = run(bert, train=NUMBERS, validation=NUMBERS, test=test)
        assert result.test["loss"] == float("inf")

    def test_without_one_there_are_no_metrics(self, bert: Path):
        assert run(bert).test == {}

    def test_of_a_regression_has_metrics_and_no_report(self, bert: Path):
        result = run(bert, train=NUMBERS, validation=NUMBERS, test=NUMBERS)
        assert dict(result.test) == dict(result.metrics)
        assert result.report is None

    def test_may_be_a_file(self, bert: Path, tmp_path: Path):
        result = run(bert, test=str(write_jsonl(tmp_path / "test.jsonl", TEST)))
        assert dict(result.test) == dict(run(bert, test=TEST).test)

    def test_is_in_the_line_that_describes_the_data(self, bert: Path):
        heard: list[TrainingEvent] = []
        run(bert, test=TEST, on_event=record(heard))
        loaded = next(event for event in heard if event.kind == "loaded")
        assert "; 24 rows, 12 validation rows, 15 test rows; float32" in loaded.message


class TestInterruptions:
    def test_a_resumed_run_scores_it_too(self, bert: Path, undisturbed: bytes, tmp_path: Path):
        folder = tmp_path / "checkpoints"
        with pytest.raises(JobPaused):
            run(bert, checkpoint_dir=folder, on_event=stop_at("step", 4, Control.PAUSE))
        result = run(bert, test=TEST, checkpoint_dir=folder)  # it may be added meanwhile
        assert file_of(result, tmp_path) == undisturbed
        whole = run(bert, test=TEST)
        assert (dict(result.test), result.report) == (dict(whole.test), whole.report)

    @pytest.mark.parametrize("step", [3, 6])
    def test_the_report_of_validation_is_kept_with_the_best_step(
        self, step: int, bert: Path, tmp_path: Path
    ):
        folder, whole = tmp_path / "checkpoints", run(bert)
        with pytest.raises(JobPaused):
            run(bert, checkpoint_dir=folder, on_event=stop_at("evaluated", step, Control.PAUSE))
        resumed = run(bert, checkpoint_dir=folder)
        assert resumed.report == whole.report
        assert rows_of(resumed.report) == len(VALIDATION)

    def test_a_pause_while_it_is_scored_keeps_the_last_step(
        self, bert: Path, undisturbed: bytes, tmp_path: Path
    ):
        def pause(event: TrainingEvent) -> Control:
            return Control.PAUSE if event.message == "test batch 1 of 2" else Control.CONTINUE

        folder = tmp_path / "checkpoints"
        with pytest.raises(JobPaused, match="while the test split was scored") as caught:
            run(bert, test=TEST, checkpoint_dir=folder, on_event=pause)
        assert caught.value.checkpoint == folder / f"step-{STEPS:08d}"
        heard: list[TrainingEvent] = []
        resumed = run(bert, test=TEST, checkpoint_dir=folder, on_event=record(heard))
        assert "step" not in [event.kind for event in heard]
        assert file_of(resumed, tmp_path) == undisturbed
        assert dict(resumed.test) == dict(run(bert, test=TEST).test)

    def test_a_pause_after_it_comes_too_late(self, bert: Path):
        assert run(bert, test=TEST, on_event=stop_at("tested", STEPS, Control.PAUSE)).test

    def test_a_cancellation_does_not(self, bert: Path):
        with pytest.raises(JobCancelled, match="test accuracy"):
            run(bert, test=TEST, on_event=stop_at("tested", STEPS, Control.CANCEL))


class TestReport:
    def test_is_of_validation_without_a_test_split(self, bert: Path):
        result = run(bert)
        assert result.report is not None
        assert (result.report.split, rows_of(result.report)) == ("validation", 12)
        right = sum(result.report.confusion[place][place] for place in range(2))
        assert right / 12 == pytest.approx(result.metrics["accuracy"])
        assert result.report.per_class[1].f1 == pytest.approx(result.metrics["f1"])
        assert [scores.label for scores in result.report.per_class] == ["0", "1"]

    def test_is_of_the_test_split_if_there_is_one(self, bert: Path):
        report = run(bert, test=TEST).report
        assert report is not None
        assert (report.split, rows_of(report)) == ("test", 15)

    def test_there_is_none_without_both(self, bert: Path):
        assert run(bert, validation=None).report is None

    def test_uses_the_names_of_a_kept_task_head(self, tmp_path: Path):
        names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
        report = run(save_text_model(tmp_path / "model", **names)).report
        assert report is not None
        assert [scores.label for scores in report.per_class] == ["bad", "good"]


class TestBadInput:
    @pytest.mark.parametrize(
        ("test", "error", "named"),
        [
            (
                [{"text": "a", "label": 1}, {"text": "a", "label": 2}],
                DataError,
                "test, row 2, column 'label': the label 2 does not occur in train; known are 0, 1",
            ),
            ([{"text": "a"}], MissingColumnError, "test, column 'label': no such column"),
            ([{"label": 1}], MissingColumnError, "test, column 'text': no such column"),
            (
                [{"text": "", "label": 1}],
                DataError,
                "test, row 1, column 'text': the text is empty",
            ),
            ([{"text": "a", "label": None}], DataError, "test, row 1, column 'label': .* missing"),
            ([], DataError, "test: there are no rows"),
            ("nowhere.csv", DataError, "test: the file 'nowhere.csv' does not exist"),
        ],
    )
    def test_is_refused_as_in_validation_before_a_model_is_loaded(
        self, test: Any, error: type, named: str, bert: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(preparation, "load_for_task", None)
        with pytest.raises(error, match=named):
            run(bert, test=test)

    def test_names_the_line_of_a_file(self, bert: Path, tmp_path: Path):
        path = tmp_path / "test.csv"
        path.write_text("text,label\nw1,1\n\nw1,7\n", encoding="utf-8")
        for test in (path, IfLabelled(path)):
            with pytest.raises(DataError, match=r"test, row 2 \(line 4\), column 'label': .* '7'"):
                run(bert, test=test)


class TestIfLabelled:
    @pytest.mark.parametrize(
        "rows",
        [
            [{"text": "w1"}],
            [{"words": "w1"}],
            [{"text": "w1", "label": None}] * 2,
            [{"text": "w1", "label": -1}] * 2,
            [{"text": "w1", "label": None}, {"text": "", "label": -1}],  # no text is read either
        ],
    )
    def test_a_split_without_labels_is_not_scored_with_a_warning(self, rows: list, bert: Path):
        result = run(bert, test=IfLabelled(rows))
        assert result.test == {}
        assert result.report is not None
        assert result.report.split == "validation"
        [warning] = [each for each in result.warnings if each.code == "test_not_scored"]
        assert warning.param == "test"
        assert "the test split has no labels in 'label'" in warning.message

    def test_a_split_with_labels_is_scored(self, bert: Path):
        result = run(bert, test=IfLabelled(TEST))
        assert dict(result.test) == dict(run(bert, test=TEST).test)
        assert "test_not_scored" not in [each.code for each in result.warnings]

    def test_numbers_that_are_all_minus_one_are_no_labels(self, bert: Path):
        test = [{"text": "w1", "label": -1.0}] * 3
        assert run(bert, train=NUMBERS, validation=NUMBERS, test=IfLabelled(test)).test == {}
        scored = run(bert, train=NUMBERS, validation=NUMBERS, test=test)
        assert set(scored.test) == {"loss", "pearson", "spearman"}

    @pytest.mark.parametrize(
        ("rows", "named"),
        [
            ([{"text": "w1", "label": 1}, {"text": "w1", "label": None}], "row 2.* missing"),
            ([{"text": "w1", "label": 1}, {"text": "w1", "label": -1}], "row 2.* label -1"),
            ([{"label": 1}], "column 'text': no such column"),
            ([{"text": "", "label": 1}], "row 1.* the text is empty"),
            ([], "there are no rows"),
        ],
    )
    def test_a_split_with_some_labels_is_checked_as_any_other(
        self, rows: list, named: str, bert: Path
    ):
        with pytest.raises(DataError, match=f"test.*{named}"):
            run(bert, test=IfLabelled(rows))

    def test_a_hub_data_set_may_have_no_such_split(
        self, bert: Path, monkeypatch: pytest.MonkeyPatch
    ):
        hub = {"hub": "nobody/nothing"}
        whole = {"train": datasets.Dataset.from_list(TRAIN)}

        def load_dataset(*_: Any, split: str | None, revision: str | None) -> Any:
            assert revision is None
            return whole if split is None else whole[split]

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        arguments: dict[str, Any] = {"train": hub, "validation": None, "test": IfLabelled(hub)}
        result = run(bert, **arguments)
        assert (result.test, [each.code for each in result.warnings]) == ({}, [])
        whole["test"] = datasets.Dataset.from_list(TEST)
        assert set(run(bert, **arguments).test) == {"accuracy", "f1", "matthews", "loss"}
