"""hifi.tasks.question_answering: loss, metrics, the threshold of no answer, answers, kept heads."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers as tf

from hifi import HeadSelection, HeadTuner, finetune
from hifi.backbones.devices import resolve_device
from hifi.backbones.heads import HeadId
from hifi.backbones.models import load_config, resolve_model
from hifi.data.settings import Hyperparameters
from hifi.data.splits import load_split
from hifi.deltas.loading import load_bare_backbone
from hifi.errors import AnswerError, DeltaFileError, JobPaused, TrainingDivergedError
from hifi.serving.prediction import TaskRecord
from hifi.tasks import TaskSpec, make_task, question_answering
from hifi.tasks.question_answering import QuestionAnswering
from hifi.tasks.questions.spans import best_spans
from hifi.training.events import Control, TrainingEvent
from hifi.training.preparation import prepare
from tests.architectures import ARCHITECTURES, LAYERS, tiny_model
from tests.task_types.cases import CASES
from tests.tiny_deltas import save_bare_backbone
from tests.tiny_tasks import END, UNKNOWN, WORDS, save_text_model, tiny_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from hifi.tasks.questions.encoder import EncodedQuestions

Row = dict[str, Any]
CPU = torch.device("cpu")
MAKE_ROWS = next(case.rows for case in CASES if case.type == "question-answering")
TRAIN, VALIDATION = MAKE_ROWS(48, 1), MAKE_ROWS(16, 2)
SMALL: Mapping[str, Any] = {
    "epochs": 4,
    "batch_size": 8,
    "max_length": 24,
    "learning_rate": 0.01,
    "k": 2,
    "n_samples": 10,
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bare_backbone(tmp_path_factory.mktemp("models") / "tiny-bert")


def asked(context: str, *answers: str) -> Row:
    starts = [context.index(answer) for answer in answers]
    return {
        "question": "w9",
        "context": context,
        "answers": {"text": list(answers), "answer_start": starts},
    }


def make(rows: Sequence[Row] = TRAIN, **said: Any) -> Any:
    dataset = load_split(list(rows), split="train")
    return make_task(TaskSpec.of({"type": "question-answering", **said}), dataset)


def encode(task: Any, backbone: Path, rows: Sequence[Row], *, max_length: int = 24) -> Any:
    source, dataset = resolve_model(backbone), load_split(list(rows), split="validation")
    encoder = task.load_encoder(source, load_config(source), max_length=max_length)
    targets = task.targets(dataset, split="validation")
    return encoder.encode(dataset, split="validation", targets=targets)


def logits_for(examples: EncodedQuestions, *ends: tuple[int, int], size: float = 9.0) -> Tensor:
    """Return logits that are largest at these tokens of each window."""
    logits = torch.zeros(*examples.targets.shape[:2], 2)
    for window, (first, last) in enumerate(ends):
        logits[window, first, 0] += size
        logits[window, last, 1] += size
    return logits


def found_at(examples: EncodedQuestions, *ends: tuple[int, int]) -> Tensor:
    """Return the best answers of logits that are largest at these tokens of each window."""
    return make().condense(logits_for(examples, *ends), examples)


def run(backbone: Path, /, **arguments: Any) -> Any:
    given = {"model": backbone, "train": TRAIN, "validation": VALIDATION, "precision": "float32"}
    return finetune(**{**given, **SMALL, **arguments})


class TestLoss:
    def test_is_the_mean_cross_entropy_of_both_ends_over_the_candidates(self, backbone: Path):
        # [CLS] w9 [SEP] w1 w2 w3 [SEP]: candidates are [CLS] and the context.
        examples = encode(make(), backbone, [asked("w1 w2 w3", "w2 w3"), asked("w1")])
        logits = torch.randn(2, 7, 2, generator=torch.Generator().manual_seed(0))
        first = logits[0, [0, 3, 4, 5], 0].log_softmax(0)[2]
        last = logits[0, [0, 3, 4, 5], 1].log_softmax(0)[3]
        alone = logits[1, [0, 3]].log_softmax(0)[0]
        expected = -(first + last + alone.sum()) / 4
        assert make().loss(logits, examples.targets).item() == pytest.approx(expected.item())

    def test_does_not_depend_on_padding_or_the_batch(self, backbone: Path):
        rows = [asked("w1 w2 w3", "w2"), asked("w1", "w1")]
        examples = encode(make(), backbone, rows)
        logits = torch.randn(2, 7, 2, generator=torch.Generator().manual_seed(0))
        both = make().loss(logits, examples.targets)
        alone = [
            make().loss(logits[:1], examples.targets[:1]),
            make().loss(logits[1:, :5], examples.targets[1:]),  # its batch is shorter
        ]
        assert both.item() == pytest.approx(sum(each.item() for each in alone) / 2)

    def test_has_no_gradient_at_other_tokens(self, backbone: Path):
        examples = encode(make(), backbone, [asked("w1 w2", "w2")])
        logits = torch.zeros(1, 6, 2, requires_grad=True)
        make().loss(logits, examples.targets).backward()
        assert logits.grad is not None
        assert (logits.grad[0].abs().sum(-1) > 0).tolist() == [
            True,
            False,
            False,
            True,
            True,
            False,
        ]


class TestMetrics:
    def test_of_known_answers(self, backbone: Path):
        rows = [asked("w1 w2 w3", "w2 w3"), asked("w1 w2 w3", "w1"), asked("w1 w2 w3")]
        task = replace(make(), no_answer_threshold=0.0)
        examples = encode(task, backbone, rows)
        found = found_at(examples, (4, 4), (3, 3), (0, 0))
        metrics = task.evaluate(found, examples)
        assert metrics == {"f1": pytest.approx((2 / 3 + 1 + 1) / 3), "exact_match": 2 / 3}
        assert task.count_answers(examples.targets) == 3

    def test_of_several_answers_count_the_best(self, backbone: Path):
        examples = encode(make(), backbone, [asked("w1 w2 w3", "w1", "w2 w3")])
        found = found_at(examples, (4, 5))
        assert make().evaluate(found, examples) == {"f1": 1.0, "exact_match": 1.0}

    def test_of_a_task_without_unanswered_questions_always_answer(self, backbone: Path):
        task = make([asked("w1 w2", "w1"), asked("w1 w2", "w2")])
        assert task.no_answer_threshold is None
        examples = encode(task, backbone, [asked("w1 w2", "w1"), asked("w1 w2")])
        found = found_at(examples, (0, 0), (0, 0))
        assert task.fit_answers(found, examples) == {}
        assert task.evaluate(found, examples) == {"f1": 0.5, "exact_match": 0.5}
        assert task.report(found, examples, split="test") is None

    def test_take_the_best_span_of_all_windows(self, backbone: Path):
        words = [f"w{place}" for place in range(1, 31)]
        row = asked(" ".join(words), "w29")
        examples = encode(make(), backbone, [row, asked("w3", "w3")], max_length=12)
        assert examples.row_of.tolist().count(0) > 3
        ends = [(4, 4)] * len(examples)
        logits = logits_for(examples, *ends)
        last = examples.row_of.tolist().index(1) - 1
        place = next(token for token in range(3, 11) if examples.text(last, token, token) == "w29")
        logits[last] += logits_for(examples, *[(place, place)] * len(examples), size=20.0)[last]
        found = make().condense(logits, examples)
        assert make().evaluate(found, examples)["exact_match"] == 1.0

    def test_the_only_answer_of_different_questions_is_told(self, backbone: Path):
        task = replace(make(), no_answer_threshold=0.0)
        examples = encode(task, backbone, [asked("w1 w2", "w1"), asked("w1 w2")])
        assert task.only_answer(found_at(examples, (0, 0), (0, 0)), examples) == "no answer"
        assert task.only_answer(found_at(examples, (3, 3), (3, 3)), examples) == "w1"
        assert task.only_answer(found_at(examples, (3, 3), (0, 0)), examples) is None
        same = encode(task, backbone, [asked("w1 w2", "w1"), asked("w2 w1", "w1")])
        assert task.only_answer(found_at(same, (3, 3), (4, 4)), same) is None

    def test_the_report_is_of_questions_with_and_without_an_answer(self, backbone: Path):
        task = replace(make(), no_answer_threshold=0.0)
        rows = [asked("w1 w2", "w1"), asked("w1 w2", "w2"), asked("w1 w2")]
        examples = encode(task, backbone, rows)
        report = task.report(found_at(examples, (4, 4), (0, 0), (0, 0)), examples, split="test")
        assert [scores.label for scores in report.per_class] == ["an answer", "no answer"]
        assert report.confusion == ((1, 1), (0, 1))


class TestThreshold:
    def test_is_the_best_on_validation(self, backbone: Path):
        task = make()
        assert task.no_answer_threshold == 0.0
        examples = encode(task, backbone, [asked("w1 w2", "w1"), asked("w1 w2", "w2"), asked("w1")])
        logits = logits_for(examples, (3, 3), (4, 4), (3, 3))
        logits[:, 0, 0] = torch.tensor([19.0, 20.0, 22.0])  # none is likelier everywhere
        found = task.condense(logits, examples)
        fitted = task.fit_answers(found, examples)
        assert fitted == {"no_answer_threshold": pytest.approx(3.0)}
        assert task.evaluate(found, examples)["f1"] == pytest.approx(1 / 3)
        assert task.with_answers(fitted).evaluate(found, examples)["f1"] == 1.0

    def test_is_stored_and_read_again(self, backbone: Path):
        result = run(backbone)
        task = result.delta.metadata.task
        assert task is not None
        record = TaskRecord.of(result.delta, tf.AutoConfig.from_pretrained(backbone))
        assert record.task.no_answer_threshold == task["no_answer_threshold"]
        assert record.task.settings()["no_answer_threshold"] == task["no_answer_threshold"]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("no_answer_threshold", "0"),
            ("no_answer_threshold", math.inf),
            ("no_answer_threshold", True),
            ("stride", 0.5),
            ("stride", -1),
            ("stride", True),
        ],
    )
    def test_of_a_file_is_refused_outside_its_range(self, name: str, value: Any):
        with pytest.raises(DeltaFileError, match=f"records {name}="):
            make().with_answers({name: value})


class TestAnswer:
    def test_of_a_fine_tune_is_the_part_of_the_context(self, backbone: Path):
        result = run(backbone)
        assert result.metrics["f1"] > 0.9
        assert result.yardsticks["probe"]["f1"] > result.yardsticks["majority"]["f1"]

    def test_of_several_windows_is_of_the_best_one_in_the_whole_context(self, backbone: Path):
        record, given = read(backbone, {"question": "w9", "context": CONTEXT}, max_length=12)
        assert len(given.samples) > 3
        logits = [torch.zeros(sample.length, 2) for sample in given.samples]
        last = len(logits) - 1
        place = next(
            token
            for token, (start, end) in enumerate(given.characters[last].tolist())
            if CONTEXT[start:end] == "w29"
        )
        logits[last][place] = 9.0
        answer = record.task.read_answer(logits, given)
        start = CONTEXT.index("w29")
        assert (answer["answer"], answer["start"], answer["end"]) == ("w29", start, start + 3)
        assert answer["score"] > 0.99

    def test_in_the_overlap_of_two_windows_counts_once(self, backbone: Path):
        record, given = read(backbone, {"question": "w9", "context": CONTEXT}, max_length=12)
        shared = {tuple(pair) for pair in given.characters[0].tolist() if pair[0] < pair[1]} & {
            tuple(pair) for pair in given.characters[1].tolist()
        }
        logits = [torch.full((sample.length, 2), -99.0) for sample in given.samples]
        for window, characters in enumerate(given.characters):
            for token, pair in enumerate(characters.tolist()):
                if tuple(pair) == min(shared):
                    logits[window][token] = 9.0
        answer = record.task.read_answer(logits, given)
        assert answer["score"] == pytest.approx(1.0)

    def test_may_be_none(self, backbone: Path):
        record, given = read(backbone, {"question": "w9", "context": "w1 w2"})
        task = replace(record.task, no_answer_threshold=2.0)
        logits = torch.zeros(6, 2)
        logits[0, 0] = 2.5
        answer = task.read_answer([logits], given)
        share = math.exp(2.5) / (math.exp(2.5) + 3)
        assert answer == {
            "answer": None,
            "score": pytest.approx(share),
            "start": None,
            "end": None,
        }
        logits[0, 0] = 1.5
        assert task.read_answer([logits], given)["answer"] == "w1"
        always = replace(record.task, no_answer_threshold=None)
        logits[0, 0] = 99.0
        answer = always.read_answer([logits], given)
        assert (answer["answer"], answer["score"]) == ("w1", pytest.approx(1 / 3))

    def test_has_at_most_thirty_tokens(self, backbone: Path):
        context = " ".join(["w1"] * 35)
        record, given = read(backbone, {"question": "w9", "context": context}, max_length=64)
        logits = torch.zeros(given.samples[0].length, 2)
        logits[3, 0] = logits[3 + 30, 1] = 5.0  # the 31st
        logits[3 + 29, 1] = 4.0
        answer = replace(record.task, no_answer_threshold=None).read_answer([logits], given)
        assert len(answer["answer"].split()) == 30

    def test_of_numbers_that_are_none_is_an_error(self, backbone: Path):
        record, given = read(backbone, {"question": "w9", "context": "w1 w2"})
        with pytest.raises(AnswerError):
            record.task.read_answer([torch.full((6, 2), math.nan)], given)


CONTEXT = " ".join(f"w{place}" for place in range(1, 31))


def read(backbone: Path, given: Row, **settings: Any) -> tuple[TaskRecord, Any]:
    """Return the record of a delta and an encoded input."""
    delta = run(backbone, **{"epochs": 1, **settings}).delta
    record = TaskRecord.of(delta, tf.AutoConfig.from_pretrained(backbone))
    source = resolve_model(backbone)
    bare = load_bare_backbone(source, device=CPU).model
    (encoded,) = record.load_encoder(source, bare).read([given], truncate=True)
    return record, encoded


class TestDecoding:
    @pytest.mark.parametrize("threshold", [None, -6.0, -9.0])
    def test_of_predictions_is_that_of_metrics(self, threshold: float | None, backbone: Path):
        draw = random.Random(3)  # noqa: S311 - a draw, not a secret
        contexts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 40))) for _ in range(30)]
        task = replace(make(), no_answer_threshold=threshold)
        examples = encode(task, backbone, [asked(each) for each in contexts], max_length=14)
        torch.manual_seed(0)
        logits = 3 * torch.randn(*examples.targets.shape[:2], 2)
        source = resolve_model(backbone)
        encoder = task.load_encoder(source, load_config(source), max_length=14)
        given = encoder.read(
            [{"question": "w9", "context": each} for each in contexts], truncate=True
        )
        answers = []
        for row, each in enumerate(given):
            own = logits[torch.from_numpy(examples.row_of) == row]
            assert len(own) == len(each.samples)
            answers.append(task.read_answer(list(own), each)["answer"] or "")
        assert 0 < answers.count("") < 30 or threshold is None
        told = [asked(context, answer) for context, answer in zip(contexts, answers, strict=True)]
        told = [row if row["answers"]["text"] != [""] else asked(row["context"]) for row in told]
        examples = encode(task, backbone, told, max_length=14)
        found = task.condense(logits, examples)
        assert task.evaluate(found, examples)["exact_match"] == 1.0


class TestRuns:
    def test_search_once_in_the_logits_of_an_evaluation(
        self, backbone: Path, monkeypatch: pytest.MonkeyPatch
    ):
        searches, evaluations = [], []

        def counted(logits: Tensor, *given: Any) -> Any:
            searches.append(len(logits))
            return best_spans(logits, *given)

        def on_event(event: TrainingEvent) -> None:
            evaluations.extend([event] * (event.kind in ("evaluated", "tested")))

        monkeypatch.setattr(question_answering, "best_spans", counted)
        result = run(backbone, test=VALIDATION[:8], on_event=on_event)
        assert len(evaluations) > 2
        assert len(searches) == len(evaluations) + len(result.yardsticks)

    def test_that_diverge_on_validation_say_so(
        self, backbone: Path, monkeypatch: pytest.MonkeyPatch
    ):
        read = QuestionAnswering.logits_of

        def broken(output: Any) -> torch.Tensor:
            found = read(output)
            return found if found.requires_grad else found * math.nan

        monkeypatch.setattr(QuestionAnswering, "logits_of", staticmethod(broken))
        with pytest.raises(TrainingDivergedError, match="the validation loss at step"):
            run(backbone, head_start="random")

    def test_that_are_paused_end_with_the_same_bytes(self, backbone: Path, tmp_path: Path):
        def pause(event: TrainingEvent) -> Control:
            return Control.PAUSE if event.step == 4 else Control.CONTINUE

        folder = tmp_path / "checkpoint"
        with pytest.raises(JobPaused):
            run(backbone, checkpoint_dir=folder, on_event=pause)
        run(backbone, checkpoint_dir=folder).delta.save(tmp_path / "paused")
        run(backbone).delta.save(tmp_path / "whole")
        assert (tmp_path / "paused").read_bytes() == (tmp_path / "whole").read_bytes()

    def test_of_bfloat16_are_fine_tunes_too(self, backbone: Path):
        result = run(backbone, precision="bfloat16")
        assert result.metrics["f1"] > 0.8


class TestStride:
    def test_of_training_is_that_of_predictions(self, backbone: Path):
        row = {"question": "w9", "context": CONTEXT}
        wide, narrow = (
            read(backbone, row, max_length=12, task={"type": "question-answering", **said})
            for said in ({"stride": 0}, {"stride": 4})
        )
        assert wide[0].task.stride == 0
        assert len(wide[1].samples) < len(narrow[1].samples)
        assert wide[0].encoding != narrow[0].encoding  # they cannot share an encoder


class TestKeptHead:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        tf.BertForQuestionAnswering(tiny_model("bert").config).save_pretrained(tmp_path)
        special = {"pad_token": "[PAD]", "unk_token": UNKNOWN, "eos_token": END}
        tiny_tokenizer(**special).save_pretrained(tmp_path)
        return tmp_path

    def test_of_questions_is_kept_and_compared_untuned(self, folder: Path):
        result = run(folder, epochs=1, max_length=16)
        assert result.yardsticks.keys() == {"majority", "probe", "untuned"}
        ready = prepare(
            resolve_model(folder),
            spec=TaskSpec(type="question-answering"),
            train=TRAIN,
            validation=None,
            settings=Hyperparameters(max_length=16, precision="float32"),
            device=resolve_device("cpu"),
        )
        stored = tf.BertForQuestionAnswering.from_pretrained(folder).qa_outputs
        assert ready.loaded.model.qa_outputs.weight.equal(stored.weight)

    def test_of_two_classes_is_none(self, tmp_path: Path):
        tiny_model("bert").save_pretrained(tmp_path)
        special = {"pad_token": "[PAD]", "unk_token": UNKNOWN, "eos_token": END}
        tiny_tokenizer(**special).save_pretrained(tmp_path)
        assert "untuned" not in run(tmp_path, epochs=1, max_length=16).yardsticks


class TestArchitectures:
    @pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - {"vit", "deit"}))
    def test_learn_it(self, name: str, tmp_path: Path):
        """Each architecture with a class for questions: probe, training, and an answer."""
        config = ARCHITECTURES[name].config
        if config not in tf.models.auto.modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING:
            pytest.skip("transformers has no class for questions")
        folder = save_text_model(tmp_path, name)
        tiny_model(name).base_model.save_pretrained(folder)
        result = run(folder, epochs=2, max_length=16)
        assert result.yardsticks["probe"]["f1"] > result.yardsticks["majority"]["f1"]
        assert result.metrics["f1"] > 0.5


def test_a_delta_of_an_own_loop_answers(backbone: Path):
    model = tf.AutoModelForQuestionAnswering.from_pretrained(backbone)
    selection = HeadSelection.from_heads([HeadId(0, 1)], num_layers=LAYERS)
    delta = HeadTuner(model.eval(), selection).delta(
        task={"type": "question-answering", "question": "q", "context": "c", "label": "a"}
    )
    record = TaskRecord.of(delta, tf.AutoConfig.from_pretrained(backbone))
    source = resolve_model(backbone)
    bare = load_bare_backbone(source, device=CPU).model
    (given,) = record.load_encoder(source, bare).read(
        [{"question": "w9", "context": "w1 w2"}], truncate=True
    )
    logits = torch.zeros(given.samples[0].length, 2)
    logits[4] = 5.0
    assert record.task.read_answer([logits], given)["answer"] == "w2"
