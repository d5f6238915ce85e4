"""``hifi migrate``: migrate the database to this version's tables."""

from __future__ import annotations

import argparse

from hifi.cli import output
from hifi.cli.options import add_json
from service.cli.actions import perform

run = perform

_NAMED = 3  # workers that a message names


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
        "--down",
        metavar="REVISION",
        help="down to this revision; base removes all tables; refused while a worker is alive",
    )
    what.add_argument(
        "--check",
        action="store_true",
        help="change nothing; the exit code is 0 only if the tables are of this version",
    )
    parser.add_argument(
        "--force", action="store_true", help="go down although workers are alive; they stop working"
    )
    add_json(parser)
    parser.set_defaults(act=_migrate)


def _migrate(args: argparse.Namespace) -> int:
    from service.embedded.home import make_home
    from store.database.outages import open_database, outages_in_one_line
    from store.database.schema import downgrade, upgrade
    from store.machine import private_files
    from store.settings import read_settings

    if args.force and args.down is None:
        return output.fail("--force needs --down", code=output.EXIT_USAGE)
    settings = read_settings()
    with outages_in_one_line(), private_files():
        if args.check:
            with open_database(settings.database_url):
                return _report("head", args, line="the tables are of this version")
        make_home(settings.home)
        if args.down is not None:
            if not args.force:
                _refuse_if_alive(settings.database_url)
            downgrade(settings.database_url, args.down)
            return _report(args.down, args, line=f"the tables are back at {args.down}")
        revision = args.to or "head"
        upgrade(settings.database_url, revision=revision)
        return _report(revision, args, line=f"the tables are at {revision}")


def _refuse_if_alive(url: str) -> None:
    """Raise while a worker uses the tables; a gateway answers 503 until they fit again."""
    from contextlib import closing

    from store.database.connection import Database
    from store.errors import SchemaError
    from store.jobs.workers import find_live_workers

    with closing(Database(url, pool_size=1)) as database:
        alive = find_live_workers(database)
    if alive:
        raise SchemaError(
            f"{len(alive)} workers use the tables ({', '.join(alive[:_NAMED])}"
            f"{', …' * (len(alive) > _NAMED)}): stop them and the gateways first, or go down "
            "with --force"
        )


def _report(revision: str, args: argparse.Namespace, *, line: str) -> int:
    if args.json:
        output.print_json({"object": "migration", "revision": revision})
    else:
        output.print_line(line)
    return output.EXIT_OK
