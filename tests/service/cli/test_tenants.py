"""``hifi tenants``: the same documents through the API and straight from the tables."""

from __future__ import annotations

import json
import logging

import pytest
import structlog

from hifi.cli import main
from service.app import build_app
from store.administration.keys import authenticate
from store.database.connection import Database
from tests.service.gateways import served
from tests.store.queues import add_job


@pytest.fixture(params=["tables", "server"])
def door(request, settings, monkeypatch):
    """Run the commands on the database, then through a gateway on the same database."""
    monkeypatch.setenv("HIFI_HOME", str(settings.home))
    monkeypatch.setenv("HIFI_DATABASE_URL", settings.database_url)
    monkeypatch.delenv("HIFI_URL", raising=False)
    if request.param == "tables":
        yield request.param
        return
    admin = request.getfixturevalue("admin")
    # The gateway's logs would go to the commands' stdout, since both are one process here.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with served(build_app(settings)) as url:
        monkeypatch.setenv("HIFI_URL", url)
        monkeypatch.setenv("HIFI_API_KEY", admin.secret)
        yield request.param


@pytest.fixture
def ask(capsys):
    """Return a function that runs a command with --json and returns its document."""

    def run(*arguments):
        assert main(["tenants", *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.mark.usefixtures("door")
class TestTenants:
    def test_a_tenant_a_key_its_use_and_its_end(self, ask, settings):
        tenant = ask("create", "acme", "--max-queued", "7")
        assert tenant.keys() == {
            *("id", "object", "name", "is_admin", "quotas", "created_at", "suspended_at")
        }
        assert (tenant["name"], tenant["is_admin"]) == ("acme", False)
        assert tenant["quotas"]["max_queued"] == 7
        assert tenant["quotas"]["max_running"] == settings.tenant_max_running
        key = ask("keys", "create", "acme", "--name", "ci")
        assert (key["tenant"], key["name"]) == (tenant["id"], "ci")
        database = Database(settings.database_url)
        with database.read() as session:
            assert authenticate(session, key["secret"]).tenant_id == tenant["id"]
        secret = key.pop("secret")
        assert ask("keys", "list", "acme")["data"] == [key]
        assert ask("keys", "revoke", key["id"])["deleted"] is True
        assert ask("keys", "list", tenant["id"])["data"][0]["revoked_at"] is not None
        with database.read() as session:
            assert authenticate(session, secret) is None
        database.close()

    def test_a_tenant_is_found_by_a_name_that_looks_the_same(self, ask):
        tenant = ask("create", " search  team ")
        assert tenant["name"] == "search team"
        assert ask("usage", "\uff53earch team")["tenant"] == tenant["id"]

    def test_a_tenant_is_suspended_resumed_and_deleted(self, ask, capsys):
        ask("create", "acme", "--with-key")
        assert ask("suspend", "acme")["suspended_at"] is not None
        assert main(["tenants", "list"]) == 0
        assert "suspended" in capsys.readouterr().out
        assert ask("resume", "acme")["suspended_at"] is None
        assert main(["tenants", "delete", "acme"]) == 1
        assert "cannot be undone: add --yes" in capsys.readouterr().err
        assert ask("delete", "acme", "--yes")["deleted"] is True
        assert "acme" not in [tenant["name"] for tenant in ask("list")["data"]]

    def test_keys_expire_and_are_replaced(self, ask):
        ask("create", "acme")
        key = ask("keys", "create", "acme", "--expires-days", "30")
        assert key["expires_at"] is not None
        new = ask("keys", "replace", key["id"], "--grace-hours", "1")
        assert new["secret"] != key["secret"]
        assert [each["id"] for each in ask("keys", "list", "acme")["data"]] == [
            *(new["id"], key["id"])
        ]

    def test_the_trail_says_what_was_done_and_from_where(self, door, ask, capsys):
        tenant = ask("create", "acme", "--with-key")
        listed = ask("audit", "--tenant", "acme")["data"]
        assert [event["action"] for event in listed] == ["key.created", "tenant.created"]
        assert listed[0]["subject"] == tenant["key"]["id"]
        is_here = door == "tables"
        assert {value is None for value in listed[0]["actor"].values()} == {is_here}
        assert main(["tenants", "audit", "--action", "tenant.created"]) == 0
        out = capsys.readouterr().out
        assert ("the server's command line" in out) is is_here
        assert "key.created" not in out

    def test_own_keys_are_those_of_the_key_that_is_used(self, door, capsys):
        code = main(["tenants", "keys", "list"])
        captured = capsys.readouterr()
        if door == "tables":
            assert (code, "no tenant: name the one whose keys to list" in captured.err) == (1, True)
        else:
            assert (code, len(captured.out.splitlines())) == (0, 2)

    def test_quotas_are_changed_and_reset(self, ask, settings):
        ask("create", "acme", "--max-queued", "7")
        changed = ask("update", "acme", "--max-bytes", "9", "--max-queued", "default")
        assert changed["quotas"] == {
            "max_queued": settings.tenant_max_queued,
            "max_running": settings.tenant_max_running,
            "max_bytes": 9,
        }
        assert ask("usage", "acme")["quotas"] == changed["quotas"]

    def test_the_list_and_the_usage(self, ask):
        tenant = ask("create", "acme", "--admin")
        listed = ask("list")
        assert listed["data"][0] == tenant
        assert listed["first_id"] == tenant["id"]
        usage = ask("usage", "acme")
        assert usage == ask("usage", tenant["id"])
        assert (usage["tenant"], usage["stored_bytes"]) == (tenant["id"], 0)
        assert set(usage["jobs"].values()) == {0}

    def test_a_key_at_once(self, ask):
        created = ask("create", "acme", "--with-key")
        assert created["key"]["secret"].startswith("hifi_")
        assert created["key"]["tenant"] == created["id"]

    def test_for_people(self, capsys):
        assert main(["tenants", "create", "acme", "--admin"]) == 0
        captured = capsys.readouterr()
        assert "acme" in captured.out
        assert "administrator  yes" in captured.out
        assert "hifi tenants keys create ten_" in captured.err
        assert main(["tenants", "list"]) == 0
        assert "administrator" in capsys.readouterr().out
        assert main(["tenants", "usage", "acme"]) == 0
        assert "0 bytes of" in capsys.readouterr().out
        assert main(["tenants", "keys", "create", "acme"]) == 0
        out = capsys.readouterr().out
        assert "shown only once" in out
        key = next(line.split()[1] for line in out.splitlines() if line.startswith("key"))
        assert main(["tenants", "keys", "list", "acme"]) == 0
        assert key in capsys.readouterr().out
        assert main(["tenants", "update", "acme", "--max-running", "2"]) == 0
        assert "2 running" in capsys.readouterr().out
        assert main(["tenants", "keys", "revoke", key]) == 0
        assert capsys.readouterr().out == f"revoked  {key}\n"

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["create", ""], "name"),
            (["create", "x", "--max-queued", "-1"], "max_queued"),
            (["update", "nobody", "--max-queued", "1"], "there is no tenant 'nobody'"),
            (["update", "ten_0", "--max-queued", "1"], "there is no tenant 'ten_0'"),
            (["keys", "list", "ten_0"], "there is no tenant 'ten_0'"),
            (["usage", "nobody"], "there is no tenant 'nobody'"),
            (["usage", "ten_0"], "there is no tenant 'ten_0'"),
            (["keys", "create", "ten_0"], "there is no tenant 'ten_0'"),
            (["keys", "revoke", "key_0"], "there is no key 'key_0'"),
            (["keys", "replace", "key_0"], "there is no key 'key_0'"),
            (["suspend", "nobody"], "there is no tenant 'nobody'"),
            (["create", "a\u202eb"], "U+202E"),
        ],
    )
    def test_an_invalid_value_is_one_line(self, arguments, told, capsys):
        assert main(["tenants", *arguments]) == 1
        err = capsys.readouterr().err
        assert err.startswith("hifi: error: ")
        assert told in err
        assert err.count("\n") == 1

    def test_a_name_that_is_taken_is_one_line(self, ask, capsys):
        ask("create", "acme")
        assert main(["tenants", "create", "acme"]) == 1
        assert "a tenant named 'acme' already exists" in capsys.readouterr().err


