"""A gateway, started as an operator starts it, whose artifact store hangs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx2
import pytest

from service.embedded.listening import free_loopback_port
from store.database.connection import Database
from store.storage import ArtifactStorage
from tests.integration.deployment import Deployment, deployed
from tests.service.gateways import CSV, Member, add_backbone, add_dataset_row, add_member, job_spec
from tests.service.work import finished_job
from tests.slow_store import Mood, SlowStore, slow_store
from tests.waiting import eventually, patience

pytestmark = [pytest.mark.process, pytest.mark.timeout(600), pytest.mark.xdist_group("store")]
PROMPT_SECONDS = 2.0
DOWNLOADS = 60
SHARE = 16  # downloads of a tenant at a time


class Site:
    """A gateway process, its store, and two tenants: one whose blobs hang, and another."""

    def __init__(self, deployment: Deployment, store: SlowStore) -> None:
        self.store = store
        self.deployment = deployment
        self.port = deployment.environment["HIFI_PORT"]
        deployment.run("migrate")
        self.database = Database(f"sqlite:///{deployment.home}/hifi.db")
        self.alice, self.bob = (add_member(self.database, name) for name in ("alice", "bob"))
        add_backbone(self.database)
        storage = ArtifactStorage(store.url)
        self.jobs = {
            member.tenant_id: finished_job(self.database, storage, member.tenant_id)
            for member in (self.alice, self.bob)
        }
        self.dataset = add_dataset_row(self.database, self.bob)
        deployment.start("serve", "--only", "gateway")
        deployment.wait_for(self.is_alive, message="gateway")

    def is_alive(self) -> bool:
        """Return whether the gateway answers."""
        try:
            return httpx2.get(f"http://127.0.0.1:{self.port}/healthz").status_code == 200
        except httpx2.TransportError:
            return False

    def client(self, member: Member) -> httpx2.Client:
        """Return a client of a tenant."""
        return httpx2.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers=member.headers,
            timeout=patience(120),
            limits=httpx2.Limits(max_connections=None),
        )

    def lines(self, *parts: str) -> list[str]:
        """Return the lines of the gateway's log that have all of some texts."""
        log = (self.deployment.home / "serve-0.log").read_text()
        return [line for line in log.splitlines() if all(part in line for part in parts)]

    def path(self, member: Member) -> str:
        """Return the path of a tenant's head delta."""
        return f"/jobs/{self.jobs[member.tenant_id]}/heads/delta"

    def hang(self, mood: Mood, *members: Member) -> None:
        """Let the blobs of tenants hang; of all tenants, and the probes, if none is named."""
        owners = tuple(member.tenant_id for member in members)
        self.store.mood = lambda _, key: mood if not owners or key.startswith(owners) else "well"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with slow_store() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        home = tmp_path_factory.mktemp("store") / "home"
        settings = {"AUTH": "keys", "ARTIFACTS_URL": store.url, "PORT": str(free_loopback_port())}
        with deployed(home, **settings) as deployment:
            site = Site(deployment, store)
            yield site
            site.store.released.set()
            site.database.close()


@pytest.fixture(autouse=True)
def well(site: Site) -> Iterator[None]:
    """Let everything that hangs end after each test."""
    yield
    site.store.mood = lambda _method, _key: "well"
    site.store.released.set()
    eventually(lambda: site.store.hanging == 0)
    site.store.released.clear()
    for member in (site.alice, site.bob):  # so that failures are counted anew
        with site.client(member) as client:
            eventually(lambda client=client, member=member: is_served(client, site.path(member)))


def assert_prompt(site: Site) -> None:
    """Check that each kind of call of the other tenant is answered, and how soon."""
    with site.client(site.bob) as client:
        calls = {
            "get": lambda: client.get("/jobs"),
            "post": lambda: client.post("/jobs", json=job_spec(site.dataset)),
            "upload": lambda: client.post("/datasets", files={"train": ("a.csv", CSV)}),
            "download": lambda: client.get(site.path(site.bob)),
        }
        for name, call in calls.items():
            began = time.monotonic()
            answer = call()
            took = time.monotonic() - began
            assert answer.status_code < 300, (name, answer.text)
            assert took < patience(PROMPT_SECONDS), (name, took)


class TestOneTenantsBlobs:
    @pytest.mark.parametrize("mood", ["silent", "stalled", "dripping"])
    def test_that_hang_delay_no_other_tenant(self, site: Site, mood: Mood):
        assert_prompt(site)
        site.hang(mood, site.alice)
        with site.client(site.alice) as client, ThreadPoolExecutor(DOWNLOADS) as pool:
            began = time.monotonic()
            path = site.path(site.alice)
            answers = [pool.submit(client.get, path) for _ in range(DOWNLOADS)]
            eventually(lambda: site.store.hanging >= SHARE)
            assert_prompt(site)
            codes = sorted({answer.result().json()["code"] for answer in answers})
            assert time.monotonic() - began < patience(20)
        assert codes == ["artifact_storage", "too_many_downloads"]

    def test_that_work_again_are_served_again(self, site: Site):
        site.hang("silent", site.alice)
        with site.client(site.alice) as client, ThreadPoolExecutor(8) as pool:
            path = site.path(site.alice)
            failed = list(pool.map(client.get, [path] * 4))
            assert {answer.status_code for answer in failed} == {503}
            site.hang("well")
            eventually(lambda: client.get(path).status_code == 200)


