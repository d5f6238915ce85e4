"""Whatever the umask is, nothing that a command leaves in a home can be read by other users."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from service.embedded.listening import free_loopback_port
from tests.integration.deployment import deployed, is_ready
from tests.integration.served import SPEC, served
from tests.root import ROOT

pytestmark = pytest.mark.process


@pytest.fixture(autouse=True)
def open_umask():
    """Let a test's processes create files that everybody may read."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def open_entries(folder):
    """List the files and folders below a folder that others may use; its own mode included."""
    paths = [folder, *folder.rglob("*")]
    return [str(path) for path in paths if path.lstat().st_mode & 0o077 and not path.is_symlink()]


def environment(home):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HIFI_")}
    return {**kept, "HIFI_HOME": str(home)}


def test_hifi_migrate(tmp_path):
    home = tmp_path / "home"
    command = [sys.executable, "-m", "hifi.cli", "migrate"]
    subprocess.run(command, cwd=ROOT, env=environment(home), check=True, capture_output=True)
    assert (home / "hifi.db").exists()
    assert open_entries(home) == []


@pytest.mark.parametrize("command", ["worker", "infer"])
def test_a_process_that_cannot_use_its_home_says_so(tmp_path, command):
    (tmp_path / "file").write_bytes(b"")
    done = subprocess.run(
        [sys.executable, "-m", "hifi.cli", command],
        cwd=ROOT,
        env={**environment(tmp_path / "file" / "home"), "HIFI_DATABASE_URL": "sqlite:////dev/null"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert f"cannot use {tmp_path}/file/home (Not a directory)" in done.stderr.splitlines()[-1]


def test_hifi_serve_and_a_job(tmp_path):
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    with served(home) as service:
        job = service.client.jobs.create({**SPEC, "dataset": service.push(tmp_path)})
        for _ in service.client.jobs.watch(job["id"]):
            pass
        assert service.client.jobs.get(job["id"])["status"] == "succeeded"
        found = open_entries(home)
    assert [path for path in found if not path.endswith(".log")] == []  # those are the test's own


def test_processes_that_are_started_alone(tmp_path):
    home, port = tmp_path / "home", free_loopback_port()
    infer_url = f"http://127.0.0.1:{free_loopback_port()}"
    with deployed(home, PORT=str(port), INFER_URL=infer_url, DEVICE="cpu") as deployment:
        deployment.run("migrate")
        for command in (("worker",), ("infer",), ("serve", "--only", "gateway")):
            deployment.start(*command)
        deployment.wait_for(lambda: is_ready(f"http://127.0.0.1:{port}"), message="ready")
        found = open_entries(home)
    assert [path for path in found if not path.endswith(".log")] == []
