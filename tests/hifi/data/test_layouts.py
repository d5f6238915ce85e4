"""hifi.data.layouts: columns of words and tags, texts and spans, questions; and their bad rows."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from hifi.data.columns import profile_split
from hifi.data.inference import (
    check_certain_task,
    class_labels,
    complete_task,
    count_labels,
    infer_task,
)
from hifi.data.spec import TaskSpec
from hifi.data.splits import load_split, read_split
from hifi.errors import AmbiguousTaskError, DataError, HifiError, InvalidArgumentError
from hifi.tasks import make_task
from tests.hifi.data.files import convert_here, jsonl

Row = dict[str, Any]
Refusal = tuple[str, str | None, int | None, str | None]

TOKENS = ["Ada", "Lovelace", "wrote"]
TAGGED = [
    {"tokens": TOKENS, "tags": ["B-person", "I-person", "O"]},
    {"tokens": ["London", "slept"], "tags": ["B-place", "O"]},
    {"tokens": ["It", "rained"], "tags": ["O", "O"]},
]
SPANNED = [
    {"text": "Ada wrote", "spans": [{"start": 0, "end": 3, "label": "person"}]},
    {"text": "🙂 London slept", "spans": [{"start": 2, "end": 8, "label": "place"}]},
    {"text": "It rained", "spans": []},
]
ASKED = [
    {
        "question": "Where did she go?",
        "context": "🙂 She left for Turin.",
        "answers": {"text": ["Turin"], "answer_start": [15]},
    },
    {
        "question": "Who left?",
        "context": "Ada left.",
        "answers": {"text": ["Ada"], "answer_start": [0]},
    },
    {"question": "Why?", "context": "It rained.", "answers": {"text": [], "answer_start": []}},
]


def infer(rows: list[Row] | dict[str, Any] | Dataset, **said: Any) -> TaskSpec:
    dataset = rows if isinstance(rows, Dataset) else load_split(rows, split="train")
    return infer_task(TaskSpec.of(said), profile_split(dataset))


def columns_of(rows: list[Row] | dict[str, Any] | Dataset, **said: Any) -> tuple[Any, ...]:
    task = infer(rows, **said)
    return (task.type, task.columns)


def renamed(rows: list[Row], **names: str) -> list[Row]:
    return [{names.get(name, name): value for name, value in row.items()} for row in rows]


def place_of(error: DataError) -> Refusal:
    """Return the reason without lines, which only an upload knows, and the place."""
    reason = re.sub(r" \(line \d+\)", "", error.reason)
    return (reason, error.split, error.row, error.column)


def trained(train: Path, validation: Path, said: dict[str, Any]) -> Refusal | None:
    """Read files as training does; return the refusal."""
    try:
        loaded = read_split(train, split="train")
        task = make_task(TaskSpec.of(said), loaded.dataset, profile=loaded.profile)
        for split, path in (("train", train), ("validation", validation)):
            task.targets(load_split(path, split=split, columns=task.columns), split=split)
    except DataError as error:
        return place_of(error)
    return None


def uploaded(
    folder: Path, train: Path, validation: Path, said: dict[str, Any]
) -> list[Refusal | None]:
    """Upload files, with and without a job; return the refusals."""
    try:
        profile = convert_here(folder, train=train, validation=validation).profile
    except DataError as error:
        return [place_of(error)]
    found: list[Refusal | None] = []
    for check in (check_certain_task, lambda profile: complete_task(TaskSpec.of(said), profile)):
        try:
            check(profile)
            found.append(None)
        except DataError as error:
            found.append(place_of(error))
    return found[1:] if said else found


class TestInferenceOfWords:
    @pytest.mark.parametrize("tokens", ["tokens", "words"])
    @pytest.mark.parametrize("tags", ["tags", "ner_tags"])
    def test_takes_columns_of_usual_names(self, tokens: str, tags: str):
        rows = renamed(TAGGED, tokens=tokens, tags=tags)
        assert columns_of(rows) == ("token-classification", (tokens, tags))

    def test_prefers_the_first_of_the_usual_names(self):
        rows = [{"words": row["tokens"], "ner_tags": row["tags"], **row} for row in TAGGED]
        assert columns_of(rows) == ("token-classification", ("tokens", "tags"))

    def test_takes_no_lists_of_other_names(self):
        rows = [{**row, "text": "x", "topics": row["tags"]} for row in TAGGED]
        for row in rows:
            del row["tags"]
        with pytest.raises(AmbiguousTaskError):
            infer(rows)

    def test_of_one_list_beside_a_text_is_multi_label(self):
        rows = [{"text": "x", "labels": row["tags"]} for row in TAGGED]
        assert infer(rows).type == "multi-label"

    def test_takes_the_other_list_if_one_is_named(self):
        rows = renamed(TAGGED, tokens="w", tags="t")
        assert columns_of(rows, tokens="w") == ("token-classification", ("w", "t"))
        assert columns_of(rows, tags="t") == ("token-classification", ("w", "t"))

    def test_of_two_lists_of_other_names_is_ambiguous(self):
        rows = renamed(TAGGED, tokens="w", tags="t")
        with pytest.raises(AmbiguousTaskError) as caught:
            infer(rows, type="token-classification")
        assert caught.value.param == "tokens"

    def test_of_several_other_lists_is_ambiguous_if_one_is_named(self):
        rows = [{"w": row["tokens"], "t": row["tags"], "u": row["tags"]} for row in TAGGED]
        with pytest.raises(AmbiguousTaskError):
            infer(rows, tokens="w")
        assert columns_of(rows, tokens="w", tags="u") == ("token-classification", ("w", "u"))

    def test_takes_named_columns_over_usual_ones(self):
        rows = [{**row, "chunks": row["tags"]} for row in TAGGED]
        assert columns_of(rows, tags="chunks") == ("token-classification", ("tokens", "chunks"))

    def test_leaves_lists_of_numbers_alone(self):
        rows = [{**row, "tags": [0.5] * len(row["tags"])} for row in TAGGED]
        with pytest.raises(HifiError):
            infer(rows)

    def test_refuses_fields_of_both_layouts(self):
        rows = [{**row, "text": "x"} for row in TAGGED]
        with pytest.raises(InvalidArgumentError):
            infer(rows, text="text", tags="tags")


class TestCrashes:
    """Files that once ended with an error of a library."""

    def test_lists_and_texts_in_one_column(self, tmp_path: Path):
        rows: list[Row] = [
            {"tokens": ["Ada", "wrote"], "tags": ["B-person", "O"]},
            {"tokens": "Ada wrote", "tags": ["B-person", "O"]},
        ]
        path = jsonl(tmp_path / "a.jsonl", rows)
        for profile in (
            read_split(path, split="train").profile,
            convert_here(tmp_path, train=path).profile,
        ):
            with pytest.raises(DataError) as caught:
                complete_task(TaskSpec(type="token-classification", tokens="tokens"), profile)
            assert (caught.value.row, caught.value.column) == (2, "tokens")

    def test_words_of_a_single_class(self):
        rows: list[Row] = [{"tokens": ["Ada"], "tags": ["B-person"]}] * 3
        with pytest.raises(DataError, match="every word has the tag 'B-person'"):
            make_task(TaskSpec(type="token-classification"), Dataset.from_list(rows))


class TestUncertain:
    """An upload is not refused for a task that its columns only may be meant for."""

    @pytest.mark.parametrize(
        "row",
        [
            {"text": "a b", "kind": "x", "spans": [{"start": 0, "end": 9, "label": "A"}]},
            {"words": ["a", "b"], "tags": ["topic"], "kind": "x"},
        ],
    )
    def test_columns_beside_them_leave_it_to_the_job(self, row: Any, tmp_path: Path):
        rows = [row, row, {**row, "kind": "y"}]
        profile = convert_here(tmp_path, train=jsonl(tmp_path / "a.jsonl", rows)).profile
        check_certain_task(profile)
        with pytest.raises(DataError, match=r"outside the text|every word has the tag"):
            complete_task(TaskSpec(type="token-classification"), profile)

    def test_columns_beside_answers_leave_no_doubt(self, tmp_path: Path):
        rows = [{"id": place, "title": "AAB"[place], **row} for place, row in enumerate(ASKED)]
        rows = changed(rows, 1, **answered("Ada", 1))
        profile = convert_here(tmp_path, train=jsonl(tmp_path / "a.jsonl", rows)).profile
        with pytest.raises(DataError, match="does not begin at 1, but at 0") as caught:
            check_certain_task(profile)
        assert (caught.value.row, caught.value.column) == (2, "answers")

    def test_lists_of_labels_beside_the_words_of_a_text_are_no_tags(self, tmp_path: Path):
        rows = [
            {"text": "a b c", "tokens": ["a", "b", "c"], "labels": names}
            for names in (["x"], ["x", "y"], [])
        ]
        profile = convert_here(tmp_path, train=jsonl(tmp_path / "a.jsonl", rows)).profile
        check_certain_task(profile)
        assert complete_task(TaskSpec(), profile).type == "multi-label"


class TestInferenceOfConll:
    NER = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")
    CHUNKS = ("O", "B-NP", "I-NP", "B-VP", "I-VP")
    PARTS = ("NNP", "VBD", "TO", ".")

    @pytest.fixture
    def rows(self) -> Dataset:
        names = {"pos_tags": self.PARTS, "chunk_tags": self.CHUNKS, "ner_tags": self.NER}
        tags = {name: List(ClassLabel(names=list(each))) for name, each in names.items()}
        features = Features(id=Value("string"), tokens=List(Value("string")), **tags)
        columns = {
            "id": ["0", "1"],
            "tokens": [["Ada", "wrote", "."], ["Ada", "Lovelace"]],
            "pos_tags": [[0, 1, 3], [0, 0]],
            "chunk_tags": [[1, 3, 0], [1, 2]],
            "ner_tags": [[1, 0, 0], [1, 2]],
        }
        return Dataset.from_dict(columns, features)

    def test_takes_the_named_entities(self, rows: Dataset):
        assert columns_of(rows) == ("token-classification", ("tokens", "ner_tags"))
        task = make_task(TaskSpec(), rows)
        assert task.labels == self.NER
        targets = task.targets(rows, split="train")
        assert targets.tolist() == [[0, 0, 3, 1, 2], [1, 0, 12, 1, 2]]

    def test_takes_other_tags_that_are_named(self, rows: Dataset):
        chunks = make_task(TaskSpec.of({"tags": "chunk_tags"}), rows)
        assert chunks.labels == self.CHUNKS
        parts = make_task(TaskSpec.of({"tags": "pos_tags"}), rows)
        assert parts.labels == self.PARTS
        targets = parts.targets(rows, split="train")
        second = targets[targets[:, 0] == 1, 1:].tolist()
        assert second[:2] == [[0, 3, 0, 0], [4, 12, 0, 0]]

    def test_of_a_parquet_file_is_the_same_as_an_upload(self, rows: Dataset, tmp_path: Path):
        path = tmp_path / "a.parquet"
        rows.to_parquet(path)
        profile = convert_here(tmp_path, train=path, validation=path).profile
        check_certain_task(profile)
        task = complete_task(TaskSpec(), profile)
        assert task.columns == ("tokens", "ner_tags")
        assert class_labels(task, profile) == self.NER
        assert trained(path, path, {}) is None

    def test_reads_a_named_tag_that_does_not_occur_in_train(self):
        features = Features(
            tokens=List(Value("string")), tags=List(ClassLabel(names=["O", "person", "place"]))
        )
        train = Dataset.from_dict({"tokens": [["Ada", "London"]], "tags": [[1, 2]]}, features)
        other = Dataset.from_dict({"tokens": [["It", "Ada"]], "tags": [[0, 1]]}, features)
        task = make_task(TaskSpec(), train)
        assert task.labels == ("O", "B-person", "I-person", "B-place", "I-place")
        assert task.targets(other, split="validation").tolist() == [[0, 3, 6, 1, 2]]

    @pytest.mark.parametrize("value", [-1, -100])
    def test_refuses_a_number_without_a_name(self, value: int):
        features = Features(
            tokens=List(Value("string")), tags=List(ClassLabel(names=["O", "B-x", "I-x"]))
        )
        rows = Dataset.from_dict(
            {"tokens": [["a", "b"], ["c"]], "tags": [[1, 2], [value]]}, features
        )
        with pytest.raises(DataError, match=f"the label {value} has no name") as caught:
            make_task(TaskSpec(), rows)
        assert (caught.value.split, caught.value.row, caught.value.column) == ("train", 2, "tags")


class TestInferenceOfSpans:
    def test_takes_a_column_of_their_shape(self):
        rows = renamed(SPANNED, spans="marks")
        assert columns_of(rows) == ("token-classification", ("text", "marks"))

    def test_takes_the_only_text_of_any_name(self):
        rows = renamed(SPANNED, text="letter")
        assert columns_of(rows) == ("token-classification", ("letter", "spans"))

    def test_prefers_usual_names(self):
        rows = [{"title": "x", "marks": row["spans"], **row} for row in SPANNED]
        assert columns_of(rows) == ("token-classification", ("text", "spans"))

    def test_of_two_columns_of_spans_is_ambiguous(self):
        rows = [{"text": row["text"], "a": row["spans"], "b": row["spans"]} for row in SPANNED]
        with pytest.raises(AmbiguousTaskError):
            infer(rows, type="token-classification")
        assert columns_of(rows, spans="b") == ("token-classification", ("text", "b"))

    def test_of_two_texts_of_other_names_is_ambiguous(self):
        rows = [{"a": row["text"], "b": "x", "spans": row["spans"]} for row in SPANNED]
        with pytest.raises(AmbiguousTaskError):
            infer(rows)
        assert columns_of(rows, text="a", spans="spans") == ("token-classification", ("a", "spans"))

    @pytest.mark.parametrize("name", ["label", "labels"])
    def test_beside_a_label_is_ambiguous(self, name: str):
        rows = [{**row, name: "xy"[place % 2]} for place, row in enumerate(SPANNED)]
        with pytest.raises(AmbiguousTaskError) as caught:
            infer(rows)
        assert caught.value.param == "task"
        assert infer(rows, type="token-classification").spans == "spans"
        assert infer(rows, spans="spans").type == "token-classification"
        assert infer(rows, type="classification", label=name).text == ("text",)

    def test_words_with_tags_come_first(self):
        rows = [
            {**words, **texts, "spans": []} for words, texts in zip(TAGGED, SPANNED, strict=True)
        ]
        assert columns_of(rows) == ("token-classification", ("tokens", "tags"))

    def test_may_have_further_entries(self):
        rows = [
            {**row, "spans": [{**span, "id": 1, "text": None} for span in row["spans"]]}
            for row in SPANNED
        ]
        assert columns_of(rows) == ("token-classification", ("text", "spans"))


class TestInferenceOfQuestions:
    TYPE = "question-answering"

    def test_takes_columns_of_usual_names(self):
        rows = [{"id": place, "title": "x", **row} for place, row in enumerate(ASKED)]
        assert columns_of(rows) == (self.TYPE, ("question", "context", "answers"))

    def test_takes_answers_of_any_name_by_their_shape(self):
        rows = renamed(ASKED, answers="found")
        assert columns_of(rows) == (self.TYPE, ("question", "context", "found"))

    def test_takes_answers_as_objects(self):
        rows = [{**row, "answers": objects(row["answers"])} for row in ASKED]
        assert columns_of(rows) == (self.TYPE, ("question", "context", "answers"))
        expected = make_task(TaskSpec(), Dataset.from_list(ASKED))
        task = make_task(TaskSpec(), Dataset.from_list(rows))
        assert task == expected
        targets = task.targets(Dataset.from_list(rows), split="train")
        assert targets.tolist() == [[0, 15, 20], [1, 0, 3]]

    def test_of_texts_of_other_names_is_ambiguous(self):
        rows = renamed(ASKED, question="q", context="c")
        with pytest.raises(AmbiguousTaskError) as caught:
            infer(rows, type=self.TYPE)
        assert caught.value.param == "question"
        assert columns_of(rows, question="q") == (self.TYPE, ("q", "c", "answers"))

    @pytest.mark.parametrize("named", ["question", "context", "answers"])
    def test_takes_the_others_of_a_named_one(self, named: str):
        assert columns_of(ASKED, **{named: named})[0] == self.TYPE
        assert not TaskSpec.of({named: named}).names_all_columns

    def test_beside_a_label_is_ambiguous(self):
        rows = [{**row, "label": "xy"[place % 2]} for place, row in enumerate(ASKED)]
        with pytest.raises(AmbiguousTaskError) as caught:
            infer(rows)
        assert caught.value.param == "task"

    @pytest.mark.parametrize(
        "answers",
        ["Ada", None, {"text": "Ada", "answer_start": 0}, {"text": ["Ada"], "answer_start": [0.5]}],
    )
    def test_names_the_column_of_answers_that_are_none(self, answers: Any, tmp_path: Path):
        rows = [{**row, "answers": answers} for row in ASKED]
        profiles = [profile_split(load_split(rows, split="train"))]
        path = jsonl(tmp_path / "a.jsonl", rows)
        profiles.append(convert_here(tmp_path, train=path).profile)
        for profile in profiles:
            with pytest.raises(DataError, match="a column of answers is needed") as caught:
                infer_task(TaskSpec(type=self.TYPE), profile)
            assert (caught.value.column, caught.value.param) == ("answers", "answers")

    def test_refuses_one_column_for_both_texts(self):
        with pytest.raises(InvalidArgumentError, match="another column than the inputs") as caught:
            TaskSpec(question="context", context="context")
        assert caught.value.param == "context"

    def test_of_a_table_of_datasets_is_the_same(self, tmp_path: Path):
        features = Features(
            question=Value("string"),
            context=Value("string"),
            answers={"text": List(Value("string")), "answer_start": List(Value("int32"))},
        )
        path = tmp_path / "a.parquet"
        Dataset.from_list(ASKED, features=features).to_parquet(path)
        assert trained(path, path, {}) is None
        assert uploaded(tmp_path, path, path, {}) == [None, None]

    def test_has_no_other_options(self):
        assert infer(ASKED, stride=8).stride == 8
        with pytest.raises(InvalidArgumentError, match="a question-answering task has none"):
            infer(ASKED, threshold=0.5)
        with pytest.raises(InvalidArgumentError, match="a token-classification task has none"):
            infer(TAGGED, type="token-classification", tokens="tokens", tags="tags", stride=8)
        with pytest.raises(InvalidArgumentError, match="stride"):
            TaskSpec(stride=-1)


def objects(answers: dict[str, list[Any]]) -> list[Row]:
    """Return answers one by one."""
    pairs = zip(answers["text"], answers["answer_start"], strict=True)
    return [{"text": text, "answer_start": start} for text, start in pairs]


def changed(rows: list[Row], place: int, **values: Any) -> list[Row]:
    """Return rows of which one has other values."""
    return [{**row, **values} if index == place else row for index, row in enumerate(rows)]


def answered(text: Any, start: Any) -> Row:
    return {"answers": {"text": [text], "answer_start": [start]}}


def span(start: Any, end: Any, label: Any = "person", **others: Any) -> Row:
    return {"start": start, "end": end, "label": label, **others}


BAD_TAGS: dict[str, tuple[Row, str, str]] = {
    "fewer tags": ({"tokens": TOKENS, "tags": ["O", "O"]}, "tags", "2 tags and 3 words"),
    "more tags": ({"tokens": ["a"], "tags": ["O", "O"]}, "tags", "2 tags and 1 words"),
    "I first": ({"tags": ["I-person", "O"]}, "tags", "'I-person' begins a row"),
    "I after O": ({"tags": ["O", "I-person"]}, "tags", "'I-person' follows 'O'"),
    "I of another type": (
        {"tags": ["B-person", "I-place"]},
        "tags",
        "'I-place' follows 'B-person'",
    ),
    "no prefix": ({"tags": ["person", "O"]}, "tags", "prefix"),
    "empty tag": ({"tags": ["", "O"]}, "tags", "an empty text"),
    "blank tag": ({"tags": [" ", "O"]}, "tags", "an empty text"),
    "null tag": ({"tags": [None, "O"]}, "tags", "an entry without a text"),
    "no tags": ({"tokens": [], "tags": []}, "", "the list is empty"),
    "missing tags": ({"tags": None}, "tags", "the list of tags is missing"),
    "missing words": ({"tokens": None}, "", "missing|0 words"),
    "null word": ({"tokens": [None, "a"]}, "tokens", "an entry without a text"),
    "empty word": ({"tokens": ["a", ""]}, "tokens", "an empty text"),
    "blank word": ({"tokens": ["a", " \t"]}, "tokens", "an empty text"),
    "both missing": ({"tokens": None, "tags": None}, "", "missing"),
}
BAD_SPANS: dict[str, tuple[Row, str, str]] = {
    "overlap": (
        {"text": "Ada wrote", "spans": [span(0, 5), span(4, 9, "place")]},
        "spans",
        "overlap",
    ),
    "reversed": ({"text": "Ada wrote", "spans": [span(3, 0)]}, "spans", "reversed"),
    "empty": ({"text": "Ada wrote", "spans": [span(3, 3)]}, "spans", "empty"),
    "outside": ({"text": "Ada", "spans": [span(0, 4)]}, "spans", "outside"),
    "negative": ({"text": "Ada", "spans": [span(-1, 2)]}, "spans", "outside"),
    "white space": ({"text": "Ada wrote", "spans": [span(3, 4)]}, "spans", "white space"),
    "bytes": ({"text": "Женя живёт", "spans": [span(9, 19)]}, "spans", "bytes"),
    "UTF-16": ({"text": "🙂 Ada wrote", "spans": [span(3, 6)]}, "spans", "UTF-16"),
    "inside an accent": ({"text": "Jose\u0301 x", "spans": [span(0, 4)]}, "spans", "inside"),
    "no label": ({"text": "Ada", "spans": [span(0, 3, None)]}, "spans", "no label"),
    "blank label": (
        {"text": "Ada", "spans": [span(0, 3, " ")]},
        "spans",
        "no label|' ' does not occur",
    ),
    "null span": ({"text": "Ada", "spans": [None]}, "spans", "no whole numbers"),
    "null end": ({"text": "Ada", "spans": [span(0, None)]}, "spans", "no whole numbers"),
    "missing spans": ({"text": "Ada", "spans": None}, "spans", "the list of spans is missing"),
    "missing text": ({"text": None, "spans": []}, "text", "the text is missing"),
    "blank text": ({"text": " ", "spans": []}, "text", "the text is empty"),
}
UNKNOWN: dict[str, tuple[Row, str, str]] = {
    "type": ({"tokens": ["a"], "tags": ["B-ship"]}, "tags", "'ship' does not occur in train"),
    "span": ({"text": "Ada", "spans": [span(0, 3, "ship")]}, "spans", "'ship' does not occur"),
}
BAD_ANSWERS: dict[str, tuple[Row, str, str]] = {
    "elsewhere": (answered("Ada", 1), "answers", "does not begin at 1, but at 0"),
    "not there": (answered("Bob", 0), "answers", "'Bob' is not in the context"),
    "empty": (answered(" ", 3), "answers", "an answer is empty"),
    "no start": (answered("Ada", None), "answers", "no whole number as answer_start"),
    "fewer starts": (
        {"answers": {"text": ["Ada", "Ada"], "answer_start": [0]}},
        "answers",
        "2 texts of answers and 1 starts",
    ),
    "no answers": ({"answers": None}, "answers", "the answers are missing"),
    "empty context": ({"context": " "}, "context", "the text is empty"),
    "no context": ({"context": None}, "context", "the text is missing"),
    "empty question": ({"question": ""}, "question", "the text is empty"),
    "no question": ({"question": None}, "question", "the text is missing"),
}
FIELDS = {
    "tags": ("tokens", "tags"),
    "spans": ("text", "spans"),
    "answers": ("question", "context", "answers"),
}
# What a caller says of the task, by its label.
NAMED: list[Callable[[str], dict[str, Any]]] = [
    lambda _: {},
    lambda label: {"type": "question-answering" if label == "answers" else "token-classification"},
    lambda label: {name: name for name in FIELDS[label]},
]


def label_of(rows: list[Row]) -> str:
    return next(name for name in FIELDS if name in rows[0])


class TestBadRows:
    """Training and an upload refuse the same row of a column, for the same reason."""

    @staticmethod
    def check(
        folder: Path, splits: dict[str, list[Row]], expected: tuple[Any, ...], reason: str
    ) -> None:
        paths = {split: jsonl(folder / f"{split}.jsonl", rows) for split, rows in splits.items()}
        label = label_of(splits["train"])
        for said in (make(label) for make in NAMED):
            found = trained(*paths.values(), said)
            assert found is not None, said
            assert found[1:3] == expected[:2], (said, found)
            assert not expected[2] or found[3] == expected[2], (said, found)
            assert any(words in found[0] for words in reason.split("|")), found
            for refusal in uploaded(folder, *paths.values(), said):
                assert refusal == found, said

    @pytest.mark.parametrize("split", ["train", "validation"])
    @pytest.mark.parametrize("name", BAD_TAGS)
    def test_of_tags(self, name: str, split: str, tmp_path: Path):
        row, column, reason = BAD_TAGS[name]
        splits = {"train": TAGGED, "validation": TAGGED}
        splits |= {split: [*changed(TAGGED, 1, **row), TAGGED[1]]}
        self.check(tmp_path, splits, (split, 2, column), reason)

    @pytest.mark.parametrize("split", ["train", "validation"])
    @pytest.mark.parametrize("name", BAD_SPANS)
    def test_of_spans(self, name: str, split: str, tmp_path: Path):
        row, column, reason = BAD_SPANS[name]
        splits = {"train": SPANNED, "validation": SPANNED}
        splits |= {split: [*changed(SPANNED, 1, **row), SPANNED[1]]}
        self.check(tmp_path, splits, (split, 2, column), reason)

    @pytest.mark.parametrize("split", ["train", "validation"])
    @pytest.mark.parametrize("name", BAD_ANSWERS)
    def test_of_answers(self, name: str, split: str, tmp_path: Path):
        row, column, reason = BAD_ANSWERS[name]
        splits = {"train": ASKED, "validation": ASKED}
        splits |= {split: [*changed(ASKED, 1, **row), ASKED[1]]}
        self.check(tmp_path, splits, (split, 2, column), reason)

    @pytest.mark.parametrize("name", UNKNOWN)
    def test_of_labels_that_train_does_not_have(self, name: str, tmp_path: Path):
        row, column, reason = UNKNOWN[name]
        rows = SPANNED if column == "spans" else TAGGED
        splits = {"train": rows, "validation": changed(rows, 2, **row)}
        self.check(tmp_path, splits, ("validation", 3, column), reason)

    @pytest.mark.parametrize("label", ["tags", "spans", "answers"])
    def test_of_a_split_without_any_list(self, label: str, tmp_path: Path):
        rows = {"tags": TAGGED, "spans": SPANNED, "answers": ASKED}[label]
        splits = {"train": rows, "validation": [{**row, label: None} for row in rows]}
        paths = [jsonl(tmp_path / f"{split}.jsonl", each) for split, each in splits.items()]
        found = trained(*paths, {})
        assert found is not None
        assert found[1::2] == ("validation", label)
        assert uploaded(tmp_path, *paths, {}) == [found, found]

    def test_of_a_split_without_any_entity(self, tmp_path: Path):
        for rows, label, reason in (
            (TAGGED, "tags", "every word has the tag 'O'"),
            (SPANNED, "spans", "start, end and label"),
        ):
            empty = [
                {**row, label: ["O"] * len(row[label]) if label == "tags" else []} for row in rows
            ]
            good, bad = jsonl(tmp_path / "a.jsonl", rows), jsonl(tmp_path / "b.jsonl", empty)
            assert trained(good, bad, {}) is None
            assert uploaded(tmp_path, good, bad, {}) == [None, None]
            said = NAMED[2](label)
            found = trained(bad, good, said)
            assert found is not None
            assert (found[1:], reason in found[0]) == (("train", None, label), True)
            assert uploaded(tmp_path, bad, good, said) == [found]

    def test_of_a_split_without_any_answer(self, tmp_path: Path):
        for none in ({"text": [], "answer_start": []}, []):
            empty = [{**row, "answers": none} for row in ASKED]
            good, bad = jsonl(tmp_path / "a.jsonl", ASKED), jsonl(tmp_path / "b.jsonl", empty)
            assert trained(good, bad, {}) is None
            assert uploaded(tmp_path, good, bad, {}) == [None, None]
            said = NAMED[2]("answers")
            found = trained(bad, good, said)
            assert found is not None
            assert found[1:] == ("train", None, "answers")
            assert uploaded(tmp_path, bad, good, said) == [found]

    def test_of_a_split_with_nothing_but_nulls_among_its_spans(self):
        task = make_task(TaskSpec(), load_split(SPANNED, split="train"))
        rows = [{"text": "a", "spans": []}, {"text": "b", "spans": [None]}]
        with pytest.raises(DataError, match="an entry that is no span") as caught:
            task.targets(load_split(rows, split="validation"), split="validation")
        assert (caught.value.row, caught.value.column) == (2, "spans")

    def test_of_a_split_with_nothing_but_nulls_among_its_answers(self):
        task = make_task(TaskSpec(), load_split(ASKED, split="train"))
        rows = [{**ASKED[2], "answers": []}, {**ASKED[2], "answers": [None]}]
        with pytest.raises(DataError, match="an entry that is no answer") as caught:
            task.targets(load_split(rows, split="validation"), split="validation")
        assert (caught.value.row, caught.value.column) == (2, "answers")

    def test_of_integers_without_names(self, tmp_path: Path):
        rows = [{"tokens": row["tokens"], "tags": [0] * len(row["tokens"])} for row in TAGGED]
        path = jsonl(tmp_path / "a.jsonl", rows)
        said = {"tokens": "tokens", "tags": "tags"}
        found = trained(path, path, said)
        assert found is not None
        assert "the tags are integers without names, as 0" in found[0]
        assert found[1:] == ("train", None, "tags")
        assert uploaded(tmp_path, path, path, said) == [found]

    def test_of_texts_in_place_of_lists(self, tmp_path: Path):
        rows = [{"tokens": " ".join(row["tokens"]), "tags": "O"} for row in TAGGED]
        path = jsonl(tmp_path / "a.jsonl", rows)
        said = {"tokens": "tokens", "tags": "tags"}
        found = trained(path, path, said)
        assert found is not None
        assert "a column of lists is needed, a tag of each word" in found[0]
        assert uploaded(tmp_path, path, path, said) == [found]


WORDS = st.none() | st.lists(st.sampled_from(["Ada", "wrote", "", None]), max_size=2)
TAGS = st.none() | st.lists(
    st.sampled_from(["O", "B-x", "I-x", "B-y", "U-x", "L-x", "x", "", None]), max_size=2
)
TEXTS = st.sampled_from(["Ada wrote", "Ada Женя", "🙂 Ada", " ", None])
PLACES = st.sampled_from([0, 3, 4, 8, 9, 12, -1, None])
SPANS = st.lists(
    st.none()
    | st.fixed_dictionaries(
        {"start": PLACES, "end": PLACES, "label": st.sampled_from(["x", "y", " ", None])}
    ),
    max_size=2,
)


ANSWERS = st.lists(st.tuples(st.sampled_from(["Ada", "Женя", "", None]), PLACES), max_size=2).map(
    lambda pairs: {"text": [pair[0] for pair in pairs], "answer_start": [pair[1] for pair in pairs]}
)


@st.composite
def good_and_any_rows(draw: st.DrawFn) -> tuple[list[Row], list[Row]]:
    """Draw the rows of training and validation: sound ones, and some with any values."""
    rows, fields = draw(
        st.sampled_from(
            [
                (TAGGED, {"tokens": WORDS, "tags": TAGS}),
                (SPANNED, {"text": TEXTS, "spans": st.none() | SPANS}),
                (ASKED, {"question": TEXTS, "context": TEXTS, "answers": st.none() | ANSWERS}),
            ]
        )
    )
    some = st.lists(st.sampled_from(rows) | st.fixed_dictionaries(fields), min_size=1, max_size=4)
    return draw(some | some.map(lambda more: [*rows, *more])), draw(some)


class TestAnyRows:
    @settings(max_examples=200)
    @given(good_and_any_rows(), st.sampled_from(NAMED))
    def test_are_refused_in_training_exactly_as_at_an_upload(
        self, drawn: tuple[list[Row], list[Row]], make: Callable[[str], dict[str, Any]]
    ):
        said = make(label_of(drawn[0]))
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            paths = [jsonl(folder / f"{place}.jsonl", rows) for place, rows in enumerate(drawn)]
            found = trained(*paths, said)
            refusal = uploaded(folder, *paths, said)[-1]
        assert refusal == found


class TestSchemes:
    @pytest.mark.parametrize(
        "tags",
        [
            ["B-x I-x O", "B-y O O"],
            ["I-x B-x O", "I-y O O"],
            ["B-x L-x O", "U-y O O"],
            ["B-x E-x O", "S-y O O"],
            ["x x O", "y O O"],
            ["I-x I-x O", "I-y O O"],
        ],
    )
    def test_of_tags_have_the_same_classes(self, tags: list[str], tmp_path: Path):
        rows = [{"tokens": TOKENS, "tags": each.split()} for each in tags]
        path = jsonl(tmp_path / "a.jsonl", rows)
        profile = convert_here(tmp_path, train=path, validation=path).profile
        task = complete_task(TaskSpec(), profile)
        labels = ("O", "B-x", "I-x", "B-y", "I-y")
        assert class_labels(task, profile) == labels
        dataset = load_split(path, split="train")
        made = make_task(TaskSpec(), dataset)
        assert made.labels == labels
        targets = made.targets(dataset, split="train")
        assert targets[targets[:, 0] == 1, 1:].tolist()[0] == [0, 3, 3, 4]

    def test_of_words_have_a_class_of_each_tag(self, tmp_path: Path):
        rows = [{"tokens": TOKENS, "tags": ["NOUN", "NOUN", "VERB"]}]
        path = jsonl(tmp_path / "a.jsonl", rows)
        profile = convert_here(tmp_path, train=path, validation=path).profile
        task = complete_task(TaskSpec(), profile)
        assert class_labels(task, profile) == ("NOUN", "VERB")
        unknown = jsonl(tmp_path / "b.jsonl", [{"tokens": ["a"], "tags": ["ADJ"]}])
        found = trained(path, unknown, {})
        assert found is not None
        assert found[1:] == ("validation", 1, "tags")
        assert uploaded(tmp_path, path, unknown, {}) == [found, found]

    @pytest.mark.parametrize("label", ["tags", "spans"])
    def test_of_five_thousand_types_are_read(self, label: str, tmp_path: Path):
        if label == "tags":
            rows = [{"tokens": ["a", "b"], "tags": [f"B-{row}", "O"]} for row in range(5000)]
        else:
            rows = [{"text": "a b", "spans": [span(0, 1, f"{row}")]} for row in range(5000)]
        path = jsonl(tmp_path / "a.jsonl", rows)
        profile = convert_here(tmp_path, train=path, validation=path).profile
        check_certain_task(profile)
        task = complete_task(TaskSpec(), profile)
        assert count_labels(task, profile) == 10_001
        assert class_labels(task, profile) is None
        assert trained(path, path, {}) is None

    def test_of_many_rows_without_a_tag_are_refused_at_the_first(self):
        rows = {"tokens": [["a"]] + [[]] * 10_000, "tags": [["B-x"]] + [[]] * 10_000}
        with pytest.raises(DataError, match="the list is empty") as caught:
            make_task(TaskSpec(), load_split(rows, split="train"))
        assert caught.value.row == 2


class TestEmptyLists:
    @pytest.mark.parametrize(
        "value", [[None, None], [{"start": 8, "end": 3, "label": None}, None], [None]]
    )
    def test_of_nothing_but_nulls_are_uploaded(self, value: list[Any], tmp_path: Path):
        path = jsonl(tmp_path / "a.jsonl", [{"text": "x", "other": value}, {"text": "y"}])
        converted = convert_here(tmp_path, train=path)
        found = load_split(converted.paths["train"], split="train")
        assert found["other"] == load_split(path, split="train")["other"] == [value, None]

    def test_of_labels_may_fill_many_rows(self, tmp_path: Path):
        rows = [{"text": f"w{row}", "labels": []} for row in range(20_000)]
        rows = [{"text": "x", "labels": ["a", "b"]}, {"text": "y", "labels": ["a"]}, *rows]
        path = jsonl(tmp_path / "a.jsonl", rows)
        profile = convert_here(tmp_path, train=path).profile
        assert complete_task(TaskSpec(), profile).type == "multi-label"
        dataset = load_split(path, split="train")
        assert make_task(TaskSpec(), dataset).labels == ("a", "b")
