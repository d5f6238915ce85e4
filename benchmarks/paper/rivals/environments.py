"""The environments of rivals whose packages cannot live in the project's own.

    python -m benchmarks.paper.rivals.environments --folder DIR    # or the names of some
    export HIFI_RIVALS=DIR                                         # where benchmarks.paper looks

Each is a virtual environment in a folder of its name, with the packages pinned in ``NAME.txt``
beside this file and the project's own release of torch: the same kernels and random numbers. One
that is already made from these pins is left alone, one of other pins is made anew.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from hifi.errors import HifiError

_COMMAND = "python -m benchmarks.paper.rivals.environments"
VARIABLE = "HIFI_RIVALS"
NAMES = ("adapters", "setfit")
_PINS = Path(__file__).parent
_MARK = "pyvenv.cfg"  # of a virtual environment
_WANTED, _INSTALLED = "wanted.txt", "installed.txt"  # requirements, before and after they are met


class RivalEnvironmentError(HifiError):
    """The environment of a rival is missing or cannot be made."""


def requirements(name: str) -> str:
    """Return what is installed in an environment, in pip's form."""
    torch = version("torch").partition("+")[0]
    return f"{(_PINS / f'{name}.txt').read_text(encoding='utf-8')}torch=={torch}\n"


def interpreter(name: str) -> Path:
    """Return the absolute path of the interpreter in an environment that ``HIFI_RIVALS`` has.

    Raises:
        RivalEnvironmentError: it has not been made, or from other pins.
    """
    root = os.environ.get(VARIABLE)
    if root and is_made(name, folder=Path(root)):
        return _interpreter(Path(root).absolute() / name)
    how = f"{_COMMAND} {name} --folder {root or 'DIR'}"
    where = f"{VARIABLE}={root} has none of these pins" if root else f"{VARIABLE} is not set"
    also = "" if root else f", then set {VARIABLE}=DIR"
    raise RivalEnvironmentError(f"{name} needs its own environment and {where}; run {how}{also}")


def is_made(name: str, *, folder: Path) -> bool:
    """Return whether an environment has been made from the present pins."""
    installed = folder / name / _INSTALLED
    return installed.is_file() and installed.read_text(encoding="utf-8") == requirements(name)


def make(name: str, *, folder: Path) -> None:
    """Make an environment, or make it anew if its pins have changed.

    Raises:
        RivalEnvironmentError: the folder is something else, or a package cannot be installed.
    """
    if is_made(name, folder=folder):
        return
    place = folder / name
    if place.exists() and not (place / _MARK).is_file():
        raise RivalEnvironmentError(f"{place} exists and is no virtual environment")
    _run(sys.executable, "-m", "venv", "--clear", place)
    wanted = place / _WANTED
    wanted.write_text(requirements(name), encoding="utf-8")
    _run(_interpreter(place), "-m", "pip", "install", "--quiet", "--requirement", wanted)
    wanted.rename(place / _INSTALLED)


def _interpreter(place: Path) -> Path:
    return place / "bin" / "python"


def _run(*command: object) -> None:
    words = [str(each) for each in command]
    status = subprocess.run(words, check=False).returncode  # noqa: S603 - this module's words
    if status:
        raise RivalEnvironmentError(f"{' '.join(words)} has ended with status {status}")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    root = os.environ.get(VARIABLE) or None
    parser = argparse.ArgumentParser(
        _COMMAND,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; default all")
    parser.add_argument(
        "--folder",
        type=Path,
        default=root,
        required=root is None,
        help=f"gets a folder for each; default: ${VARIABLE}",
    )
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in NAMES:
            parser.error(f"{name!r} is none of {', '.join(NAMES)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = parse(arguments)
    try:
        for name in options.names or NAMES:
            make(name, folder=options.folder)
            print(f"{name}: {options.folder / name}", flush=True)
    except RivalEnvironmentError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
