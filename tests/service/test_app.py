"""service.app: what a gateway process loads, and how it starts and stops."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx2
import pytest
import sqlalchemy as sa

from service import app as app_module
from service.app import build_app
from service.http.replay import Once
from service.jobs.routes import queue_job
from store.errors import SchemaError, SettingsError
from store.jobs import actions as jobs
from store.jobs.spec import JobSpec
from store.tables import Job
from tests.service.gateways import (
    add_dataset_row,
    asked_and_left,
    job_spec,
    opened,
    served,
    settings_for,
)
from tests.waiting import eventually, patience

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
print(json.dumps(measured))  # once no other thread writes
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

    def test_without_an_artifact_store_is_an_error(self, tmp_path, sqlite_url):
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


class TestTurns:
    @pytest.fixture
    def gate(self):
        """Yield what holds up all lists of alice's jobs until it is set."""
        gate = threading.Event()
        yield gate
        gate.set()

    @pytest.fixture
    def begun(self, alice, gate, monkeypatch):
        """Return the lists of her jobs that have begun."""
        begun = []
        list_jobs = jobs.list_jobs

        def list_slowly(session, tenant_id, **options):
            if tenant_id == alice.tenant_id:
                begun.append(tenant_id)
                gate.wait(patience(20))
            return list_jobs(session, tenant_id, **options)

        monkeypatch.setattr(jobs, "list_jobs", list_slowly)
        return begun

    def test_one_tenants_requests_leave_threads_to_others(self, settings, alice, bob, gate, begun):
        with (
            served(build_app(settings)) as url,
            ThreadPoolExecutor(30) as pool,
            httpx2.Client(base_url=url, timeout=patience(5)) as client,
        ):
            asked = [pool.submit(client.get, "/jobs", headers=alice.headers) for _ in range(30)]
            try:
                eventually(lambda: len(begun) == app_module._THREADS_EACH)
                time.sleep(0.3)  # for the others to arrive
                assert client.get("/jobs", headers=bob.headers).status_code == 200
                assert len(begun) == app_module._THREADS_EACH
            finally:
                gate.set()
            assert {each.result().status_code for each in asked} == {200}

    def test_a_request_whose_caller_leaves_is_not_begun(self, settings, alice, gate, begun):
        most = app_module._THREADS_EACH
        with served(build_app(settings)) as url, ThreadPoolExecutor(most) as pool:
            ask = partial(httpx2.get, f"{url}/jobs", headers=alice.headers, timeout=patience(20))
            asked = [pool.submit(ask) for _ in range(most)]
            try:
                eventually(lambda: len(begun) == most)
                for _ in range(20):
                    with asked_and_left(f"{url}/jobs", headers=alice.headers):
                        pass
                time.sleep(0.3)  # for the news to arrive
            finally:
                gate.set()
            assert {each.result().status_code for each in asked} == {200}
            assert ask().status_code == 200
            assert len(begun) == most + 1


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
                once = Once(database=gateway.database, key=None, request_sha256="")
                queue = partial(queue_job, gateway, alice.tenant_id, spec)
                posted = asyncio.create_task(
                    once.answer(
                        lambda keep: gateway.posting.run(partial(queue, keep), tenant="ten_1")
                    )
                )
                await asyncio.to_thread(begun.wait)
                posted.cancel()  # as a server does that has waited long enough
            await asyncio.to_thread(wait_for_token)
            with database.read() as session:
                return len(session.scalars(sa.select(Job)).all()), list(published)

        assert asyncio.run(run()) == (1, [1])
