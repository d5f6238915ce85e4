"""The command ``hifi``: its own commands, and those that other packages add by entry point.

A command's module is imported only when the command runs, so help, the version and usage errors
do not import torch.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import NoReturn, TypeVar

from hifi import __version__
from hifi.cli.output import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    fail,
    make_output_encodable,
)
from hifi.errors import AmbiguousTaskError, HifiError, InvalidArgumentError

Parser = TypeVar("Parser", bound=argparse.ArgumentParser)

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
ENTRY_POINT_GROUP = "hifi.commands"

# Name to module and the line that --help shows.
LOCAL_COMMANDS = {
    "select": ("hifi.cli.select", "score the attention heads for a task and select the best"),
    "tune": ("hifi.cli.tune", "select heads, tune only them, write a head delta"),
    "merge": ("hifi.cli.merge", "merge a head delta into its backbone and write the whole model"),
    "inspect": ("hifi.cli.inspect", "show the contents of a head delta file"),
    "export-lora": ("hifi.cli.export_lora", "export a head delta as a LoRA adapter for PEFT"),
    "demo": ("hifi.cli.demo", "run one real job here, from data to merged model, without network"),
}

# Commands of our own distribution in other packages: name to the line that --help shows, and the
# extra that the command needs.
EXTRA_COMMANDS = {
    "serve": ("run the whole service here: gateway, worker and inference", "service"),
    "migrate": ("migrate a service's database to this version", "service"),
    "worker": ("run a service's jobs on a device of this machine", "worker"),
    "infer": ("serve a service's predictions and merged models from this machine", "worker"),
    "datasets": ("upload data sets to a service and list them", "service"),
    "models": ("list the backbones that a service has", "service"),
    "jobs": ("submit jobs to a service, watch them, download the results", "service"),
    "predictions": ("answer whole data sets in the background of a service", "service"),
    "tenants": ("manage a service's tenants and keys, and show their usage", "service"),
}


class _HelpFormatter(argparse.HelpFormatter):
    """Widen the column of option and command names."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage of all options."""

    def error(self, message: str) -> NoReturn:
        """End the command with the exit code for usage errors."""
        message = message.removeprefix("argument ")
        raise SystemExit(fail(f"{message}; see `{self.prog} --help`", code=EXIT_USAGE))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments without the program's name; by default those of the process.

    Returns:
        The exit code: 0; 1 after an error, which is printed on one line of stderr; 2 for invalid
        arguments; 130 after Ctrl-C. ``HIFI_DEBUG=1`` raises unexpected exceptions.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    make_output_encodable()
    try:
        with _plain_warnings():
            code = _run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return fail("interrupted; nothing was left half-written", code=EXIT_INTERRUPTED)
    except OSError as error:  # of stdout; discard its buffer too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # its reader wants no more
            return EXIT_ERROR
        return fail(_describe_unexpected(error))
    return code


def _run(arguments: Sequence[str]) -> int:
    args = argparse.Namespace()
    try:
        code = _parse(arguments, into=args)
        return int(args.run(args)) if code is None else code
    except InvalidArgumentError as error:
        return fail(f"{error}{_option_hint(error.param, args)}")
    except AmbiguousTaskError as error:
        return fail(f"{error.split}: {error.doubt}; choose with --{error.param}")
    except HifiError as error:
        return fail(str(error))
    except BrokenPipeError:
        raise
    except Exception as error:
        if _is_debugging():
            raise
        if isinstance(error, ModuleNotFoundError) and args.command in EXTRA_COMMANDS:
            return fail(_missing_package(args.command, error, is_own=True))
        return fail(_describe_unexpected(error))


def _parse(arguments: Sequence[str], *, into: argparse.Namespace) -> int | None:
    """Parse the arguments; return an exit code if there is nothing to run."""
    try:
        _build_parser(arguments).parse_args(arguments, into)
    except SystemExit as stop:  # help, version, usage
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE
    return None


def _is_debugging() -> bool:
    return os.environ.get("HIFI_DEBUG") == "1"


