"""``hifi tenants``: the same documents through the API and straight from the tables."""

from __future__ import annotations

import json
import logging

import pytest
import structlog

from hifi.cli import main
from service.app import build_app
from store.database.connection import Database
from store.tenants import authenticate
from tests.service.gateways import served


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
        assert tenant.keys() == {"id", "object", "name", "is_admin", "quotas", "created_at"}
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
