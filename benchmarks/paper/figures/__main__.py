"""``python -m benchmarks.paper.figures``: see :mod:`benchmarks.paper.figures.command`."""

import sys

from benchmarks.paper.figures.command import main

if __name__ == "__main__":
    sys.exit(main())
