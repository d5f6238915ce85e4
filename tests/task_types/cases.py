"""One small data set for each task type, and its answers by plain transformers.

A new task type needs one entry here: the tests of all places (``test_places``) then run for it.
"""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from PIL import Image

from tests.tiny_tasks import BAD, GOOD, WORDS, image_rows

Row = dict[str, Any]
Answer = dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A task type on a small data set.

    Attributes:
        type: its name.
        rows: makes so many rows by a seed, which a tiny model can learn.
        task: a task spec whose columns are named.
        inferred: the type that the columns have without a spec; None if they are ambiguous.
        bad: a row that is refused, and a part of the reason.
        input: turns a row into an input of ``/predict``.
        head: the transformers class of a merged model.
        pipeline: answers rows with a plain transformers pipeline on a folder, or with the plain
            model if there is no pipeline.
        reads: what the backbone reads: ``text`` or ``image``.
        reported: the names in the report; none of a type without one.
        layout: in what form the rows are, if a type has several.
    """

    type: str
    rows: Callable[[int, int], list[Row]]
    task: Mapping[str, Any]
    inferred: str | None
    bad: tuple[Row, str]
    input: Callable[[Row], Mapping[str, Any]]
    head: type[Any]
    pipeline: Callable[[Path, Sequence[Row]], list[Answer]]
    reads: str = "text"
    reported: tuple[str, ...] = ("bad", "good")
    layout: str | None = None

    @property
    def name(self) -> str:
        """The type, and the layout if it has several."""
        return self.type if self.layout is None else f"{self.type} ({self.layout})"


def _texts(names: Sequence[str], draw: random.Random) -> str:
    """Make a text of words that indicate each of these labels, and of others."""
    known = {"bad": BAD[:4], "good": GOOD[:4]}
    words = [word for name in names for word in draw.choices(known[name], k=3)]
    return " ".join([*words, *draw.choices(WORDS[40:44], k=2)])


def _classes(count: int, seed: int) -> list[Row]:
    draw = random.Random(seed)  # noqa: S311 - a draw, not a secret
    labels = [("bad", "good")[place % 2] for place in range(count)]
    return [{"text": _texts([label], draw), "label": label} for label in labels]


def _numbers(count: int, seed: int) -> list[Row]:
    draw = random.Random(seed)  # noqa: S311 - a draw, not a secret
    numbers = [place % 2 + draw.random() / 9 for place in range(count)]
    return [{"text": _texts([("bad", "good")[int(x)]], draw), "value": x} for x in numbers]


def _label_sets(count: int, seed: int) -> list[Row]:
    draw = random.Random(seed)  # noqa: S311 - a draw, not a secret
    sets = (["bad"], ["good"], ["bad", "good"], [])
    labels = [sets[place % 4] for place in range(count)]
    return [{"text": _texts(names, draw), "labels": names} for names in labels]


def _images(count: int, seed: int) -> list[Row]:
    rows = image_rows(count + seed)[seed:]
    return [{"image": row["image"], "label": ("dark", "light")[row["label"]]} for row in rows]


def _text_input(row: Row) -> Mapping[str, Any]:
    return {"text": row["text"]}


def _image_input(row: Row) -> Mapping[str, Any]:
    return {"image": base64.b64encode(row["image"]["bytes"]).decode()}


def _classify(folder: Path, rows: Sequence[Row]) -> list[Answer]:
    pipeline = tf.pipeline("text-classification", model=str(folder), top_k=None)
    return [_label_answer(pipeline([row["text"]])[0]) for row in rows]


def _classify_images(folder: Path, rows: Sequence[Row]) -> list[Answer]:
    pipeline = tf.pipeline("image-classification", model=str(folder), top_k=2)
    images = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]
    return [_label_answer(pipeline(image)) for image in images]


def _label_answer(found: Sequence[Mapping[str, Any]]) -> Answer:
    best = max(found, key=lambda entry: entry["score"])
    scores = {entry["label"]: entry["score"] for entry in found}
    return {"label": best["label"], "score": best["score"], "scores": scores}


def _find_labels(folder: Path, rows: Sequence[Row]) -> list[Answer]:
    pipeline = tf.pipeline("text-classification", model=str(folder), top_k=None)
    threshold = pipeline.model.config.threshold
    answers = []
    for row in rows:
        scores = {entry["label"]: entry["score"] for entry in pipeline([row["text"]])[0]}
        found = [name for name in ("bad", "good") if scores[name] >= threshold]
        answers.append({"labels": found, "scores": scores})
    return answers


def _tagged_words(count: int, seed: int) -> list[Row]:
    """Make words with entities of one or two words, whose first one has words of its own."""
    draw = random.Random(seed)  # noqa: S311 - a draw, not a secret
    known = {"bad": BAD[:4], "good": GOOD[:4]}
    rows = []
    for _ in range(count):
        pairs: list[tuple[str, str]] = []
        for name in draw.choices(("bad", "good"), k=2):
            pairs += [(word, "O") for word in draw.choices(WORDS[40:42], k=draw.randint(1, 2))]
            pairs.append((known[name][0], f"B-{name}"))
            pairs += [(known[name][1], f"I-{name}")] * draw.randint(0, 1)
        words, tags = zip(*pairs, strict=True)
        rows.append({"tokens": list(words), "tags": list(tags)})
    return rows


def _spanned_texts(count: int, seed: int) -> list[Row]:
    """Return the rows of :func:`_tagged_words` as texts with spans."""
    rows = []
    for row in _tagged_words(count, seed):
        spans: list[Row] = []
        start = 0
        for word, tag in zip(row["tokens"], row["tags"], strict=True):
            end = start + len(word)
            if tag.startswith("B-"):
                spans.append({"start": start, "end": end, "label": tag[2:]})
            elif tag.startswith("I-"):
                spans[-1]["end"] = end
            start = end + 1
        rows.append({"text": " ".join(row["tokens"]), "spans": spans})
    return rows


def _tokens_input(row: Row) -> Mapping[str, Any]:
    return {"tokens": row["tokens"]}


def _find_entities(folder: Path, rows: Sequence[Row]) -> list[Answer]:
    """Answer texts, or words, which also get tags."""
    pipeline = tf.pipeline("token-classification", model=str(folder), aggregation_strategy="first")
    answers = []
    for row in rows:
        text = row["text"] if "text" in row else " ".join(row["tokens"])
        found = pipeline(text)
        entities = [
            {
                "start": each["start"],
                "end": each["end"],
                "label": each["entity_group"],
                "score": float(each["score"]),
                "text": text[each["start"] : each["end"]],
            }
            for each in found
        ]
        tags = _tags_of(row["tokens"], entities) if "tokens" in row else None
        answers.append({"entities": entities, "tags": tags})
    return answers


def _tags_of(words: Sequence[str], entities: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the tag of each word, from the characters of the entities."""
    tags, start = [], 0
    for word in words:
        own = [each for each in entities if each["start"] <= start < each["end"]]
        tags.append(f"{'B' if own[0]['start'] == start else 'I'}-{own[0]['label']}" if own else "O")
        start += len(word) + 1
    return tags


