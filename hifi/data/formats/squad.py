"""Read the articles of SQuAD, version 1 or 2, nested as they were published.

An article is ``{"title": …, "paragraphs": [{"context": …, "qas": [{"id": …, "question": …,
"answers": [{"text": …, "answer_start": …}], "is_impossible": …}]}]}``. Each question becomes a row
as on the Hugging Face hub: ``{"id": …, "title": …, "question": …, "context": …,
"answers": {"text": […], "answer_start": […]}}``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hifi.data.formats.json_text import Entry, JsonText
from hifi.data.formats.limits import UNLIMITED, size_in_words, too_large_row
from hifi.errors import DataError

_TITLE, _PARAGRAPHS = "title", "paragraphs"
_CONTEXT, _QUESTIONS = "context", "qas"
_ANSWER = ("text", "answer_start")
_MOST_BYTES = UNLIMITED.max_row_bytes  # of a paragraph, and of those that wait for their title


@dataclass(kw_only=True)
class _Paragraph:
    """A paragraph, as far as it is read.

    Attributes:
        context: its text.
        context_size: the bytes of its text.
        questions: as they are in the file.
        size: the bytes of the context and the questions.
    """

    context: Any = None
    context_size: int = 0
    questions: list[Entry] = field(default_factory=list)
    size: int = 0


@dataclass(kw_only=True)
class _Article:
    """An article, as far as it is read.

    Attributes:
        title: None as long as there is none.
        waiting: the paragraphs that are not yet rows, because their title may follow.
        size: the bytes of these.
    """

    title: Any = None
    waiting: deque[_Paragraph] = field(default_factory=deque)
    size: int = 0

    def rows(self, *, most: int) -> Iterator[Entry]:
        """Yield the rows of the paragraphs that wait."""
        self.size = 0
        while self.waiting:
            yield from _rows(self.waiting.popleft(), title=self.title, most=most)


def is_article(text: JsonText) -> bool:
    """Return whether the next value is an article of SQuAD; the value is read on the way."""
    return text.peek() == "{" and any(
        name == _PARAGRAPHS and text.peek() == "[" for name in text.members(what="an article")
    )


def read_articles(text: JsonText) -> Iterator[Entry]:
    """Yield the questions of a list of articles, each as a row.

    Raises:
        DataError: the next question cannot be used; the error has its line.
    """
    for _ in text.elements(what="the list of articles"):
        article = _Article()
        try:
            for _ in _read_article(text, article):
                if article.title is not None:
                    yield from article.rows(most=text.most)
        except DataError:  # the rows above it first, so that its own row counts them
            yield from article.rows(most=text.most)
            raise
        yield from article.rows(most=text.most)


def _read_article(text: JsonText, article: _Article) -> Iterator[None]:
    """Read an article, and stop after each paragraph."""
    line = text.line
    has_paragraphs = False
    for name in text.members(what="every article"):
        if name == _TITLE:
            article.title = text.value()
        elif name == _PARAGRAPHS:
            has_paragraphs = True
            for _ in text.elements(what="the paragraphs of an article"):
                paragraph = _Paragraph()
                article.waiting.append(paragraph)
                _read_paragraph(text, paragraph)
                article.size += paragraph.size
                _check_size(article.size, "above its title; put the title first", line=text.line)
                yield
    if not has_paragraphs:
        raise DataError("every article must have paragraphs", line=line)


def _read_paragraph(text: JsonText, paragraph: _Paragraph) -> None:
    line = text.line
    has_questions = False
    for name in text.members(what="every paragraph"):
        if name == _CONTEXT:
            paragraph.context = text.value()
            paragraph.context_size = text.size
            paragraph.size += text.size
        elif name == _QUESTIONS:
            has_questions = True
            for _ in text.elements(what="the questions (qas) of a paragraph"):
                question = text.entry(what="every question")
                paragraph.size += question.size
                _check_size(paragraph.size, "in one paragraph; divide it", line=question.line)
                paragraph.questions.append(question)
    if not has_questions:
        raise DataError("every paragraph must have questions (qas)", line=line)


def _check_size(size: int, place: str, *, line: int) -> None:
    if size > _MOST_BYTES:
        reason = f"more than {size_in_words(_MOST_BYTES)} of an article are {place}"
        raise DataError(reason, line=line)


def _rows(paragraph: _Paragraph, *, title: object, most: int) -> Iterator[Entry]:
    """Yield the rows of a paragraph."""
    for question in paragraph.questions:
        size = paragraph.context_size + question.size
        if size > most:
            raise DataError(too_large_row(most), line=question.line)
        values = {
            "id": question.values.get("id"),
            "title": title,
            "question": question.values.get("question"),
            "context": paragraph.context,
            "answers": _answers(question.values, line=question.line),
        }
        yield Entry(values=values, size=size, line=question.line)


def _answers(question: Mapping[str, Any], *, line: int) -> dict[str, list[Any]] | None:
    """Return the answers of a question by their parts; None if they are not known."""
    answers, is_impossible = question.get("answers"), question.get("is_impossible") is True
    if answers is None and not is_impossible:
        return None
    if is_impossible and answers:
        raise DataError("the question is_impossible, but has answers", line=line)
    answers = [] if answers is None else answers
    if not isinstance(answers, list) or not all(map(_is_answer, answers)):
        reason = "the answers of a question must be a list of objects with text and answer_start"
        raise DataError(reason, line=line)
    return {part: [answer[part] for answer in answers] for part in _ANSWER}


def _is_answer(value: object) -> bool:
    return isinstance(value, dict) and all(part in value for part in _ANSWER)
