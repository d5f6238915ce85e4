"""The actions of a command, and their errors in one line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Generic, TypeAlias, TypeVar

from hifi.cli import CommandParser, add_command, output
from service.client import ApiError, ClientError
from store.errors import StoreError

_WORD = re.compile(r"-|-\d+|-\d*\.\d+|.* .*", re.DOTALL)  # begins with a dash, but is no option

_Target = TypeVar("_Target")
Connect: TypeAlias = Callable[[argparse.Namespace], AbstractContextManager[_Target]]


class ActionParser(CommandParser):
    """An action's parser, which reports unknown arguments with the action's own usage.

    Attributes:
        words: name of the positional list that also takes words after options; argparse puts only
            adjacent words into a list.
    """

    words: str | None = None

    def parse_known_args(  # type: ignore[override] # as argparse calls it, without overloads
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse all arguments; unknown ones are an error."""
        known, left = super().parse_known_args(args, namespace)
        if self.words is not None:
            end = left.index("--") if "--" in left else len(left)  # of the options
            words = [word for word in left[:end] if not _is_option(word)]
            getattr(known, self.words).extend([*words, *left[end + 1 :]])
            left = [word for word in left[:end] if _is_option(word)]
        if left:
            self.error(f"unrecognized arguments: {' '.join(left)}")
        return known, left


def _is_option(word: str) -> bool:
    """Return whether a word is an option, by argparse's rule: negative numbers are not."""
    return word[:1] == "-" and _WORD.fullmatch(word) is None


class Actions(Generic[_Target]):
    """The actions of a command, such as ``push`` of ``hifi datasets``.

    ``connect`` opens what they work on, such as a client of the server.
    """

    def __init__(self, parser: argparse.ArgumentParser, *, connect: Connect[_Target]) -> None:
        self._connect = connect
        self._actions = parser.add_subparsers(
            title="actions", metavar="ACTION", required=True, parser_class=ActionParser
        )

    def add(
        self,
        name: str,
        act: Callable[[_Target, argparse.Namespace], int],
        *,
        summary: str,
        notes: str = "",
    ) -> ActionParser:
        """Add an action and return its parser.

        ``act`` runs it and returns the exit code; ``summary`` is its line in the command's help,
        ``notes`` further text in its own.
        """

        def connected(args: argparse.Namespace) -> int:
            with self._connect(args) as target:
                return act(target, args)

        parser = self.add_group(name, summary=summary, notes=notes)
        parser.set_defaults(act=connected)
        return parser

    def add_group(self, name: str, *, summary: str, notes: str = "") -> ActionParser:
        """Add a group of actions and return its parser."""
        return add_command(self._actions, name, summary=summary, notes=notes)


def perform(args: argparse.Namespace) -> int:
    """Run the chosen action, print its errors in one line, and return the exit code."""
    try:
        return int(args.act(args))
    except ApiError as error:
        return output.fail(_describe(error, args))
    except (ClientError, StoreError) as error:
        return output.fail(str(error))


def _describe(error: ApiError, args: argparse.Namespace) -> str:
    """Return the server's error with a hint what to do on the command line."""
    hint = _option_hint(error.param, args)
    if error.status == 401:
        hint = " (set HIFI_API_KEY to a key of this server)"
    elif error.status >= 500 and error.request_id:
        hint = f" (request {error.request_id})"
    return f"{error.detail}{hint}"


def _option_hint(param: str | None, args: argparse.Namespace) -> str:
    """Name the option of an invalid field: ``--epochs`` for ``training.epochs``."""
    if param is None:
        return ""
    parts = [part for part in param.split(".") if not part.isdigit()]
    for part in reversed(parts):
        if part in vars(args):
            return f" (change --{part.replace('_', '-')})"
    return ""
