"""worker.catalog and worker.describing: folders that come, change and go while a worker runs."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
import structlog
import torch
from safetensors.torch import save_file

from store.errors import SchemaError
from store.settings import Settings
from tests.store.queues import MINILM
from tests.waiting import eventually
from worker import catalog as module
from worker import models
from worker.catalog import Catalog, CatalogKeeper, Offer, describe_all
from worker.describing import Describer
from worker.engine.handle import EngineDiedError
from worker.engine.messages import Command, DescribeBackbones, Described, Message, Ready

QUICK = 0.02


class Engine:
    """Describes folders as told, without reading them.

    Attributes:
        faults: errors by id; an EngineDiedError ends the engine.
        gate: closed while a description must take time.
        orders: the ids that were ordered.
        start_faults: raised by the next starts.
    """

    def __init__(self) -> None:
        self.faults: dict[str, str | EngineDiedError] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.orders: list[str] = []
        self.starts = self.kills = 0
        self.start_faults: list[OSError] = []
        self._messages: list[Message | EngineDiedError] = []

    def start(self) -> None:
        self.starts += 1
        if self.start_faults:
            raise self.start_faults.pop()

    def kill(self) -> None:
        self.kills += 1
        self._messages.clear()

    def send(self, command: Command) -> None:
        assert isinstance(command, DescribeBackbones)
        ((name, path),) = command.backbones.items()
        assert Path(path).is_dir()
        self.orders.append(name)
        fault = self.faults.get(name)
        description = None if fault else {**vars(MINILM), "id": name}
        if isinstance(fault, EngineDiedError):
            self._messages = [fault]
        else:
            answer = Described(id=name, description=description, error=fault)
            self._messages = [Ready(), answer, Ready()]

    def receive(self, *, timeout: float) -> Message | None:  # noqa: ARG002 - the real one's
        if not self._messages or not self.gate.is_set():
            time.sleep(0.001)
            return None
        message = self._messages.pop(0)
        if isinstance(message, EngineDiedError):
            raise message
        return message


def save(folder: Path, *, values: float = 0.0) -> Path:
    """Write a folder that looks like a model."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"w": torch.full((100,), values)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(models, "find_packaged_folder", lambda: None)
    monkeypatch.setattr(module, "_LOOK_SECONDS", QUICK)
    monkeypatch.setattr(module, "_SETTLED_SECONDS", 3 * QUICK)
    monkeypatch.setattr(module, "_BROKEN_SECONDS", 20 * QUICK)
    (tmp_path / "models").mkdir()
    return Settings(home=tmp_path, models=tmp_path / "models")


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def catalog(settings: Settings) -> Catalog:
    return Catalog(settings)


class Watched:
    """A catalog that is kept, and the offers that were published."""

    def __init__(self, catalog: Catalog, engine: Engine) -> None:
        self.catalog, self.offers = catalog, list[Offer]()
        self.failures: list[Exception] = []
        describer = Describer(engine)  # type: ignore[arg-type] # it stands in for the process
        self.keeper = CatalogKeeper(catalog, describer=describer, publish=self._publish)
        self.keeper.start()

    def _publish(self, offer: Offer) -> None:
        if self.failures:
            raise self.failures.pop()
        self.offers.append(offer)

    def wait_for(self, holds: Callable[[Offer], object]) -> None:
        eventually(lambda: bool(self.offers) and holds(self.offers[-1]))

    def statuses(self) -> list[dict[str, str]]:
        """Return each published state of the folders that cannot be used."""
        return [
            {name: entry["status"] for name, entry in offer.unavailable.items()}
            for offer in self.offers
        ]


@pytest.fixture
def watched(catalog: Catalog, engine: Engine) -> Iterator[Watched]:
    watched = Watched(catalog, engine)
    yield watched
    watched.keeper.close()


def describe(catalog: Catalog, engine: Engine) -> None:
    describe_all(catalog, Describer(engine))  # type: ignore[arg-type] # as above


class TestAtTheStart:
    def test_whole_folders_are_described_one_by_one(
        self, settings: Settings, catalog: Catalog, engine: Engine
    ):
        folders = [save(settings.models / name) for name in ("b", "a")]
        engine.faults["b"] = "it has no tokenizer"
        describe(catalog, engine)
        assert engine.orders == ["a", "b"]
        assert dict(catalog) == {"a": folders[1]}
        assert set(catalog.offer.backbones) == {"a"}

    def test_one_that_ends_the_engine_stops_no_other(
        self, settings: Settings, catalog: Catalog, engine: Engine
    ):
        for name in ("a", "b"):
            save(settings.models / name)
        engine.faults["a"] = EngineDiedError("the engine was killed by SIGSEGV")
        describe(catalog, engine)
        assert set(catalog) == {"b"}
        assert engine.kills == 1

    def test_a_half_copied_folder_is_not_waited_for(
        self, settings: Settings, catalog: Catalog, engine: Engine
    ):
        cut(save(settings.models / "half"))
        describe(catalog, engine)
        assert engine.orders == []
        assert catalog.offer.unavailable["half"]["status"] == "reading"


