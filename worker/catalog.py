"""The backbones that a worker offers: folders are watched, described, offered and withdrawn."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import structlog

from store.database.connection import OUTAGES
from store.errors import SchemaError
from store.jobs.workers import BackboneDescription
from worker.describing import Describer, Order
from worker.models import ModelFolder, look_at_models

if TYPE_CHECKING:
    from store.settings import Settings
    from worker.engine.messages import Described

# A new folder is offered within ten seconds, unless it is large or the machine is busy: two looks
# and the hashing, by a process that runs.
_LOOK_SECONDS = 1.0
_SETTLED_SECONDS = 1.0  # a whole folder is described when it has not changed for so long
_BROKEN_SECONDS = 10.0  # a fault is reported when the folder has not changed for so long
_REPEAT_SECONDS = 60.0  # an offer is written again: the tables may have been restored
_ENDING_SECONDS = 5.0
_READING = "a worker is reading it"
_log = structlog.get_logger(__name__)

Unavailable: TypeAlias = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What a worker has.

    Attributes:
        backbones: can be used, by id.
        unavailable: cannot be used, by id: ``status`` (``reading`` or ``unusable``), ``reason``.
    """

    backbones: Mapping[str, BackboneDescription]
    unavailable: Unavailable


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """The description of a folder as it was; or why it cannot be used."""

    stamp: str
    description: BackboneDescription | None
    error: str | None


class Catalog(Mapping[str, Path]):
    """The folders of the backbones that jobs may use now, by id.

    A folder is described when it is whole and settled, and again when one of its files changes;
    until then it is withdrawn. Running jobs keep what they have loaded.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._usable: Mapping[str, Path] = {}  # replaced, never changed: other threads iterate
        self._looks: dict[str, ModelFolder] = {}
        self._since: dict[str, tuple[str, float]] = {}  # stamp, and when it was first seen
        self._answers: dict[str, _Answer] = {}

    def __getitem__(self, identifier: str) -> Path:
        return self._usable[identifier]

    def __iter__(self) -> Iterator[str]:
        return iter(self._usable)

    def __len__(self) -> int:
        return len(self._usable)

    @property
    def offer(self) -> Offer:
        """What this worker has now."""
        backbones: dict[str, BackboneDescription] = {}
        unavailable: dict[str, dict[str, str]] = {}
        for name, look in self._looks.items():
            answer = self._answer(name)
            if answer is not None and answer.description is not None:
                backbones[name] = answer.description
                continue
            fault = look.missing or (answer and answer.error)
            is_broken = fault and (look.is_wrong or self._age(name) >= _BROKEN_SECONDS)
            unavailable[name] = (
                {"status": "unusable", "reason": str(fault)}
                if is_broken
                else {"status": "reading", "reason": _READING}
            )
        return Offer(backbones=backbones, unavailable=unavailable)

    def look(self) -> None:
        """Look at the folders, and withdraw those that are gone or have changed."""
        self._looks = look_at_models(self._settings)
        now = time.monotonic()
        for name, folder in self._looks.items():
            if self._since.get(name, ("", 0.0))[0] != folder.stamp:
                self._since[name] = folder.stamp, now
        for known in (self._since, self._answers):
            for name in known.keys() - self._looks.keys():
                del known[name]
        self._refresh()

    def whole(self, *, settled_seconds: float = 0.0) -> Iterator[Order]:
        """Yield the whole folders that are not described, and have not changed for some time."""
        for name, look in self._looks.items():
            is_open = look.missing is None and self._answer(name) is None
            if is_open and self._age(name) >= settled_seconds:
                yield Order(id=name, path=look.path, stamp=look.stamp)

    def put(self, order: Order, described: Described) -> None:
        """Keep the answer to an order; it is outdated if the folder has changed meanwhile."""
        if described.error is not None:
            _log.warning("backbone left out", backbone=order.id, reason=described.error)
        found = described.description
        self._answers[order.id] = _Answer(
            stamp=order.stamp,
            description=None if found is None else BackboneDescription(**found),
            error=described.error,
        )
        self._refresh()

    def _refresh(self) -> None:
        self._usable = {name: self._looks[name].path for name in self.offer.backbones}

    def _answer(self, name: str) -> _Answer | None:
        answer = self._answers.get(name)
        is_current = answer is not None and answer.stamp == self._looks[name].stamp
        return answer if is_current else None

    def _age(self, name: str) -> float:
        """Return the seconds since a folder changed: as watched, or as its files' times show."""
        return max(time.monotonic() - self._since[name][1], self._looks[name].age_seconds)


class CatalogKeeper:
    """Keeps a catalog up to date and publishes its changes, in a thread.

    Descriptions come from a process of their own, at a low priority. The engine could describe
    a backbone only after its job, which may take hours; or in a thread, where a broken file could
    end the job. The process is started with the keeper and kept: next to jobs that use all cores,
    a start takes longer than a new folder may wait.

    Args:
        catalog: to be kept.
        describer: of a process without other work.
        publish: writes an offer to the tables; retried until it succeeds. It raises one of OUTAGES,
            or SchemaError if the tables are of another version.
    """

    def __init__(
        self, catalog: Catalog, *, describer: Describer, publish: Callable[[Offer], None]
    ) -> None:
        self._catalog = catalog
        self._describer = describer
        self._publish = publish
        self._published = catalog.offer
        self._published_at = time.monotonic()
        self._is_cut_off = False  # from the tables, and that is logged
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="catalog", daemon=True)

    def start(self) -> None:
        """Start watching."""
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        self._thread.join(timeout=_ENDING_SECONDS)

    def _watch(self) -> None:
        try:
            self._warm_up()
            while not self._closed.wait(_LOOK_SECONDS):
                try:
                    self._look()
                except (*OUTAGES, SchemaError) as error:
                    if not self._is_cut_off:
                        _log.warning("backbones not published", reason=type(error).__name__)
                    self._is_cut_off = True
                except Exception:  # noqa: BLE001 - the worker goes on with the backbones that it has
                    _log.exception("looking for backbones failed; the next look comes")
        finally:
            self._describer.close()

    def _warm_up(self) -> None:
        try:
            self._describer.warm_up()
        except OSError as error:  # no memory or process is left; an order tries again
            _log.warning("the process that describes backbones is not started", reason=str(error))

    def _look(self) -> None:
        catalog, describer = self._catalog, self._describer
        catalog.look()
        order = describer.order
        if order is None:
            order = next(catalog.whole(settled_seconds=_SETTLED_SECONDS), None)
            if order is not None:
                describer.begin(order)
        if order is not None and (described := describer.poll(timeout=0.0)) is not None:
            catalog.put(order, described)
        self._publish_changes()

    def _publish_changes(self) -> None:
        now, offer = time.monotonic(), self._catalog.offer
        if offer == self._published and now - self._published_at < _REPEAT_SECONDS:
            return
        self._publish(offer)
        self._published, self._published_at, self._is_cut_off = offer, now, False


def describe_all(catalog: Catalog, describer: Describer) -> None:
    """Describe every folder that is whole, one by one, and wait for it.

    Folders that are incomplete, or change meanwhile, are left to the keeper.
    """
    catalog.look()
    for order in list(catalog.whole()):
        describer.begin(order)
        while (described := describer.poll(timeout=_LOOK_SECONDS)) is None:
            pass
        catalog.put(order, described)
    catalog.look()
