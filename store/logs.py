"""Structured logs: one stream with the same fields in every line, without keys or rows of data."""

from __future__ import annotations

import logging
import re
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

import structlog

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor

_KEY = re.compile(r"hifi_[A-Za-z0-9_-]{43}")  # as store.tenants makes them
# Third-party loggers that are too verbose at their own level.
_QUIET = (
    "celery.app.trace",
    "celery.worker.strategy",
    "kombu",
    "httpx2",
    "httpcore2",
    "alembic.runtime.migration",
)


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

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        add_process,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[*shared, *_last(format)],
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
    logging.captureWarnings(capture=True)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _last(format: Literal["json", "text"]) -> list[Processor]:  # noqa: A002 - as above
    if format == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    # structlog's default traceback shows local variables, which may hold keys and rows.
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
