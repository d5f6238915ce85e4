"""``python -m benchmarks.paper.tables``: see :mod:`benchmarks.paper.tables.command`."""

import sys

from benchmarks.paper.tables.command import main

if __name__ == "__main__":
    sys.exit(main())
