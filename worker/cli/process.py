"""Start the processes of a worker's machine: settings, logs, one-line errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hifi.errors import HifiError

if TYPE_CHECKING:
    from store.settings import Settings


class StartError(HifiError):
    """A process cannot be started; the message says what to do."""


@contextmanager
def started(name: str) -> Iterator[Settings]:
    """Read the settings and configure the logs of a process for a block.

    Raises:
        StartError: the process cannot be started with its settings.
    """
    from store.database.outages import outages_in_one_line
    from store.errors import StoreError
    from store.logs import configure_logging
    from store.machine import make_private, private_files
    from store.settings import read_settings

    try:
        settings = read_settings()
        configure_logging(settings.log_format, process=name)
        with outages_in_one_line(), private_files():
            try:
                make_private(settings.home)
            except OSError as error:
                reason = error.strerror or error
                raise StartError(f"cannot use {settings.home} ({reason}): set HIFI_HOME") from error
            yield settings
    except StoreError as error:
        raise StartError(str(error)) from error
