"""``hifi migrate``: migrate the database to this version's tables."""

from __future__ import annotations

import argparse

from hifi.cli import output
from hifi.cli.options import add_json
from service.cli.actions import perform

run = perform


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``hifi migrate``."""
    parser.description = (
        "Migrate the database of HIFI_DATABASE_URL (by default SQLite in HIFI_HOME) to the tables "
        "of this version. Running it again changes nothing. Back up first: a step down drops "
        "columns."
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--to", metavar="REVISION", help="up to this revision (default: head, the newest)"
    )
    what.add_argument(
        "--down", metavar="REVISION", help="down to this revision; base removes all tables"
    )
    what.add_argument(
        "--check",
        action="store_true",
        help="change nothing; the exit code is 0 only if the tables are of this version",
    )
    add_json(parser)
    parser.set_defaults(act=_migrate)


def _migrate(args: argparse.Namespace) -> int:
    from service.embedded.home import make_home
    from service.embedded.outages import open_database, outages_in_one_line
    from store.database.schema import downgrade, upgrade
    from store.settings import read_settings

    settings = read_settings()
    with outages_in_one_line():
        if args.check:
            with open_database(settings.database_url):
                return _report("head", args, line="the tables are of this version")
        make_home(settings.home)
        if args.down is not None:
            downgrade(settings.database_url, args.down)
            return _report(args.down, args, line=f"the tables are back at {args.down}")
        revision = args.to or "head"
        upgrade(settings.database_url, revision=revision)
        return _report(revision, args, line=f"the tables are at {revision}")


def _report(revision: str, args: argparse.Namespace, *, line: str) -> int:
    if args.json:
        output.print_json({"object": "migration", "revision": revision})
    else:
        output.print_line(line)
    return output.EXIT_OK