def _questions(count: int, seed: int) -> list[Row]:
    """Make contexts of which some have an answer, of one word or two."""
    draw = random.Random(seed)  # noqa: S311 - a draw, not a secret
    rows = []
    for place in range(count):
        before, after = (draw.choices(WORDS[40:42], k=draw.randint(1, 3)) for _ in range(2))
        answer = [] if place % 4 == 3 else list(BAD[: draw.randint(1, 2)])
        texts = [" ".join(answer)] if answer else []
        starts = [len(" ".join(before)) + 1] if answer else []
        rows.append(
            {
                "question": WORDS[43],
                "context": " ".join([*before, *answer, *after]),
                "answers": {"text": texts, "answer_start": starts},
            }
        )
    return rows


def _question_input(row: Row) -> Mapping[str, Any]:
    return {"question": row["question"], "context": row["context"]}


def _answer_questions(folder: Path, rows: Sequence[Row]) -> list[Answer]:
    """Read the answers from the logits of a plain model: transformers has no pipeline for them."""
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    model = tf.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    return [_best_span(tokenizer, model, row) for row in rows]


def _best_span(tokenizer: Any, model: Any, row: Row) -> Answer:
    encoded = tokenizer(row["question"], row["context"], return_tensors="pt")
    characters = tokenizer(row["question"], row["context"], return_offsets_mapping=True)
    offsets, texts = characters["offset_mapping"], encoded.encodings[0].sequence_ids
    with torch.no_grad():
        found = model(**encoded)
    first, last = (each[0].double().tolist() for each in (found.start_logits, found.end_logits))
    context = [place for place, text in enumerate(texts) if text == 1]
    spans = {
        (offsets[i][0], offsets[j][1]): first[i] + last[j]
        for i in context
        for j in context
        if i <= j < i + 30
    }
    best = sorted(spans, key=lambda span: -spans[span])[:20]
    none = first[0] + last[0]
    shares = torch.tensor([none, *(spans[span] for span in best)]).softmax(0).tolist()
    if none - spans[best[0]] > model.config.no_answer_threshold:
        return {"answer": None, "score": shares[0], "start": None, "end": None}
    start, end = best[0]
    answer = row["context"][start:end]
    return {"answer": answer, "score": shares[1], "start": start, "end": end}


