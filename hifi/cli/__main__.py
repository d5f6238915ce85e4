"""Run the command as ``python -m hifi.cli``."""

from __future__ import annotations

import sys

from hifi.cli import main

sys.exit(main())
