"""README.md and docs/*.md, typed verbatim: every snippet works and prints what the page shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from fnmatch import fnmatch
from pathlib import Path

import pytest

from store.database.connection import Database
from store.database.schema import upgrade
from store.settings import Settings
from tests.documented.pages import PAGES, Snippet, snippets
from tests.documented.reader import Reader, reading
from tests.root import ROOT
from tests.store.queues import add_job, add_tenant
from tests.tiny_tasks import save_text_model

# The snippets that are not typed, by their beginning, and why.
NOT_TYPED = {
    "python3 -m venv .venv": "installs packages",
    ".venv/bin/pip install": "installs packages",
    "make install": "installs packages",
    ". .venv/bin/activate": "tests have their own environment",
    "hifi demo --dir demo": "takes long; the variant that the tests use makes the same data",
    "make test": "runs the tests themselves",
    "docker ": "needs Docker, and images",
    "for name in POSTGRES_PASSWORD": "makes secrets for Docker",
    "echo 'S3_ACCESS_KEY=hifi": "settings for Docker",
    "export HIFI_INFER_URL=http://10.0.0.7": "needs two more machines",
    "hifi infer --listen http://10.0.0.": "needs two more machines",
    "[project.entry-points": "a file of another package",
}
OPERATIONS = "docs/operations.md"
pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(1800),
    pytest.mark.xdist_group("documented"),
]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Return a reader with the demo's data."""
    with reading(tmp_path_factory.mktemp("reader")) as reader:
        reader.follow(Snippet("the fixture", "shell", "hifi demo --local --dir demo"))
        yield reader


@pytest.fixture
def administrator(tmp_path: Path) -> Iterator[Reader]:
    """Return a reader with a model to offer, and with tables in which a job waits."""
    with reading(tmp_path, knows_address=False) as reader:
        save_text_model(reader.folder / "my-model")
        settings = Settings(home=reader.folder / ".hifi")
        settings.home.mkdir(mode=0o700)
        upgrade(settings.database_url)
        with closing(Database(settings.database_url)) as database:
            reader.note(add_job(database, add_tenant(database, "waiting"), model="missing"))
        yield reader


def not_ignored(folder: Path) -> list[str]:
    """List the files and folders that git would offer to commit if they lay in a checkout."""
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    patterns = [line.strip("/") for line in lines if line and not line.startswith("#")]
    names = sorted(path.name for path in folder.iterdir())
    return [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)]


class TestTable:
    def test_every_entry_is_on_a_page(self):
        texts = [snippet.text for page in PAGES for snippet in snippets(page)]
        for start in NOT_TYPED:
            assert any(text.startswith(start) for text in texts), start


class TestPages:
    @pytest.mark.parametrize("page", [page for page in PAGES if page != OPERATIONS])
    def test_of_a_user(self, reader: Reader, page: str):
        reader.read(page, but_not=NOT_TYPED)
        assert not_ignored(reader.folder) == []

    def test_of_an_operator(self, administrator: Reader):
        administrator.read(OPERATIONS, but_not=NOT_TYPED)
