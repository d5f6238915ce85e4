"""Where the repository stands, for tests that start its commands or read its documents."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