def _build_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Build the parser, with the arguments of the requested command only."""
    parser = CommandParser(
        prog="hifi",
        description="Fine-tune only the attention heads that matter for a task.",
        epilog="Set HIFI_DEBUG=1 to see the traceback of an unexpected error.",
        formatter_class=_HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"hifi {__version__}")
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True
    )
    used = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, (module, summary) in LOCAL_COMMANDS.items():
        command = add_command(commands, name, summary=summary)
        if name == used:
            _add_arguments(command, import_module(module))
    for entry in _added_commands():
        summary = EXTRA_COMMANDS[entry.name][0] if _is_own(entry) else _origin(entry)
        command = add_command(commands, entry.name, summary=summary)
        if entry.name == used:
            _load_arguments(command, entry)
    return parser


def add_command(
    commands: argparse._SubParsersAction[Parser], name: str, *, summary: str, notes: str = ""
) -> Parser:
    """Add a command, or an action of one.

    Args:
        commands: the group to add it to.
        name: of the command.
        summary: one line for the list of commands.
        notes: more text for the command's own help.
    """
    return commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.{notes and ' '}{notes}",
        formatter_class=_HelpFormatter,
    )


def _add_arguments(command: argparse.ArgumentParser, module: ModuleType) -> None:
    module.add_arguments(command)
    command.set_defaults(run=module.run)


def _added_commands() -> list[EntryPoint]:
    """Return the commands of installed packages, ours first; ours cannot be overridden."""
    found = entry_points(group=ENTRY_POINT_GROUP)
    own = {entry.name: entry for entry in found if _is_own(entry)}
    others = {entry.name: entry for entry in found if entry.name not in {*LOCAL_COMMANDS, *own}}
    return [
        *(own[name] for name in EXTRA_COMMANDS if name in own),
        *(others[name] for name in sorted(others)),
    ]


def _is_own(entry: EntryPoint) -> bool:
    is_ours = entry.dist is not None and entry.dist.name.lower() == "hifi"
    return is_ours and entry.name in EXTRA_COMMANDS


def _origin(entry: EntryPoint) -> str:
    return f"from the package {entry.dist.name}" if entry.dist else f"from {entry.module}"


def _load_arguments(command: argparse.ArgumentParser, entry: EntryPoint) -> None:
    """Load a command of another package."""
    try:
        _add_arguments(command, entry.load())
    except ImportError as error:
        raise HifiError(_missing_package(entry.name, error, is_own=_is_own(entry))) from error
    except Exception as error:  # foreign code can raise anything
        if _is_debugging():
            raise
        raise HifiError(
            f"the command {entry.name!r} {_origin(entry)} is broken ({type(error).__name__}: "
            f"{error}); update or remove that package; HIFI_DEBUG=1 shows the traceback"
        ) from error


def _missing_package(command: str, error: ImportError, *, is_own: bool) -> str:
    """Return the message for a missing package, with the way to install it."""
    what = (
        f"pip install 'hifi[{EXTRA_COMMANDS[command][1]}]'"
        if is_own
        else "install it, or the extra that includes it, and try again"
    )
    return f"the command {command!r} needs a package that is not installed ({error}); {what}"


def _option_hint(param: str, args: argparse.Namespace) -> str:
    """Return a hint at the option of a refused argument, if there is one.

    Errors in a file have a ``param`` such as ``selection.k``; the option is that of the file.
    """
    name = param.partition(".")[0]
    known = vars(args).keys() - {"run", "command"}
    return f" (change --{name.replace('_', '-')})" if name in known else ""


def _describe_unexpected(error: Exception) -> str:
    text = str(error).strip() or "no message"
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        place = "the output" if error.filename is None else str(error.filename)
        return f"no space left for {place}; free some and try again"
    if "out of memory" in text.lower() or isinstance(error, MemoryError):
        return f"out of memory: {text.splitlines()[0]}; try a smaller --batch-size or --max-length"
    return (
        f"unexpected {type(error).__name__}: {text.splitlines()[0]}; "
        "this is a bug or a broken installation; HIFI_DEBUG=1 shows the traceback"
    )


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings as one line on stderr, without the source line that raised them."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        print(f"hifi: warning: {' '.join(str(message).split())}", file=sys.stderr)  # noqa: T201

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
