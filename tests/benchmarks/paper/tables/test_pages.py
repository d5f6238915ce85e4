"""benchmarks.paper.tables.pages: pages show the tables of the committed runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.paper.tables import pages
from benchmarks.paper.tables.pages import PAGES, with_tables
from hifi.errors import DataError
from tests.benchmarks.paper.tables.test_curves import LINES
from tests.tiny_tasks import write_jsonl

PAGE = "Before.\n\n<!-- table: --table overview --shots 64 -->\n{}<!-- end of table -->\n\nAfter.\n"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    path = tmp_path / "results.jsonl"
    write_jsonl(path, LINES)
    return path


def test_a_table_is_written_between_its_comments(results: Path):
    page = with_tables(PAGE.format("an old table\n"), results=results)
    assert page.startswith("Before.\n\n<!-- table: --table overview --shots 64 -->\n\n| method |")
    assert page.endswith(" |\n\n<!-- end of table -->\n\nAfter.\n")
    assert "an old table" not in page
    assert "64 rows" in page
    assert "all rows" not in page
    assert with_tables(page, results=results) == page


def test_each_table_has_its_own_options(results: Path):
    page = with_tables(PAGE.format("") + PAGE.format("").replace("64", "full"), results=results)
    assert page.count("64 rows") == page.count("all rows") == 1


def test_a_table_without_runs_leaves_the_pages_as_they_are(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    page = tmp_path / "PAGE.md"
    page.write_text(PAGE.format("kept\n").replace("64", "128"), encoding="utf-8")
    with pytest.raises(DataError, match="are wanted"):
        with_tables(page.read_text(encoding="utf-8"), results=results)
    monkeypatch.setattr(pages, "PAGES", (page,))
    assert pages.main() == 2
    assert "are wanted" in capsys.readouterr().err
    assert "kept" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_shows_the_committed_runs(page: Path):
    text = page.read_text(encoding="utf-8")
    assert "<!-- table: " in text
    assert with_tables(text) == text, "run python -m benchmarks.paper.tables.pages"
