"""An S3 server in memory that hangs where a test wants it to."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "hifi"
# silent: never answers; stalled: sends headers and half of the body, then nothing more;
# dripping: a byte every tenth of a second; broken: half of the body, then the connection's end.
Mood = Literal["well", "silent", "stalled", "dripping", "broken", "refusing"]
_NO_BODY = b""
_ERROR = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"


@dataclass
class SlowStore:
    """What the server holds, and how it behaves.

    Attributes:
        blobs: content by key, such as ``ten_1/0123…``.
        parts: of large blobs that are being sent, by key and number.
        mood: of a request, by its method and key; the key of a listing is empty.
        released: set to end all requests that hang.
        hanging: how many requests hang now.
    """

    port: int = 0
    blobs: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    mood: Callable[[str, str], Mood] = lambda _method, _key: "well"
    released: threading.Event = field(default_factory=threading.Event)
    hanging: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        """The value of ``HIFI_ARTIFACTS_URL``."""
        return f"s3://{BUCKET}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that point to this server."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }

    def hang(self, seconds: float | None = None) -> None:
        """Wait until the test ends, or for some seconds."""
        with self._lock:
            self.hanging += 1
        self.released.wait(seconds)
        with self._lock:
            self.hanging -= 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: SlowStore

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    @property
    def key(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix(f"/{BUCKET}").lstrip("/")

    def answer(
        self,
        status: int,
        body: bytes = _NO_BODY,
        *,
        of: tuple[str, str] | None = None,
        **headers: str,
    ) -> None:
        """Send an answer in the mood of the request, or of another method and key."""
        mood = self.store.mood(*(of or (self.command, self.key)))
        if mood == "silent":
            self.store.hang()
            self.close_connection = True
            return
        if mood == "refusing":
            status, body = 403, _ERROR
        self.send_response(status)
        headers.setdefault("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "HEAD":
            return
        half = len(body) // 2
        if mood == "stalled":
            self.wfile.write(body[:half])
            self.store.hang()
            self.close_connection = True
        elif mood == "broken":
            self.wfile.write(body[:half])
            self.close_connection = True
        elif mood == "dripping":
            for byte in body:
                if self.store.released.is_set():
                    break
                self.wfile.write(bytes([byte]))
                self.store.hang(0.1)
            self.close_connection = True
        else:
            self.wfile.write(body)

    def do_GET(self) -> None:
        if not self.key:
            self.list_keys()
            return
        body = self.store.blobs.get(self.key)
        if body is None:
            self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        facts = self.facts(body)
        wanted = self.headers.get("Range")
        if wanted is None:
            self.answer(200, body, **facts)
            return
        first, last = map(int, wanted.removeprefix("bytes=").split("-"))
        if first >= len(body):
            self.answer(416, b"<Error><Code>InvalidRange</Code></Error>")
            return
        part = body[first : last + 1]
        span = f"bytes {first}-{first + len(part) - 1}/{len(body)}"
        self.answer(206, part, Content_Range=span, **facts)

    def do_HEAD(self) -> None:
        body = self.store.blobs.get(self.key)
        if body is None:
            self.answer(404)
        else:
            self.answer(200, Content_Length=str(len(body)), **self.facts(body))

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))

    def read_body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_PUT(self) -> None:
        body, number = self.read_body(), self.query.get("partNumber")
        if self.store.mood(self.command, self.key) == "well":
            if number is None:
                self.store.blobs[self.key] = body
            else:
                self.store.parts[self.key][int(number)] = body
        self.answer(200, ETag='"x"')

    def do_POST(self) -> None:
        """Begin or end a blob in parts, or delete keys, of which the client sends one."""
        body = self.read_body()
        if "uploads" in self.query:
            self.store.parts[self.key] = {}
            self.answer(200, b"<Started><UploadId>1</UploadId></Started>", of=("PUT", self.key))
            return
        if "uploadId" in self.query:
            parts = self.store.parts.pop(self.key)
            self.store.blobs[self.key] = b"".join(parts[number] for number in sorted(parts))
            self.answer(200, b'<Ended><ETag>"x"</ETag></Ended>', of=("PUT", self.key))
            return
        keys = [key.decode() for key in re.findall(rb"<Key>(.*?)</Key>", body)]
        if self.store.mood("DELETE", keys[0]) == "well":
            for key in keys:
                self.store.blobs.pop(key, None)
        deleted = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        self.answer(200, f"<DeleteResult>{deleted}</DeleteResult>".encode(), of=("DELETE", keys[0]))

    @staticmethod
    def facts(body: bytes) -> dict[str, str]:
        return {"ETag": f'"{hash(body)}"', "Last_Modified": formatdate(usegmt=True)}

    def list_keys(self) -> None:
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(body)}</Size><ETag>x</ETag>"
            "<LastModified>2020-01-01T00:00:00.000Z</LastModified></Contents>"
            for key, body in sorted(self.store.blobs.items())
        )
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
        self.answer(200, body.encode(), Content_Type="application/xml")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, *_: Any) -> None:
        """Ignore callers that hang up."""


@contextmanager
def slow_store() -> Iterator[SlowStore]:
    """Run the server until the end of a block."""
    store = SlowStore()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": store}))
    store.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        store.released.set()
        server.shutdown()
        server.server_close()
        with suppress(RuntimeError):
            thread.join()
