"""A headless Chromium, driven over a pipe by its DevTools protocol: no driver, no port."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import eventually, patience

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--remote-debugging-pipe"),
)


class Page:
    """One tab.

    Attributes:
        errors: script errors, console errors, and every dialog that opened.
    """

    def __init__(self, commands: int, messages: int) -> None:
        self._commands, self._messages = commands, messages
        self._rest = b""
        self._sent = 0
        self._session: str | None = None
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command; return its result."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + patience(20)
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == self._sent:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._messages], [], [], deadline - time.monotonic())
            assert ready, "Chromium says nothing"
            read = os.read(self._messages, 1 << 16)
            assert read, "Chromium has ended"
            self._rest += read
        first, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url')}")
        elif message.get("method") == "Page.javascriptDialogOpening":
            self.errors.append(f"dialog: {params['message']}")

    def goto(self, url: str) -> None:
        """Open a URL."""
        assert "errorText" not in self.call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """Run a script; return its value, awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Run a script repeatedly until its value is true."""
        try:
            eventually(lambda: self.evaluate(f"Boolean({expression})"), message=expression)
        except AssertionError as error:
            shown = self.evaluate("document.body.innerText.slice(0, 2000)")
            raise AssertionError(f"{error}\n{self.errors}\n{shown}") from error

    def texts(self, selector: str) -> list[str]:
        """Return the text of all elements that match a selector."""
        found: list[str] = self.evaluate(
            f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.textContent)"
        )
        return found

    def screenshot(self, file: Path, *, width: int = 1280, height: int = 1200) -> None:
        """Save a screenshot."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """Start a browser with an empty profile; yield its tab."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        if os.environ.get("HIFI_REQUIRE_SERVICES") == "1":
            pytest.fail("no Chromium: apt-get install chromium")
        pytest.skip("no Chromium here")
    commands_out, commands_in = os.pipe()
    messages_out, messages_in = os.pipe()
    # It reads commands from descriptor 3 and writes messages to 4.
    script = f'exec "$0" "$@" 3<&{commands_out} 4>&{messages_in}'
    process = subprocess.Popen(
        ["/bin/bash", "-c", script, program, *_FLAGS, f"--user-data-dir={profile}"],
        pass_fds=(commands_out, messages_in),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(commands_out)
    os.close(messages_in)
    try:
        yield Page(commands_in, messages_out)
    finally:
        os.close(commands_in)  # it ends with its pipe
        try:
            process.wait(patience(10))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(messages_out)