def cut(folder: Path) -> bytes:
    """Cut a folder's weights in half; return the rest."""
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    return whole[len(whole) // 2 :]


def status_of(name: str, offer: Offer) -> str | None:
    return offer.unavailable.get(name, {}).get("status")


class TestKeeper:
    def test_a_new_folder_is_offered_and_withdrawn_when_it_is_removed(
        self, settings: Settings, watched: Watched
    ):
        folder = save(settings.models / "new")
        watched.wait_for(lambda offer: set(offer.backbones) == {"new"})
        assert dict(watched.catalog) == {"new": folder}
        shutil.rmtree(folder)
        watched.wait_for(lambda offer: not offer.backbones and not offer.unavailable)
        assert dict(watched.catalog) == {}

    def test_a_folder_is_not_offered_before_it_is_whole(
        self, settings: Settings, watched: Watched, engine: Engine, tmp_path: Path
    ):
        elsewhere = save(tmp_path / "elsewhere")
        rest = cut(elsewhere)
        shutil.move(elsewhere, settings.models / "new")
        watched.wait_for(lambda offer: "new" in offer.unavailable)
        with (settings.models / "new" / "model.safetensors").open("ab") as file:
            for byte in rest[:-1]:  # it grows for longer than a broken one is waited for
                file.write(bytes([byte]))
                file.flush()
                time.sleep(QUICK / 5)
            assert engine.orders == []
            assert {state["new"] for state in watched.statuses() if state} == {"reading"}
            file.write(rest[-1:])
        watched.wait_for(lambda offer: set(offer.backbones) == {"new"})

    def test_one_that_stays_incomplete_is_reported(self, settings: Settings, watched: Watched):
        cut(save(settings.models / "half"))
        watched.wait_for(
            lambda offer: offer.unavailable.get("half", {}).get("status") == "unusable"
        )
        reason = watched.offers[-1].unavailable["half"]["reason"]
        assert reason.startswith("model.safetensors is incomplete: it has ")

    def test_one_that_cannot_be_used_is_reported_until_it_is_mended(
        self, settings: Settings, watched: Watched, engine: Engine
    ):
        engine.faults["bad"] = "bad has no tokenizer"
        save(settings.models / "bad")
        entry = {"status": "unusable", "reason": "bad has no tokenizer"}
        watched.wait_for(lambda offer: offer.unavailable == {"bad": entry})
        del engine.faults["bad"]
        (settings.models / "bad" / "tokenizer.json").write_text("{}")
        watched.wait_for(lambda offer: set(offer.backbones) == {"bad"} and not offer.unavailable)

    def test_changed_weights_are_described_again_and_not_offered_meanwhile(
        self, settings: Settings, watched: Watched, engine: Engine
    ):
        folder = save(settings.models / "a")
        watched.wait_for(lambda offer: set(offer.backbones) == {"a"})
        engine.gate.clear()
        save(folder, values=1.0)  # of the same size
        watched.wait_for(lambda offer: status_of("a", offer) == "reading")
        assert dict(watched.catalog) == {}
        engine.gate.set()
        watched.wait_for(lambda offer: set(offer.backbones) == {"a"})
        assert engine.orders == ["a", "a"]

    def test_other_files_change_nothing(self, settings: Settings, watched: Watched, engine: Engine):
        folder = save(settings.models / "a")
        watched.wait_for(lambda offer: set(offer.backbones) == {"a"})
        (folder / "README.md").write_text("text")
        save(settings.models / "b")
        watched.wait_for(lambda offer: set(offer.backbones) == {"a", "b"})
        assert engine.orders == ["a", "b"]

    def test_while_one_is_described_others_go_on(
        self, settings: Settings, watched: Watched, engine: Engine
    ):
        save(settings.models / "small")
        watched.wait_for(lambda offer: set(offer.backbones) == {"small"})
        engine.gate.clear()
        save(settings.models / "large")
        watched.wait_for(lambda offer: "large" in offer.unavailable)
        shutil.rmtree(settings.models / "small")
        watched.wait_for(lambda offer: not offer.backbones)
        assert watched.offers[-1].unavailable["large"]["status"] == "reading"
        engine.gate.set()

    def test_an_offer_is_published_again_after_an_outage(
        self, settings: Settings, watched: Watched
    ):
        watched.failures = [OSError("away"), OSError("away")]
        save(settings.models / "a")
        watched.wait_for(lambda offer: set(offer.backbones) == {"a"})

    @pytest.mark.parametrize(
        "error", [SchemaError("other tables"), sa.exc.OperationalError("SELECT 1", {}, OSError())]
    )
    def test_tables_that_take_no_offer_are_logged_once(
        self, settings: Settings, watched: Watched, error: Exception
    ):
        with structlog.testing.capture_logs() as entries:
            for name in ("a", "b"):
                watched.failures = [error] * 5
                save(settings.models / name)
                watched.wait_for(lambda offer, name=name: name in offer.backbones)
        expected = {
            "event": "backbones not published",
            "reason": type(error).__name__,
            "log_level": "warning",
        }
        assert entries == [expected] * 2  # once for each time

    @pytest.mark.usefixtures("watched")
    def test_the_engine_is_started_once_before_it_is_needed(self, engine: Engine):
        eventually(lambda: engine.starts > 0)
        time.sleep(5 * QUICK)
        assert (engine.starts, engine.orders) == (1, [])

    def test_the_engine_is_started_before_the_first_look(
        self, catalog: Catalog, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(module, "_LOOK_SECONDS", 3600.0)
        watched = Watched(catalog, engine)
        eventually(lambda: engine.starts > 0)
        watched.keeper.close()

    def test_an_engine_that_could_not_be_started_is_started_for_a_folder(
        self, settings: Settings, catalog: Catalog, engine: Engine
    ):
        engine.start_faults = [OSError("no process left")]
        with structlog.testing.capture_logs() as entries:
            watched = Watched(catalog, engine)
            eventually(lambda: not engine.start_faults)
            save(settings.models / "a")
            watched.wait_for(lambda offer: set(offer.backbones) == {"a"})
            watched.keeper.close()
        (entry,) = entries
        assert entry["event"] == "the process that describes backbones is not started"
        assert entry["reason"] == "no process left"


class TestLookAtModels:
    def look(self, settings: Settings) -> dict[str, str | None]:
        return {name: each.missing for name, each in models.look_at_models(settings).items()}

    def test_finds_what_is_missing(self, settings: Settings):
        save(settings.models / "whole")
        cut(save(settings.models / "half"))
        (save(settings.models / "no-config") / "config.json").unlink()
        (save(settings.models / "cut-config") / "config.json").write_text('{"model_type": ')
        (save(settings.models / "config-only") / "model.safetensors").unlink()
        (save(settings.models / "text") / "model.safetensors").write_bytes(b"\xff" * 99)
        (save(settings.models / "empty") / "model.safetensors").write_bytes(b"")
        (save(settings.models / "longer") / "model.safetensors").open("ab").write(b"x")
        assert self.look(settings) == {
            "whole": None,
            "config-only": "it has no safetensors weights",
            "cut-config": "config.json is not a whole JSON object",
            "empty": "model.safetensors is incomplete: it has 0 bytes",
            "half": "model.safetensors is incomplete: it has 236 of 472 bytes",
            "longer": "model.safetensors has 473 bytes, but its header is for 472",
            "no-config": "it has no config.json",
            "text": "model.safetensors is not a safetensors file",
        }

    def test_waits_for_every_shard(self, settings: Settings):
        folder = save(settings.models / "sharded")
        names = ("model-00001-of-2.safetensors", "model-00002-of-2.safetensors")
        (folder / "model.safetensors").rename(folder / names[0])
        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": dict(zip("ab", names, strict=True))}))
        assert self.look(settings) == {"sharded": f"{names[1]} is missing"}
        shutil.copy(folder / names[0], folder / names[1])
        assert self.look(settings) == {"sharded": None}
        index.write_text('{"weight_map"')
        assert "is not a whole JSON object" in str(self.look(settings)["sharded"])

    def test_pickled_weights_are_left_to_the_library(self, settings: Settings):
        folder = save(settings.models / "old")
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        assert self.look(settings) == {"old": None}

    def test_a_name_that_cannot_be_an_id_is_explained(self, settings: Settings):
        save(settings.models / "a b")
        save(settings.models / ".hidden")
        (found,) = models.look_at_models(settings).items()
        assert found[0] == "a b"
        assert found[1].is_wrong
        assert "rename the folder" in str(found[1].missing)

    @pytest.mark.parametrize(
        ("name", "shown"),
        [
            ("bert\x07base", r"bert\x07base"),
            ("bert\nbase", r"bert\nbase"),
            ("bert\u2028base", r"bert\u2028base"),
            (os.fsdecode(b"bert\xff"), r"bert\udcff"),  # no UTF-8
        ],
    )
    def test_a_name_that_is_not_printable_is_explained_and_escaped(
        self, name: str, shown: str, settings: Settings
    ):
        save(settings.models / name)
        (found,) = models.look_at_models(settings).items()
        assert found[0] == shown
        assert found[1].is_wrong
        assert "rename the folder" in str(found[1].missing)

    def test_a_model_that_is_the_folder_of_models_is_explained(self, settings: Settings):
        save(settings.models)
        assert settings.models.name == "models"
        assert "put the model into a folder in it" in str(self.look(settings)["models"])

    def test_a_pipe_is_not_opened(self, settings: Settings):
        folder = save(settings.models / "odd")
        (folder / "model.safetensors").unlink()
        os.mkfifo(folder / "model.safetensors")
        assert self.look(settings) == {"odd": "it has no safetensors weights"}
