"""``hifi migrate``: tables there, back, checked, and every failure in one line."""

from __future__ import annotations

import json
from contextlib import closing

import pytest

from hifi.cli import main
from service.embedded.listening import free_loopback_port
from store.database.connection import Database
from store.jobs.workers import register


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Return a folder that does not exist yet."""
    home = tmp_path / "new" / "home"
    monkeypatch.setenv("HIFI_HOME", str(home))
    monkeypatch.delenv("HIFI_DATABASE_URL", raising=False)
    return home


class TestMigrate:
    def test_makes_the_tables_and_again_changes_nothing(self, home, capsys):
        assert main(["migrate"]) == 0
        assert capsys.readouterr().out == "the tables are at head\n"
        before = (home / "hifi.db").read_bytes()
        assert main(["migrate", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"object": "migration", "revision": "head"}
        assert (home / "hifi.db").read_bytes() == before

    def test_check_reports_whether_they_match_this_version(self, capsys):
        assert main(["migrate", "--check"]) == 1
        assert main(["migrate"]) == 0
        assert main(["migrate", "--check"]) == 0
        assert main(["migrate", "--down", "base"]) == 0
        capsys.readouterr()
        assert main(["migrate", "--check"]) == 1
        assert "run `hifi migrate`" in capsys.readouterr().err

    def test_a_revision_that_is_unknown_is_one_line(self, capsys):
        assert main(["migrate", "--to", "9999"]) == 1
        err = capsys.readouterr().err
        assert err.startswith("hifi: error: ")
        assert "9999" in err
        assert err.count("\n") == 1

    def test_a_database_that_is_away_is_one_line(self, monkeypatch, capsys):
        url = f"postgresql://me:geheim@127.0.0.1:{free_loopback_port()}/x"
        monkeypatch.setenv("HIFI_DATABASE_URL", url)
        assert main(["migrate"]) == 1
        err = capsys.readouterr().err
        assert "the database cannot be reached" in err
        assert "geheim" not in err
        assert err.count("\n") == 1

    def test_one_thing_at_a_time(self):
        assert main(["migrate", "--to", "head", "--check"]) == 2

    def test_down_is_refused_while_workers_are_alive(self, home, capsys):
        assert main(["migrate"]) == 0
        with closing(Database(f"sqlite:///{home}/hifi.db")) as database:
            register(database, worker_id="gpu-1-abc", device="cpu", backbones=[], allows_hub=False)
        capsys.readouterr()
        assert main(["migrate", "--down", "base"]) == 1
        err = capsys.readouterr().err
        assert "gpu-1-abc" in err
        assert "--force" in err
        assert main(["migrate", "--check"]) == 0
        assert main(["migrate", "--down", "base", "--force"]) == 0
        assert main(["migrate", "--down", "base"]) == 0  # there is no table of workers

    def test_force_is_of_a_step_down(self, capsys):
        assert main(["migrate", "--force"]) == 2
        assert "--down" in capsys.readouterr().err
