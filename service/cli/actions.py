"""The actions of a command, and their errors told in one line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

from hifi.cli import add_command, output
from service.client import ApiError, ClientError
from store.errors import StoreError

_WORD = re.compile(r"-|-\d+|-\d*\.\d+|.* .*", re.DOTALL)  # that begins like an option

Action: TypeAlias = Callable[[argparse.Namespace], int]


class ActionParser(argparse.ArgumentParser):
    """An action's own parser: what it does not know is its own error, with its own usage.

    Attributes:
        words: the positional argument, a list, that also takes words behind options; argparse gives
            a list only the words that stand together.
    """

    words: str | None = None

    def parse_known_args(  # type: ignore[override] # as argparse calls it, without overloads
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse the arguments; none is ever left over."""
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
    """Tell an option from a word, as argparse does where no option looks like a number."""
    return word[:1] == "-" and _WORD.fullmatch(word) is None


class Actions:
    """The actions of a command, as ``push`` of ``hifi datasets``.

    Args:
        parser: of the command.
        title: the word for them in its help.
    """

    def __init__(self, parser: argparse.ArgumentParser, *, title: str = "actions") -> None:
        self._actions = parser.add_subparsers(
            title=title, metavar="ACTION", required=True, parser_class=ActionParser
        )

    def add(self, name: str, act: Action, *, summary: str, notes: str = "") -> ActionParser:
        """Add an action and give its parser.

        Args:
            name: as it is typed.
            act: does it, and gives the exit code.
            summary: the line that help shows.
            notes: what its own help says further.
        """
        parser = self.add_group(name, summary=summary, notes=notes)
        parser.set_defaults(act=act)
        return parser

    def add_group(self, name: str, *, summary: str, notes: str = "") -> ActionParser:
        """Add what has actions of its own."""
        return add_command(self._actions, name, summary=summary, notes=notes)


def perform(args: argparse.Namespace) -> int:
    """Do the action that was asked for, and tell its errors in one line.

    Returns:
        The exit code.
    """
    act: Action = args.act
    try:
        return act(args)
    except ApiError as error:
        return output.fail(_describe(error, args))
    except (ClientError, StoreError) as error:
        return output.fail(str(error))


def _describe(error: ApiError, args: argparse.Namespace) -> str:
    """Say what the server said, and what to do about it here."""
    hint = _option_hint(error.param, args)
    if error.status == 401:
        hint = " (set HIFI_API_KEY to a key of this server)"
    elif error.status >= 500 and error.request_id:
        hint = f" (request {error.request_id})"
    return f"{error.detail}{hint}"


def _option_hint(param: str | None, args: argparse.Namespace) -> str:
    """Name the option that gave the field at fault: ``training.epochs`` is ``--epochs``."""
    if param is None:
        return ""
    parts = [part for part in param.split(".") if not part.isdigit()]
    for part in reversed(parts):
        if part in vars(args):
            return f" (change --{part.replace('_', '-')})"
    return ""