def _choices(count: int, seed: int) -> list[Row]:
    """Make rows with three choices, of which the right one has good words."""
    draw = random.Random(seed)  # noqa: S311 - a draw, not a secret
    rows = []
    for place in range(count):
        right = place % 3
        choices = [_texts(["good" if own == right else "bad"], draw) for own in range(3)]
        rows.append({"text": " ".join(draw.choices(WORDS[40:44], k=2)), "choices": choices})
        rows[-1]["label"] = right
    return rows


def _choice_columns(count: int, seed: int) -> list[Row]:
    """Return the rows of :func:`_choices` with a column for each choice, and a letter as label."""
    return [
        {
            "text": row["text"],
            **{
                f"option_{letter}": text for letter, text in zip("abc", row["choices"], strict=True)
            },
            "label": "ABC"[row["label"]],
        }
        for row in _choices(count, seed)
    ]


def _choices_input(row: Row) -> Mapping[str, Any]:
    choices = row["choices"] if "choices" in row else [row[f"option_{letter}"] for letter in "abc"]
    return {"text": row["text"], "choices": choices}


def _choose(folder: Path, rows: Sequence[Row]) -> list[Answer]:
    """Read the answers from the logits of a plain model: transformers has no pipeline for them."""
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    model = tf.AutoModelForMultipleChoice.from_pretrained(folder).eval()
    answers = []
    for row in rows:
        given = _choices_input(row)
        texts = [given["text"]] * len(given["choices"])
        encoded = tokenizer(texts, given["choices"], padding=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(**{name: value[None] for name, value in encoded.items()}).logits[0]
        shares = logits.double().softmax(0).tolist()
        best = max(range(len(shares)), key=shares.__getitem__)
        answers.append({"choice": best, "score": shares[best], "scores": shares})
    return answers


def _measure(folder: Path, rows: Sequence[Row]) -> list[Answer]:
    pipeline = tf.pipeline("text-classification", model=str(folder), function_to_apply="none")
    return [{"value": pipeline(row["text"])[0]["score"]} for row in rows]


CASES = (
    Case(
        type="classification",
        rows=_classes,
        task={"type": "classification", "text": ["text"], "label": "label"},
        inferred="classification",
        bad=({"text": " ", "label": "good"}, "the text is empty"),
        input=_text_input,
        head=tf.AutoModelForSequenceClassification,
        pipeline=_classify,
    ),
    Case(
        type="multi-label",
        rows=_label_sets,
        task={"type": "multi-label", "text": ["text"], "label": "labels"},
        inferred="multi-label",
        bad=({"text": "w1", "labels": ["good", "good"]}, "the label 'good' more than once"),
        input=_text_input,
        head=tf.AutoModelForSequenceClassification,
        pipeline=_find_labels,
    ),
    Case(
        type="regression",
        rows=_numbers,
        task={"type": "regression", "text": ["text"], "label": "value"},
        inferred="regression",
        bad=({"text": "w1", "value": None}, "the target is missing"),
        input=_text_input,
        head=tf.AutoModelForSequenceClassification,
        pipeline=_measure,
        reported=(),
    ),
    Case(
        type="image-classification",
        rows=_images,
        task={"type": "image-classification", "image": "image", "label": "label"},
        inferred="image-classification",
        bad=({"image": {"bytes": b"no", "path": None}, "label": "dark"}, "not an image"),
        input=_image_input,
        head=tf.AutoModelForImageClassification,
        pipeline=_classify_images,
        reads="image",
        reported=("dark", "light"),
    ),
    Case(
        type="token-classification",
        rows=_tagged_words,
        task={"type": "token-classification", "tokens": "tokens", "tags": "tags"},
        inferred="token-classification",
        bad=({"tokens": ["w1", "w2"], "tags": ["O"]}, "1 tags and 2 words"),
        input=_tokens_input,
        head=tf.AutoModelForTokenClassification,
        pipeline=_find_entities,
        layout="tags",
    ),
    Case(
        type="token-classification",
        rows=_spanned_texts,
        task={"type": "token-classification", "text": ["text"], "spans": "spans"},
        inferred="token-classification",
        bad=({"text": "w1", "spans": [{"start": 0, "end": 9, "label": "bad"}]}, "outside the text"),
        input=_text_input,
        head=tf.AutoModelForTokenClassification,
        pipeline=_find_entities,
        layout="spans",
    ),
    Case(
        type="question-answering",
        rows=_questions,
        task={
            "type": "question-answering",
            "question": "question",
            "context": "context",
            "answers": "answers",
        },
        inferred="question-answering",
        bad=(
            {
                "question": "w1",
                "context": "w2",
                "answers": {"text": ["w3"], "answer_start": [0]},
            },
            "the answer 'w3' is not in the context",
        ),
        input=_question_input,
        head=tf.AutoModelForQuestionAnswering,
        pipeline=_answer_questions,
        reported=("an answer", "no answer"),
    ),
    Case(
        type="multiple-choice",
        rows=_choices,
        task={
            "type": "multiple-choice",
            "text": ["text"],
            "choices": ["choices"],
            "label": "label",
        },
        inferred="multiple-choice",
        bad=(
            {"text": "w1", "choices": ["w2", "w3"], "label": 0},
            "another number of choices than the 3 of the first row",
        ),
        input=_choices_input,
        head=tf.AutoModelForMultipleChoice,
        pipeline=_choose,
        reported=(),
        layout="lists",
    ),
    Case(
        type="multiple-choice",
        rows=_choice_columns,
        task={
            "type": "multiple-choice",
            "text": ["text"],
            "choices": ["option_a", "option_b", "option_c"],
            "label": "label",
        },
        inferred="multiple-choice",
        bad=(
            {"text": "w1", "option_a": "w2", "option_b": "w3", "option_c": "w4", "label": "D"},
            "the label 'D' is none of the 3 choices",
        ),
        input=_choices_input,
        head=tf.AutoModelForMultipleChoice,
        pipeline=_choose,
        reported=(),
        layout="columns",
    ),
)
