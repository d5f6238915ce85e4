"""A server with scripted answers, also truncated, late or missing ones."""

from __future__ import annotations

import json
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Asked:
    """A request as received."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _answer(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length)
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, self.path, headers, body)
        self.server.stub.take(asked)(self, asked)

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - the names that http.server looks for

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    stub: StubServer


Answer = Callable[[_Handler, Asked], None]


class StubServer:
    """Answers each path with its scripted answers in turn; the last one repeats."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self._answers: dict[tuple[str, str], list[Answer]] = defaultdict(list)
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.stub = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def on(self, method: str, path: str, *answers: Answer) -> None:
        self._answers[method, path].extend(answers)

    def take(self, asked: Asked) -> Answer:
        with self._lock:
            self.asked.append(asked)
            answers = self._answers[asked.method, asked.path.partition("?")[0]]
            if not answers:
                return problem(404, "not_found", "there is nothing")
            return answers.pop(0) if len(answers) > 1 else answers[0]

    def paths(self) -> list[str]:
        return [f"{asked.method} {asked.path}" for asked in self.asked]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def stub_server() -> Iterator[StubServer]:
    stub = StubServer()
    try:
        yield stub
    finally:
        stub.close()


def _begin_body(handler: _Handler, status: int, *, length: int, headers: dict[str, str]) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(length))
    handler.end_headers()


def reply(body: bytes, *, status: int = 200, **headers: str) -> Answer:
    """Answer with a body; ``content_type=`` is the header Content-Type."""

    def answer(handler: _Handler, _: Asked) -> None:
        _begin_body(handler, status, length=len(body), headers=headers)
        handler.wfile.write(body)

    return answer


def document(content: object, *, status: int = 200, **headers: str) -> Answer:
    """Answer with JSON."""
    body = json.dumps(content).encode()
    return reply(body, status=status, content_type="application/json", **headers)


def problem(
    status: int, code: str, detail: str, *, param: str | None = None, **headers: str
) -> Answer:
    """Answer with a problem document."""
    content = {"title": code, "status": status, "code": code, "detail": detail, "param": param}
    return document(content, status=status, **headers)


def hang_up(handler: _Handler, _: Asked) -> None:
    """Close the connection without an answer."""
    _break(handler)


def broken_off(body: bytes, *, after: int, status: int = 200, **headers: str) -> Answer:
    """Announce a whole body, send a part of it, and close the connection."""

    def answer(handler: _Handler, _: Asked) -> None:
        _begin_body(handler, status, length=len(body), headers=headers)
        handler.wfile.write(body[:after])
        handler.wfile.flush()
        _break(handler)

    return answer


def event_stream(*messages: str) -> Answer:
    """Send server-sent events, and end the stream."""

    def answer(handler: _Handler, _: Asked) -> None:
        _begin_events(handler, {"Connection": "close"})
        for message in messages:
            handler.wfile.write(message.encode())
        handler.close_connection = True

    return answer


def broken_stream(*messages: str) -> Answer:
    """Send server-sent events in chunks; close the connection without the last chunk."""

    def answer(handler: _Handler, _: Asked) -> None:
        _begin_events(handler, {"Transfer-Encoding": "chunked"})
        for message in messages:
            data = message.encode()
            handler.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        handler.wfile.flush()
        _break(handler)

    return answer


def _begin_events(handler: _Handler, headers: dict[str, str]) -> None:
    handler.send_response(200)
    for name, value in {"Content-Type": "text/event-stream; charset=utf-8", **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()


def _break(handler: _Handler) -> None:
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)
