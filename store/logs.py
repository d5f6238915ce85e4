"""Structured logs: one stream, the same fields, never a key or a row of data."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Literal

import structlog

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor

# Third-party loggers that tell little at their own level.
_QUIET = ("celery.worker.strategy", "kombu", "httpx2", "httpcore2", "alembic.runtime.migration")


def configure_logging(format: Literal["json", "text"], *, process: str) -> None:  # noqa: A002 - the setting's name
    """Send our logs and everybody else's to standard error, in one form.

    What is bound to the context (``request_id``, ``tenant``, ``job``) is in every line.

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
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_last(format),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _last(format: Literal["json", "text"]) -> list[Processor]:  # noqa: A002 - as above
    if format == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    # Its own choice of traceback shows local variables: keys and rows among them.
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
