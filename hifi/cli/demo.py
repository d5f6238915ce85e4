"""``hifi demo``: one real job, run with the commands that a user would type."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hifi.cli import options, output
from hifi.cli.demo_story import KINDS, MODEL, say
from hifi.cli.docstrings import LIBRARIES, build_data_set

ROWS_PER_LIBRARY = 240
SEED = 0
_EXTRA = "service"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``hifi demo``."""
    parser.description = (
        "Run one real job, from data to merged model, without network: a service is started, and "
        "asked with the commands that are shown."
    )
    parser.add_argument(
        "--dir", type=Path, metavar="DIR", help="a new folder for everything; it is kept"
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep the temporary folder that is used without --dir"
    )
    parser.add_argument(
        "--model",
        default=MODEL,
        metavar="NAME",
        help="the backbone (default: %(default)s, which `make install` installs)",
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=ROWS_PER_LIBRARY,
        metavar="N",
        help="sentences of each library, at least 10 (default: %(default)s)",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--url", metavar="URL", help="ask a running service (its key: HIFI_API_KEY), start none"
    )
    where.add_argument(
        "--local", action="store_true", help="without a service: the library's own commands"
    )
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Build a data set, run a job on it, and check what was promised."""
    with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):
        document = _demonstrate(args)
    if args.json:
        output.print_json(document)
    return output.EXIT_OK


def _demonstrate(args: argparse.Namespace) -> dict[str, Any]:
    started = time.perf_counter()
    is_kept = args.dir is not None or args.keep
    is_local = args.local or (args.url is None and not _has_service())
    with _folder(args) as folder:
        kinds = None if is_local else folder / KINDS
        if kinds is not None:
            kinds.mkdir()
        rows = build_data_set(folder, rows_per_library=args.rows, seed=SEED, kinds=kinds)
        say(
            f"Which library does a docstring come from: {', '.join(LIBRARIES)}?\n"
            f"{rows['train']} sentences for training and {rows['validation']} for validation, "
            f"from what is installed here, in {folder}"
        )
        metrics = _run_job(folder, args, is_local=is_local)
        if is_kept:
            say(f"Everything is in {folder}")
    seconds = time.perf_counter() - started
    say(f"Done in {seconds:.0f} seconds.")
    return {
        "object": "demo",
        "path": str(folder) if is_kept else None,
        "model": args.model,
        "is_local": is_local,
        "rows": rows,
        "metrics": metrics,
        "seconds": seconds,
    }


def _run_job(folder: Path, args: argparse.Namespace, *, is_local: bool) -> dict[str, Any]:
    from hifi.cli import demo_local, demo_served

    if is_local:
        return demo_local.demonstrate(folder, model=args.model)
    return demo_served.demonstrate(folder, model=args.model, url=args.url)


def _has_service() -> bool:
    """Tell whether the extra is installed; where it is not, say what the demo does instead."""
    missing = _missing_packages()
    if missing:
        say(
            f"The service is not installed (there is no {', '.join(missing)}), so this is the "
            f"library alone: pip install 'hifi[{_EXTRA}]' brings the rest.\n"
        )
    return not missing


def _missing_packages() -> list[str]:
    """List what the extra asks for and is not here."""
    asked = importlib.metadata.requires("hifi") or []
    of_extra = [line for line in asked if re.search(rf"extra == ['\"]{_EXTRA}['\"]", line)]
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in of_extra]
    return [name for name in names if not _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@contextlib.contextmanager
def _folder(args: argparse.Namespace) -> Iterator[Path]:
    if args.dir is not None:
        output.check_new_directory(args.dir)
        args.dir.mkdir(exist_ok=True)
        yield args.dir
    elif args.keep:
        yield Path(tempfile.mkdtemp(prefix="hifi-demo-"))
    else:
        with tempfile.TemporaryDirectory(prefix="hifi-demo-") as name:
            yield Path(name)
