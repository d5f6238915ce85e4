"""What a tenant can do that means harm: ``python -m tests.integration.hostile ACT URL SECRET JOB``.

The process goes on until it is killed, or until one of its threads fails. It prints ``begun`` with
every request, and the status of every answer.
"""

from __future__ import annotations

import functools
import itertools
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2

from hifi.backbones.packaged import PACKAGED_MODEL
from hifi.data.formats.limits import MAX_CHARACTERS, ReadLimits
from service.inference.routes import MAX_BODY_BYTES
from store.orders import MAX_INPUTS
from tests.repeated_rows import repeated_rows

OVER_QUOTA = "uploads over the quota"
HANGING_STORE = "a store that hangs"
CONNECTIONS = 1500
_REFUSED_PAUSE_SECONDS = 0.5
_TIMEOUT_SECONDS = 600.0
_WORDS = ("good", "bad", "movie", "the", "rather", "boring", "film", "plot")


@dataclass(frozen=True)
class Attacker:
    """A tenant with a key and a finished job."""

    url: str
    secret: str
    job: str
    client: httpx2.Client

    def call(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """Send a request."""
        headers = {"Authorization": f"Bearer {self.secret}"}
        _say("begun")
        answer = self.client.request(method, f"{self.url}{path}", headers=headers, **options)
        _say(str(answer.status_code))
        if not answer.is_success:
            time.sleep(_REFUSED_PAUSE_SECONDS)
        return answer

    def upload(self, name: str, content: bytes) -> httpx2.Response:
        """Upload a training file."""
        return self.call("POST", "/datasets", files={"train": (name, content)})

    def train(self, content: bytes, *, jobs: int, **training: Any) -> None:
        """Upload a file of texts and queue long jobs on it."""
        dataset = self.upload("train.parquet", content).json()["id"]
        spec = {
            "model": PACKAGED_MODEL,
            "dataset": dataset,
            "training": {"epochs": 500, **training},
        }
        for _ in range(jobs):
            self.call("POST", "/jobs", json=spec)

    def send_huge_texts(self) -> None:
        """Upload a small file of texts of 48 MB, which one cannot train on."""
        self.upload("train.parquet", _repeated("x" * 48_000_000, rows=40))

    def train_on_longest_texts(self) -> None:
        """Train on the longest texts that are allowed."""
        self.train(_repeated("word " * (MAX_CHARACTERS // 5), rows=5000), jobs=1, batch_size=64)
        threading.Event().wait()

    def upload_and_delete(self) -> None:
        """Fill the quota and free it again."""
        rows = (b"%s,%d\n" % (os.urandom(250).hex().encode(), row % 2) for row in range(1200))
        answer = self.upload("train.csv", b"text,label\n" + b"".join(rows))
        if answer.is_success:
            self.call("DELETE", f"/datasets/{answer.json()['id']}")

    def download(self) -> None:
        """Download a head delta."""
        self.call("GET", f"/jobs/{self.job}/heads/delta")

    def send_slow_rows(self) -> None:
        """Upload a small file of as many rows as are allowed, which take long to read."""
        self.upload("train.parquet", _repeated("the same", rows=ReadLimits().max_rows))

    def keep_connections(self) -> None:
        """Begin requests that never end; replace connections that are closed."""
        host, port = urlsplit(self.url).netloc.split(":")
        lines: list[socket.socket] = []
        for number in itertools.count():
            line = socket.create_connection((host, int(port)))
            line.sendall(b"POST /datasets HTTP/1.1\r\nHost: x\r\n")
            lines.append(line)
            if number >= CONNECTIONS:
                lines.pop(0).close()
                time.sleep(0.01)
            if number == CONNECTIONS:
                _say("begun")

    def queue_long_jobs(self) -> None:
        """Keep the workers busy."""
        self.train(_repeated("a rather long text " * 50, rows=400), jobs=20)
        threading.Event().wait()

    def leave_a_model(self) -> None:
        """Ask for a merged model and read nothing of it."""
        host, port = urlsplit(self.url).netloc.split(":")
        with socket.create_connection((host, int(port))) as line:
            head = f"GET /jobs/{self.job}/merged HTTP/1.1\r\nHost: {host}\r\n"
            line.sendall(f"{head}Authorization: Bearer {self.secret}\r\n\r\n".encode())
            _say("begun")
            _say(line.recv(12).split()[-1].decode())
            threading.Event().wait()

    def predict(self) -> None:
        """Ask for as many predictions of long texts as one request may have."""
        texts = [" ".join(_WORDS * 25) for _ in range(MAX_INPUTS)]
        body = {"inputs": [{"text": text} for text in texts]}
        self.call("POST", f"/jobs/{self.job}/predict", json=body)

    def send_large_predictions(self) -> None:
        """Ask for predictions in as many bytes as one request may have."""
        text = "word " * (MAX_CHARACTERS // 5)
        count = MAX_BODY_BYTES // (len(text) + 100)
        body = {"inputs": [{"text": text}] * count, "timeout_seconds": 5}
        self.call("POST", f"/jobs/{self.job}/predict", json=body)


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


_repeated = functools.cache(repeated_rows)


# How many threads of the attacker do what, again and again.
ACTS: dict[str, tuple[int, Callable[[Attacker], None]]] = {
    "huge texts": (4, Attacker.send_huge_texts),
    "longest texts": (1, Attacker.train_on_longest_texts),
    OVER_QUOTA: (4, Attacker.upload_and_delete),
    HANGING_STORE: (60, Attacker.download),
    "slow uploads": (8, Attacker.send_slow_rows),
    "half-open connections": (1, Attacker.keep_connections),
    "long jobs": (1, Attacker.queue_long_jobs),
    "models that nobody reads": (4, Attacker.leave_a_model),
    "predictions": (32, Attacker.predict),
    "large predictions": (9, Attacker.send_large_predictions),
}


# What it prints when an act has its effect, unless that is its first request: a job is queued.
START = {"longest texts": "202", "long jobs": "202"}


def main(act: str, url: str, secret: str, job: str) -> None:
    """Do it until this process is killed; end it with an error if a thread cannot go on."""
    threads, do = ACTS[act]
    client = httpx2.Client(timeout=_TIMEOUT_SECONDS, limits=httpx2.Limits(max_connections=None))
    attacker = Attacker(url, secret, job, client)

    def repeat() -> None:
        while True:
            do(attacker)

    pool = ThreadPoolExecutor(threads)
    ended = wait([pool.submit(repeat) for _ in range(threads)], return_when=FIRST_EXCEPTION).done
    traceback.print_exception(ended.pop().exception())
    sys.stderr.flush()
    os._exit(1)  # without the other threads, which go on


if __name__ == "__main__":
    main(*sys.argv[1:])
