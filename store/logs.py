"""Structured logs: one stream with the same fields in every line, without keys or rows of data."""

from __future__ import annotations

import logging
import re
import sys
import time
import traceback
from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Literal, TextIO

import structlog
from structlog.dev import ConsoleRenderer, KeyValueColumnFormatter
from structlog.processors import ExceptionRenderer, JSONRenderer

if TYPE_CHECKING:
    from structlog.typing import EventDict, ExcInfo, Processor

_KEY = re.compile(r"hifi_[A-Za-z0-9_-]{43}")  # as store.administration.keys makes them
# Third-party loggers that are too verbose at their own level.
_QUIET = (
    "celery.app.trace",
    "celery.worker.strategy",
    "kombu",
    "httpx2",
    "httpcore2",
    "alembic.runtime.migration",
)


_LONGEST = 2000  # characters of a value, such as a path, or of a line of a traceback
_JSON = JSONRenderer()
# Warnings and errors of one place in the code: beyond so many in a window, the others are counted.
_MOST_ALIKE = 20
_WINDOW_SECONDS = 60.0
_FRAME = re.compile(r'[ |+]*File "')  # how the lines of a frame begin; they are the interpreter's


def printable(text: str) -> str:
    """Return a text in which each character that could forge or hide a line is escaped visibly.

    These are control characters, line separators, marks of the writing direction, and halves of
    surrogate pairs: everything that Unicode calls not printable.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]}... ({len(text)} characters)"


def _shorten_values(_: object, __: str, event: EventDict) -> EventDict:
    """Shorten long texts, which may be a caller's."""
    return {
        name: _shortened(value) if isinstance(value, str) else value
        for name, value in event.items()
    }


def _format_traceback(exc_info: ExcInfo) -> str:
    """Return a traceback without local variables, which may hold keys and rows.

    Its own lines stay lines; line breaks in the text of an exception are escaped.
    """
    chunks = traceback.TracebackException(*exc_info).format()
    return "\n".join(line for chunk in chunks for line in _lines(chunk.strip("\n")))


def _lines(chunk: str) -> Iterator[str]:
    for line in chunk.split("\n") if _FRAME.match(chunk) else [chunk]:
        yield printable(_shortened(line))


@dataclass
class _Alike:
    """The recent lines of one place in the code."""

    logger: str
    event: str
    until: float
    seen: int = 0


@dataclass
class _Repeats:
    """Drops warnings and errors that repeat too often, and logs how many it dropped.

    The number is logged with the first line of any kind after the window.
    """

    _alike: dict[Hashable, _Alike] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def drop_ours(self, _: object, level: str, event: EventDict) -> EventDict:
        """Drop a line of our own; a processor."""
        name, text = str(event["logger"]), str(event["event"])
        severity = logging.getLevelNamesMapping().get(level.upper(), logging.ERROR)
        if self._admits((name, text), level=severity, logger=name, event=text):
            return event
        raise structlog.DropEvent

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line of a library may be logged; a filter of a handler."""
        text = str(record.msg).partition("\n")[0]
        key = (record.name, record.pathname, record.lineno, text[:80])
        return self._admits(key, level=record.levelno, logger=record.name, event=text)

    def _admits(self, key: Hashable, *, level: int, logger: str, event: str) -> bool:
        now = time.monotonic()
        with self._lock:
            ended = [old for old, alike in self._alike.items() if alike.until <= now]
            reports = [alike for old in ended if (alike := self._alike.pop(old)).seen > _MOST_ALIKE]
            if level >= logging.WARNING:
                until = now + _WINDOW_SECONDS
                alike = self._alike.setdefault(key, _Alike(logger, event, until=until))
                alike.seen += 1
                is_admitted = alike.seen <= _MOST_ALIKE
            else:
                is_admitted = True
        for report in reports:
            structlog.get_logger(report.logger).info(
                f"{report.seen - _MOST_ALIKE} more like this in the last {_WINDOW_SECONDS:g} s",
                like=report.event,
            )
        return is_admitted


def _without_keys(line: str) -> str:
    """Remove keys from a finished line, including its traceback, whatever their source."""
    return _KEY.sub("hifi_...", line)


class _Formatter(structlog.stdlib.ProcessorFormatter):
    """Formats the log records of other libraries."""

    def format(self, record: logging.LogRecord) -> str:
        return _without_keys(super().format(record))


class _Logger:
    """Writes our own lines directly to the stream, in half the time that ``logging`` takes.

    Args:
        name: of the module that logs.
    """

    def __init__(self, name: str = "hifi") -> None:
        self.name = name

    def _write(self, line: str) -> None:
        with suppress(OSError, ValueError):  # a full or closed stream must not stop the work
            sys.stderr.write(_without_keys(line) + "\n")

    debug = info = warning = error = critical = _write


def configure_logging(format: Literal["json", "text"], *, process: str) -> None:  # noqa: A002 - the setting's name
    """Send all logs, our own and those of libraries, to standard error in one format.

    Fields bound to the context (``request_id``, ``tenant``, ``job``) are in every line.

    Args:
        format: one JSON object per line, or text for people.
        process: ``gateway``, ``worker``, …; a field of every line.
    """

    def add_process(_: object, __: str, event: EventDict) -> EventDict:
        return {**event, "process": process}

    repeats = _Repeats()
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        add_process,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _shorten_values,
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[*shared, repeats.drop_ours, *_last(format)],
        logger_factory=_Logger,
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Formatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_last(format),
            ],
        )
    )
    handler.addFilter(repeats.filter)
    logging.captureWarnings(capture=True)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _last(format: Literal["json", "text"]) -> list[Processor]:  # noqa: A002 - as above
    """Return the processors that make a line of an event; only printable characters get into it."""
    if format == "json":
        return [ExceptionRenderer(_format_traceback), _render_json]
    renderer = ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_write_traceback)
    for column in renderer.columns:
        if isinstance(column.formatter, KeyValueColumnFormatter):
            column.formatter.value_repr = _Printable(column.formatter.value_repr)
    return [renderer]


@dataclass(frozen=True)
class _Printable:
    """Escapes what another function returns."""

    show: Callable[[object], str]

    def __call__(self, value: object) -> str:
        return printable(self.show(value))


def _write_traceback(stream: TextIO, exc_info: ExcInfo) -> None:
    stream.write(f"\n{_format_traceback(exc_info)}")


def _render_json(_: object, name: str, event: EventDict) -> str:
    """Return one line of ASCII; of its control characters, JSON itself escapes all but one."""
    return str(_JSON(None, name, event)).replace("\x7f", "\\u007f")
