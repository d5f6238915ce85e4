"""benchmarks.paper.tables.pages: pages show the tables of the committed runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from benchmarks.paper.tables import pages
from benchmarks.paper.tables.pages import PAGES, with_tables
from hifi.errors import DataError
from tests.benchmarks.paper.tables.test_overview import ours
from tests.tiny_tasks import write_jsonl

PAGE = "Before.\n\n<!-- table: --table overview --shots 64 -->\n{}<!-- end of table -->\n\nAfter.\n"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    path = tmp_path / "results.jsonl"
    write_jsonl(path, [*ours(0.5), *ours(0.6, shots="full")])
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
    first = tmp_path / "FIRST.md"
    first.write_text(PAGE.format("kept\n"), encoding="utf-8")
    monkeypatch.setattr(pages, "PAGES", (first, page))
    monkeypatch.setattr(pages, "with_tables", partial(with_tables, results=results))
    assert pages.main() == 2
    assert "are wanted" in capsys.readouterr().err
    assert all("kept" in each.read_text(encoding="utf-8") for each in (first, page))


@pytest.mark.parametrize("missing", ["<!-- end of table -->", "<!-- table: --table overview"])
def test_a_missing_comment_is_an_error(results: Path, missing: str):
    page = PAGE.format("") + PAGE.format("").replace(missing, "")
    with pytest.raises(DataError, match="needs its"):
        with_tables(page, results=results)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_shows_the_committed_runs(page: Path):
    text = page.read_text(encoding="utf-8")
    assert "<!-- table: " in text
    assert with_tables(text) == text, "run python -m benchmarks.paper.tables.pages"
