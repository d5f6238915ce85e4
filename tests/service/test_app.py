"""service.app: what a gateway process is made of, and how it starts."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
import sqlalchemy as sa

from service.app import build_app
from service.http.replay import Once
from service.jobs.routes import queue_job
from store.errors import SchemaError, SettingsError
from store.jobs import actions as jobs
from store.jobs.spec import JobSpec
from store.tables import Job
from tests.service.gateways import add_dataset_row, job_spec, opened, settings_for

HEAVY = ("torch", "transformers", "pyarrow", "pandas", "numpy", "worker", "datasets")
MEASURE = """
import http.client, json, os, sys
from tests.service.gateways import served, settings_for
from service.app import build_app
from pathlib import Path

with served(build_app(settings_for(Path(sys.argv[1]), sys.argv[2]))) as url:
    for path in ("/healthz", "/jobs", "/openapi.json"):
        line = http.client.HTTPConnection(url.removeprefix("http://"))
        line.request("GET", path, headers={"Authorization": f"Bearer {sys.argv[3]}"})
        answer = line.getresponse()
        answer.read()
        assert answer.status == 200, path
    status = Path("/proc/self/status").read_text()
    resident = int(status.partition("VmRSS:")[2].split()[0]) * 1024
    measured = {"resident": resident, "modules": sorted(sys.modules)}
print(json.dumps(measured))  # once nobody else writes
"""


@pytest.mark.process
class TestWeight:
    def test_nothing_heavy_is_loaded_and_little_memory_taken(self, tmp_path, sqlite_url, alice):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(tmp_path / "home"), sqlite_url, alice.secret],
            capture_output=True,
            check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            text=True,
        )
        (line,) = [line for line in done.stdout.splitlines() if line.startswith('{"resident"')]
        measured = json.loads(line)
        loaded = {module.partition(".")[0] for module in measured["modules"]}
        assert loaded.isdisjoint(HEAVY)
        assert measured["resident"] < 150 << 20


class TestStart:
    def test_without_tables_says_what_to_do(self, tmp_path):
        settings = settings_for(tmp_path / "home", f"sqlite:///{tmp_path}/empty.db")
        with pytest.raises(SchemaError, match="hifi migrate"), opened(settings):
            pass

    def test_without_an_artifact_store_says_so(self, tmp_path, sqlite_url):
        settings = settings_for(tmp_path / "home", sqlite_url, artifacts_url="ftp://nowhere")
        with pytest.raises(SettingsError), opened(settings):
            pass

    def test_starts_again_on_what_it_left(self, settings):
        for _ in range(2):
            with opened(settings) as client:
                assert client.get("/healthz").status_code == 200

    def test_a_database_that_is_away_is_an_outage_and_no_failure(
        self, settings, alice, monkeypatch
    ):
        with opened(settings) as client:

            def away(*_args, **_options):
                raise sa.exc.OperationalError("SELECT", {}, Exception("secret"))

            monkeypatch.setattr("service.http.auth.authenticate", away)
            answer = client.get("/jobs", headers=alice.headers)
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert answer.headers["retry-after"]
        assert "secret" not in answer.text


class TestEnd:
    def test_a_job_that_is_being_queued_is_queued_whole(
        self, settings, database, alice, published, monkeypatch
    ):
        begun = threading.Event()
        submit = jobs.submit

        def submit_slowly(*args, **options):
            begun.set()
            threading.Event().wait(0.3)
            return submit(*args, **options)

        monkeypatch.setattr(jobs, "submit", submit_slowly)
        spec = JobSpec.model_validate(job_spec(add_dataset_row(database, alice)))

        def wait_for_token():
            while not published:
                time.sleep(0.01)

        async def run():
            app = build_app(settings)
            async with app.router.lifespan_context(app) as state:
                gateway = state["gateway"]
                once = Once(
                    database=gateway.database,
                    key=None,
                    request_sha256="",
                    lock_seconds=9,
                    limiter=gateway.posting,
                )
                posted = asyncio.create_task(
                    once.answer(partial(queue_job, gateway, alice.tenant_id, spec))
                )
                await asyncio.to_thread(begun.wait)
                posted.cancel()  # as a server does that has waited long enough
            await asyncio.to_thread(wait_for_token)
            with database.read() as session:
                return len(session.scalars(sa.select(Job)).all()), list(published)

        assert asyncio.run(run()) == (1, [1])
