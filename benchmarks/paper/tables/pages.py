"""Write the tables of the committed runs into the pages that show them.

    python -m benchmarks.paper.tables.pages

A page says which table stands where, with the options of ``benchmarks.paper.tables``; what lies
between the two comments is replaced:

    <!-- table: --table curves -->
    <!-- end of table -->
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from benchmarks.paper.results import COMMITTED
from benchmarks.paper.tables.command import markdown, parse, wanted_lines
from hifi.errors import DataError, HifiError

_ROOT = Path(__file__).parents[3]
PAGES = (_ROOT / "benchmarks" / "PAPER.md", _ROOT / "README.md")
_BEGIN, _END = "<!-- table: ", "<!-- end of table -->"
_BLOCK = re.compile(r"(<!-- table: ([^\n]*) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def with_tables(text: str, *, results: Path = COMMITTED) -> str:
    """Return a page with its tables as they are now.

    Args:
        text: of the page.
        results: the result file.

    Raises:
        HifiError: a table has no runs, or a comment is missing.
    """
    if not len(_BLOCK.findall(text)) == text.count(_BEGIN) == text.count(_END):
        raise DataError(f"each '{_BEGIN}…' needs its '{_END}'")

    def table(block: re.Match[str]) -> str:
        options = parse([str(results), *shlex.split(block[2])])
        rows = "\n".join(markdown(wanted_lines(options), options))
        return f"{block[1]}\n{rows}\n\n{block[3]}"

    return _BLOCK.sub(table, text)


def main() -> int:
    """Rewrite the pages; return the exit status."""
    try:
        texts = {page: with_tables(page.read_text(encoding="utf-8")) for page in PAGES}
        for page, text in texts.items():
            page.write_text(text, encoding="utf-8")
    except HifiError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