class TestDownload:
    def test_that_breaks_off_in_the_store_breaks_off_for_the_caller(self, site: Site):
        """The file has three parts; the store fails from the second one on."""
        parts = 0

        def fail_later(_method: str, _key: str) -> Mood:
            nonlocal parts
            parts += 1
            return "well" if parts == 1 else "refusing"

        site.store.mood = fail_later
        with site.client(site.alice) as client, pytest.raises(httpx2.RemoteProtocolError):
            client.get(site.path(site.alice), headers={"x-request-id": "broken-off"})
        eventually(lambda: site.lines("broken-off", "status=200"))
        (line,) = (line for line in site.lines("broken-off") if "status=200" not in line)
        assert "answer_broken_off" in line
        assert "AccessDenied" in line
        assert not site.lines("Traceback")
        assert not site.lines("ASGI")

    def test_whose_caller_leaves_holds_nothing(self, site: Site):
        site.hang("silent", site.alice)
        path = site.path(site.alice)
        with ThreadPoolExecutor(SHARE) as pool:
            for _ in range(4):
                list(pool.map(lambda _: leave(site, path), range(SHARE)))
            site.hang("well")
            with site.client(site.alice) as client:
                answers = eventually(lambda: all_served(pool, client, path))
        for answer in answers:
            assert answer.headers["etag"] == f'"{hashlib.sha256(answer.content).hexdigest()}"'


def leave(site: Site, path: str) -> None:
    """Ask for a file, and hang up soon."""
    with site.client(site.alice) as client, suppress(httpx2.TimeoutException):
        client.get(path, timeout=0.5)


def is_served(client: httpx2.Client, path: str) -> httpx2.Response | None:
    answer = client.get(path)
    return answer if answer.status_code == 200 else None


def all_served(
    pool: ThreadPoolExecutor, client: httpx2.Client, path: str
) -> list[httpx2.Response] | None:
    """Download a file as often at a time as a tenant may."""
    answers = list(pool.map(lambda _: is_served(client, path), range(SHARE)))
    return [answer for answer in answers if answer] if all(answers) else None


class TestWholeStore:
    def test_that_hangs_is_a_clear_refusal_in_bounded_time(self, site: Site):
        site.hang("silent")
        with site.client(site.bob) as client:
            began = time.monotonic()
            answer = client.post("/datasets", files={"train": ("a.csv", CSV)})
            assert time.monotonic() - began < patience(60)
            assert (answer.status_code, answer.json()["code"]) == (503, "artifact_storage")
            assert answer.headers["retry-after"]
            began = time.monotonic()
            assert client.get("/jobs").status_code == 200
            ready = client.get("/readyz")
            assert time.monotonic() - began < patience(6)
            assert (ready.status_code, ready.json()["failing"]) == (503, ["artifacts"])

    def test_that_refuses_is_described_in_the_log_and_not_to_callers(self, site: Site):
        site.hang("refusing")
        with site.client(site.bob) as client:
            content = CSV + CSV.splitlines(keepends=True)[-1]  # not that of another test
            upload = client.post("/datasets", files={"train": ("a.csv", content)})
            download = client.get(site.path(site.bob))
        for answer in (upload, download):
            problem = answer.json()
            assert (answer.status_code, problem["code"]) == (503, "artifact_storage")
            assert problem["detail"] == "the artifact store is unavailable; retry later"
            lines = site.lines(problem["request_id"], "request_refused")
            assert len(lines) == 1
            assert f"127.0.0.1:{site.store.port}" in lines[0]
            assert "AccessDenied" in lines[0]

    def test_that_refuses_to_store_is_not_ready(self, site: Site):
        refuse: Mood = "refusing"
        site.store.mood = lambda method, _key: refuse if method == "PUT" else "well"
        with site.client(site.bob) as client:
            ready = eventually(lambda: failing(client))
            assert ready == ["artifacts"]
            site.hang("well")
            eventually(lambda: client.get("/readyz").status_code == 200)


def failing(client: httpx2.Client) -> list[str] | None:
    answer = client.get("/readyz")
    return answer.json()["failing"] if answer.status_code == 503 else None


def test_the_file_that_is_downloaded_has_several_parts(site: Site):
    sizes = [len(blob) for blob in site.store.blobs.values()]
    assert max(sizes) > 2 << 20