class TestTables:
    def test_tables_that_are_not_there_are_one_line(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("HIFI_HOME", str(tmp_path))
        monkeypatch.delenv("HIFI_URL", raising=False)
        monkeypatch.delenv("HIFI_DATABASE_URL", raising=False)
        assert main(["tenants", "create", "root", "--admin"]) == 1
        assert "hifi migrate" in capsys.readouterr().err

    def test_help_says_which_way_is_used(self, capsys):
        assert main(["tenants", "create", "--help"]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert "Without either, the tables of HIFI_DATABASE_URL are used directly" in out


@pytest.mark.usefixtures("door")
class TestAllJobs:
    """``hifi jobs … --all-tenants``, which administrators run through the same two doors."""

    @pytest.fixture
    def job(self, database, alice) -> str:
        return add_job(database, alice.tenant_id, name="secret")

    def ask(self, capsys, *arguments):
        assert main(["jobs", *arguments, "--all-tenants", "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    def test_are_listed_by_tenant_and_status(self, capsys, job, alice, bob):
        (found,) = self.ask(capsys, "list")["data"]
        assert (found["id"], found["tenant"], found["status"]) == (job, alice.tenant_id, "queued")
        assert "secret" not in str(found)
        assert self.ask(capsys, "list", "--tenant", bob.tenant_id)["data"] == []
        assert self.ask(capsys, "list", "--status", "failed")["data"] == []
        assert main(["jobs", "list", "--all-tenants"]) == 0
        assert alice.tenant_id in capsys.readouterr().out

    def test_are_cancelled(self, capsys, job):
        assert self.ask(capsys, "cancel", job)["status"] == "cancelled"
        assert main(["jobs", "cancel", "--all-tenants", job]) == 1
        assert "is cancelled" in capsys.readouterr().err


def test_a_tenant_is_named_only_among_all(capsys):
    assert main(["jobs", "list", "--tenant", "ten_1"]) == 2
    assert "--all-tenants" in capsys.readouterr().err


def test_jobs_of_all_tenants_have_no_names(capsys):
    assert main(["jobs", "list", "--all-tenants", "--name", "mine"]) == 2
    assert "--name does not go with --all-tenants" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["tenants", "jobs", "datasets", "models"])
@pytest.mark.parametrize("limit", ["0", "101", "-1", "2e1", "many"])
def test_a_limit_outside_the_range_is_a_usage_error(command, limit, capsys):
    assert main([command, "list", f"--limit={limit}"]) == 2
    assert f"'{limit}' is not a whole number from 1 to 100" in capsys.readouterr().err
