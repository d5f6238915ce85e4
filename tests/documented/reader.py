"""A reader who types a page's snippets into a shell, with the ids that earlier answers showed."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import chdir, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from service.embedded.listening import free_loopback_port
from tests.documented.answers import check_answer, check_output
from tests.documented.pages import Snippet, snippets
from tests.waiting import patience

# The addresses of services in pages, in whose place the reader's own is called.
_ADDRESS = re.compile(r"http://127\.0\.0\.1:8000|https://hifi\.example\.org")
_SECRET = "hifi"  # noqa: S105 - how a key's secret begins
_IDENTIFIER = re.compile(rf"\b(?:(ds|job|key|pred)_[a-z0-9]{{24}}\b|({_SECRET})_[\w-]{{40,}})")
_PLACEHOLDER = re.compile(rf"\b(ds|job|key|pred|{_SECRET})_…")
_SERVE = re.compile(r"hifi serve\s*(#.*)?")


class Reader:
    """A shell, a Python prompt and a running service.

    Args:
        folder: where the reader begins to type.
        home: for what the reader does not see: the log of the service, the shell's variables.
        knows_address: whether ``HIFI_URL`` is set to the service that the reader starts. Pages that
            mean the usual port need that; a page that sets it itself does not.
    """

    def __init__(self, folder: Path, *, home: Path, knows_address: bool) -> None:
        self.folder = folder
        self._log = home / "serve.log"
        self._variables = home / "variables.sh"
        self._place = home / "place"
        port = free_loopback_port()
        self.url = f"http://127.0.0.1:{port}"
        programs = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        self._environment = {
            **{name: value for name, value in os.environ.items() if name[:5] != "HIFI_"},
            "PATH": programs,
            "HIFI_PORT": str(port),
            **({"HIFI_URL": self.url} if knows_address else {}),
        }
        self._service: subprocess.Popen[str] | None = None
        self._settings: list[str] = []  # exported before the service was started
        self._ids: dict[str, list[str]] = {}
        self._printed = ""
        self._open_terminal()

    def read(self, page: str, *, but_not: Collection[str] = ()) -> None:
        """Type all snippets of a page in order, in a new terminal, and compare what they print.

        Args:
            page: such as ``README.md``.
            but_not: how the snippets begin that are left out.
        """
        self._open_terminal()
        for snippet in snippets(page):
            if not snippet.text.startswith(tuple(but_not)):
                self.follow(snippet)

    def follow(self, snippet: Snippet) -> None:
        """Type a snippet, or compare an answer with that of the snippet before."""
        try:
            match snippet.kind:
                case "shell" if _SERVE.fullmatch(snippet.text):
                    self._serve(snippet)
                case "shell":
                    self._type(snippet)
                case "python":
                    self._paste(snippet)
                case "json":
                    check_answer(json.loads(snippet.text), json.loads(self._printed))
                case other:
                    raise AssertionError(f"nobody can type {other or 'a block of no language'}")  # noqa: TRY301
        except Exception as error:
            error.add_note(f"in {snippet.place}: {snippet.text}")
            raise

    def note(self, text: str) -> None:
        """Remember the ids and secrets in a text."""
        for found in _IDENTIFIER.finditer(text):
            known = self._ids.setdefault(found[1] or found[2], [])
            if found[0] not in known:
                known.append(found[0])

    def close(self) -> None:
        """Stop the service with Ctrl-C."""
        if self._service is not None:
            self._service.send_signal(signal.SIGINT)
            assert self._service.wait(timeout=patience(90)) == 130, self._log.read_text()
            self._service = None

    def _open_terminal(self) -> None:
        self._cwd = self.folder
        self._variables.write_text("")
        self._names: dict[str, Any] = {}

    def _adapt(self, text: str) -> str:
        """Fill in the address, and for ``job_…`` the newest ids."""
        kinds = [found[1] for found in _PLACEHOLDER.finditer(text)]
        newest = {kind: iter(self._ids[kind][-kinds.count(kind) :]) for kind in set(kinds)}
        text = _PLACEHOLDER.sub(lambda found: next(newest[found[1]]), text)
        return _ADDRESS.sub(self.url, text)

    def _type(self, snippet: Snippet) -> None:
        # The next statement starts with the variables, in the folder, that this one leaves.
        keep = f"code=$?; export -p > {self._variables}; pwd > {self._place}; exit $code"
        done = subprocess.run(
            ["bash", "-c", f". {self._variables}\n{self._adapt(snippet.text)}\n{keep}"],  # noqa: S607 - the shell that the pages mean
            cwd=self._cwd,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if snippet.shown else subprocess.PIPE,
            text=True,
            timeout=patience(300),
            check=False,
        )
        self._printed = done.stdout
        self._cwd = Path(self._place.read_text().strip())
        self.note(done.stdout)
        is_refused = "hifi: error: " in snippet.shown
        everything = f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == is_refused, everything
        assert "urn:hifi:problem" not in done.stdout, done.stdout
        if snippet.shown:
            check_output(_ADDRESS.sub(self.url, snippet.shown), done.stdout)

    def _paste(self, snippet: Snippet) -> None:
        code = compile(self._adapt(snippet.text), snippet.place, "exec")
        with chdir(self._cwd), redirect_stdout(io.StringIO()) as printed:
            exec(code, self._names)  # noqa: S102 - our own
        self._printed = printed.getvalue()

    def _serve(self, snippet: Snippet) -> None:
        """Start the service, unless it runs with the same settings; wait until it is ready."""
        settings = re.findall("HIFI_.*", self._variables.read_text())
        if self._service is not None and settings == self._settings:
            return
        self.close()
        self._settings = settings
        with self._log.open("ab") as log:
            self._service = subprocess.Popen(
                ["bash", "-c", f". {self._variables}; exec hifi serve"],  # noqa: S607 - as above
                cwd=self._cwd,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._service.stdout is not None
        printed = self._service.stdout.readline()
        assert "HiFi is ready" in printed, self._log.read_text()
        if snippet.shown:
            check_output(_ADDRESS.sub(self.url, snippet.shown), printed)


@contextmanager
def reading(home: Path, *, knows_address: bool = True) -> Iterator[Reader]:
    """Return a reader in a new folder of ``home``, until the end of a block."""
    folder = home / "folder"
    folder.mkdir()
    reader = Reader(folder, home=home, knows_address=knows_address)
    try:
        yield reader
    finally:
        reader.close()
