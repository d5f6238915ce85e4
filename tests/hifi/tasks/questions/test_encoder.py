"""hifi.tasks.questions.encoder: the windows of contexts, and the tokens of answers in them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from hifi.backbones.models import load_config, resolve_model
from hifi.data.characters import is_inside_character
from hifi.data.splits import load_split
from hifi.errors import (
    DataError,
    InputError,
    InvalidArgumentError,
    ModelError,
    TextTooLongError,
)
from hifi.tasks import TaskSpec, make_task
from hifi.tasks.questions.encoder import (
    FIRST,
    LAST,
    EncodedQuestions,
    QuestionEncoder,
    WindowedQuestion,
)
from hifi.tasks.windows import NO_TARGET
from tests.tiny_tokenizers import KINDS, WORDS, TokenizerModels, wordpiece

Row = dict[str, Any]
EACH = pytest.mark.parametrize("kind", KINDS)


def asked_rows(count: int) -> list[Row]:
    """Draw contexts of words, of which some are the answer; every fourth has none."""
    draw = random.Random(1)  # noqa: S311 - a draw, not a secret
    rows = []
    for place in range(count):
        words = draw.choices(WORDS, k=draw.randint(1, 40))
        first = draw.randrange(len(words))
        answer = " ".join(words[first : first + draw.randint(1, 3)])
        start = len("".join(f"{word} " for word in words[:first]))
        found = {"text": [answer], "answer_start": [start]}
        none: Row = {"text": [], "answer_start": []}
        question = " ".join(draw.choices(WORDS, k=draw.randint(1, 4)))
        rows.append(
            {
                "question": question,
                "context": " ".join(words),
                "answers": none if place % 4 == 3 else found,
            }
        )
    return rows


def encoder_of(
    folder: Path, rows: Sequence[Row], *, max_length: int, **said: Any
) -> tuple[Any, ...]:
    dataset = load_split(list(rows), split="train")
    task = make_task(TaskSpec.of({"type": "question-answering", **said}), dataset)
    source = resolve_model(folder)
    encoder = task.load_encoder(source, load_config(source), max_length=max_length)
    assert isinstance(encoder, QuestionEncoder)
    return task, dataset, encoder


def encode(folder: Path, rows: Sequence[Row], *, max_length: int, **said: Any) -> EncodedQuestions:
    task, dataset, encoder = encoder_of(folder, rows, max_length=max_length, **said)
    targets = task.targets(dataset, split="train")
    return encoder.encode(dataset, split="train", targets=targets)


def ends_of(encoded: EncodedQuestions, window: int) -> tuple[int, int]:
    """Return the first and last token of the answer in a window."""
    marks = encoded.targets[window, :, 0]
    first, last = ((marks > 0) & (marks & end > 0) for end in (FIRST, LAST))
    assert (first.sum(), last.sum()) == (1, 1)
    return int(first.int().argmax()), int(last.int().argmax())


class TestEncode:
    @EACH
    @pytest.mark.parametrize("max_length", [24, 40, 500])
    def test_marks_each_answer_in_every_window_that_has_all_of_it(
        self, kind: str, max_length: int, models: TokenizerModels
    ):
        rows = asked_rows(24)
        encoded = encode(models.folder_of(kind), rows, max_length=max_length)
        assert encoded.rows == len(rows)
        assert encoded.lengths.max() <= max_length
        found: dict[int, set[str]] = {row: set() for row in range(len(rows))}
        for window, row in enumerate(encoded.row_of.tolist()):
            first, last = ends_of(encoded, window)
            assert (first == 0) == (last == 0)
            if first:
                found[row].add(encoded.text(window, first, last))
        for row, texts in found.items():
            wanted = rows[row]["answers"]["text"]
            assert len(texts) == len(wanted)
            # A tokenizer may join an answer's end with what follows it, and a short window may have
            # only a part of a long answer.
            assert all(wanted[0] in text or text in wanted[0] for text in texts)
            if max_length == 500:
                assert all(wanted[0] in text for text in texts)
        if max_length == 500:
            assert len(encoded) == len(rows)

    @EACH
    def test_every_token_of_a_context_is_in_a_window(self, kind: str, models: TokenizerModels):
        rows = asked_rows(12)
        encoded = encode(models.folder_of(kind), rows, max_length=20)
        starts = encoded.lengths.cumsum() - encoded.lengths
        for row, text in enumerate(encoded.contexts):
            seen = {
                tuple(pair)
                for window in (encoded.row_of == row).nonzero()[0]
                for pair in encoded.characters[
                    starts[window] : starts[window] + encoded.lengths[window]
                ].tolist()
            }
            covered = {place for start, end in seen for place in range(start, end)}
            assert all(place in covered or not text[place].strip() for place in range(len(text)))

    @EACH
    def test_questions_and_special_tokens_are_no_candidates(
        self, kind: str, models: TokenizerModels
    ):
        encoded = encode(models.folder_of(kind), asked_rows(6), max_length=500)
        marks = encoded.targets[..., 0]
        starts = encoded.lengths.cumsum() - encoded.lengths
        for window, length in enumerate(encoded.lengths.tolist()):
            own = encoded.characters[starts[window] : starts[window] + length]
            is_empty = torch.from_numpy(own[:, 0] == own[:, 1])
            assert is_empty[0]  # the place of no answer
            assert ((marks[window, :length] == NO_TARGET) == is_empty)[1:].all()
            assert (marks[window, length:] == NO_TARGET).all()

    @EACH
    def test_tokens_stand_for_whole_characters(self, kind: str, models: TokenizerModels):
        context = "in 👍🏽 in 🇩🇪 cafe\u0301 👩\u200d👩\u200d👧 in"
        row = {
            "question": "in",
            "context": context,
            "answers": {"text": ["in"], "answer_start": [0]},
        }
        encoded = encode(models.folder_of(kind), [row] * 2, max_length=300)
        for start, end in encoded.characters.tolist():
            assert not is_inside_character(context, start)
            assert not is_inside_character(context, end)

    def test_learns_the_first_of_several_answers_and_keeps_all(self, models: TokenizerModels):
        row = {
            "question": "in",
            "context": "ada in London",
            "answers": {"text": ["London", "ada"], "answer_start": [7, 0]},
        }
        encoded = encode(models.folder_of("wordpiece"), [row] * 2, max_length=64)
        first, last = ends_of(encoded, 0)
        assert encoded.text(0, first, last) == "London"
        assert encoded.answers[0] == ["London", "ada"]

    @pytest.mark.parametrize(("stride", "shared"), [(None, 7), (0, 0), (3, 3), (1000, 14)])
    def test_windows_share_as_many_tokens_as_asked(
        self, stride: int | None, shared: int, models: TokenizerModels
    ):
        row = {
            "question": "in",
            "context": "ada " * 100,
            "answers": {"text": ["ada"], "answer_start": [0]},
        }
        said = {} if stride is None else {"stride": stride}
        encoded = encode(models.folder_of("wordpiece"), [row] * 2, max_length=32, **said)
        starts = encoded.lengths.cumsum() - encoded.lengths
        windows = [
            encoded.characters[start : start + length]
            for start, length in zip(starts, encoded.lengths, strict=True)
        ]
        first, second = (
            {tuple(pair) for pair in window.tolist() if pair[0] < pair[1]} for window in windows[:2]
        )
        assert len(first) == 28  # [CLS] in [SEP] … [SEP]
        assert len(first & second) == shared

    @pytest.mark.parametrize(
        ("asked", "others", "kept", "windows"),
        [
            (100, 0, 17, 1),  # of 23 less [CLS], [SEP], [SEP], and the three of the context
            (17, 0, 17, 1),
            (100, 100, 10, 13),
            (100, 6, 11, 1),
            (8, 100, 8, 12),
        ],
    )
    def test_a_question_leaves_a_long_context_half_of_a_window(
        self, asked: int, others: int, kept: int, windows: int, models: TokenizerModels
    ):
        row = {
            "question": "ada " * asked,
            "context": "in London" + " x" * others,
            "answers": {"text": ["London"], "answer_start": [3]},
        }
        encoded = encode(models.folder_of("wordpiece"), [row] * 2, max_length=23)
        ids = encoded.batch([0]).inputs["input_ids"][0].tolist()
        ada = wordpiece().convert_tokens_to_ids("ada")
        assert (ids.count(ada), len(encoded)) == (kept, 2 * windows)
        assert encoded.text(0, *ends_of(encoded, 0)) == "London"

    def test_the_digest_depends_on_the_characters_of_contexts(self, models: TokenizerModels):
        def digest(word: str) -> str:
            row = {
                "question": "in",
                "context": f"ada {word}",
                "answers": {"text": ["ada"], "answer_start": [0]},
            }
            encoded = encode(models.folder_of("wordpiece"), [row] * 2, max_length=64)
            assert encoded.tokens["input_ids"].tolist().count(1) == 2  # unknown
            return encoded.digest()

        assert digest("☃☃") != digest("☂☂")

    def test_the_digest_depends_on_all_answers(self, models: TokenizerModels):
        def digest(*texts: str) -> str:
            context = "ada in London in ada"
            answers = {"text": list(texts), "answer_start": [context.index(text) for text in texts]}
            row = {"question": "in", "context": context, "answers": answers}
            return encode(models.folder_of("wordpiece"), [row] * 2, max_length=64).digest()

        assert digest("ada", "London") == digest("ada", "London")
        assert len({digest("ada"), digest("ada", "London"), digest("London", "ada")}) == 3


class TestRefusals:
    @pytest.mark.parametrize("column", ["question", "context"])
    def test_of_a_text_without_a_token(self, column: str, models: TokenizerModels):
        row = {
            "question": "in",
            "context": "ada",
            "answers": {"text": ["ada"], "answer_start": [0]},
        }
        silent = {**row, "answers": {"text": [], "answer_start": []}, column: "\u200b"}
        with pytest.raises(DataError, match="produces no token") as caught:
            encode(models.folder_of("wordpiece"), [row, silent], max_length=32)
        assert (caught.value.row, caught.value.column) == (2, column)

    def test_of_an_answer_without_a_token(self, models: TokenizerModels):
        row = {
            "question": "in",
            "context": "ada \u200b in",
            "answers": {"text": ["\u200b"], "answer_start": [4]},
        }
        with pytest.raises(DataError, match="no token for the answer") as caught:
            encode(models.folder_of("wordpiece"), [row], max_length=32)
        assert (caught.value.row, caught.value.column) == (1, "context")

    def test_of_a_length_without_room(self, models: TokenizerModels):
        with pytest.raises(InvalidArgumentError, match="max_length"):
            encode(models.folder_of("wordpiece"), asked_rows(2), max_length=4)

    def test_of_a_tokenizer_written_in_python(
        self, models: TokenizerModels, monkeypatch: pytest.MonkeyPatch
    ):
        folder = models.folder_of("wordpiece")
        monkeypatch.setattr(
            "transformers.PreTrainedTokenizerFast.is_fast", property(lambda _: False)
        )
        with pytest.raises(ModelError, match="does not tell the characters"):
            encode(folder, asked_rows(2), max_length=32)


class TestRead:
    def test_of_the_rows_of_training_gives_the_same_tokens(self, models: TokenizerModels):
        rows = asked_rows(8)
        folder = models.folder_of("wordpiece")
        encoded = encode(folder, rows, max_length=20)
        *_, encoder = encoder_of(folder, rows, max_length=20)
        inputs = [{name: row[name] for name in ("question", "context")} for row in rows]
        windows = []
        for given, row in zip(encoder.read(inputs, truncate=True), rows, strict=True):
            assert isinstance(given, WindowedQuestion)
            assert given.context == row["context"]
            windows += list(zip(given.samples, given.characters, strict=True))
        assert len(windows) == len(encoded)
        starts = encoded.lengths.cumsum() - encoded.lengths
        for number, (sample, characters) in enumerate(windows):
            expected = encoded.batch([number]).inputs
            assert all(sample.inputs[name].equal(expected[name][0]) for name in expected)
            own = slice(starts[number], starts[number] + encoded.lengths[number])
            assert (characters == encoded.characters[own]).all()

    def test_refuses_a_question_that_would_be_cut_without_truncation(self, models: TokenizerModels):
        long, short = "ada " * 40, "ada"
        *_, encoder = encoder_of(models.folder_of("wordpiece"), asked_rows(2), max_length=32)
        inputs = [{"question": each, "context": "in " * 50} for each in (short, long)]
        whole, error = encoder.read(inputs, truncate=False)
        assert isinstance(whole, WindowedQuestion)
        assert isinstance(error, TextTooLongError)
        assert error.param == "question"
        assert str(error) == (
            "the question has 40 tokens; beside this context the task reads 14, and truncate is off"
        )
        assert all(
            isinstance(each, WindowedQuestion) for each in encoder.read(inputs, truncate=True)
        )

    @pytest.mark.parametrize(
        ("given", "param"),
        [
            ({"question": "in"}, "context"),
            ({"context": "in"}, "question"),
            ({"question": " ", "context": "in"}, "question"),
            ({"question": "in", "context": ""}, "context"),
            ({"question": "in", "context": "\u200b"}, "context"),
            ({"question": "\u200b", "context": "in"}, "question"),
            ({"question": "in", "context": "in", "text": "in"}, "text"),
            ({"text": "in"}, "question"),
        ],
    )
    def test_refuses_other_inputs_alone(self, given: Row, param: str, models: TokenizerModels):
        sound = {"question": "ada", "context": "in London"}
        *_, encoder = encoder_of(models.folder_of("wordpiece"), asked_rows(2), max_length=32)
        before, error, after = encoder.read([sound, given, sound], truncate=True)
        assert isinstance(error, InputError)
        assert error.param == param
        assert isinstance(before, WindowedQuestion)
        assert isinstance(after, WindowedQuestion)
