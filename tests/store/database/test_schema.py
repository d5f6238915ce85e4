"""store.database.schema and migrations/: up and down, on both databases, with rows and without."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from store.administration.audit import ON_THE_SERVER, record
from store.database.connection import Database
from store.database.schema import check, downgrade, upgrade
from store.errors import SchemaError
from store.states import JobStatus
from store.tables import Base

FIRST = "0001"
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
_STAMP = {"created_at": NOW}
FIRST = "0001"  # the revision whose columns the rows below have
# A row of each kind, with the columns that the first revision has; owners come before the owned.
ROWS: dict[str, dict[str, Any]] = {
    "tenants": {"id": "ten_a", "name": "a", "is_admin": False, **_STAMP},
    "backbones": {
        "id": "m",
        "architecture": "bert",
        "fingerprint": "f",
        "updated_at": NOW,
        **dict.fromkeys(("num_layers", "num_heads", "num_key_value_heads", "head_dim"), 2),
        "hidden_size": 4,
        "parameters": 99,
    },
    "datasets": {
        "id": "ds_a",
        "tenant_id": "ten_a",
        "splits": {},
        "columns": {"x": "y"},
        "bytes": 1,
        "sha256": "0",
        **_STAMP,
    },
    "jobs": {
        "id": "job_a",
        "tenant_id": "ten_a",
        "status": "queued",
        "metadata": {},
        "spec": {"k": 3},
        "model": "m",
        "needs_hub": False,
        "attempt": 1,
        "fence": 0,
        "last_event": 1,
        "token_at": NOW,
        **_STAMP,
    },
    "job_events": {
        "job_id": "job_a",
        "number": 1,
        "type": "status",
        "level": "info",
        "message": "queued",
        "data": {},
        **_STAMP,
    },
}


@pytest.fixture
def empty_url(database_url: str) -> Iterator[str]:
    """Yield the URL of a database without tables; drop all tables afterwards."""
    drop_all(database_url)
    yield database_url
    drop_all(database_url)


def drop_all(url: str) -> None:
    database = Database(url)
    metadata = sa.MetaData()
    metadata.reflect(database.engine)
    metadata.drop_all(database.engine)
    database.close()


def inspect(url: str) -> sa.Inspector:
    engine = Database(url).engine
    inspector = sa.inspect(engine)
    engine.dispose()
    return inspector


def differences(url: str) -> list[object]:
    database = Database(url)
    options = {"compare_type": True, "compare_server_default": True}
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=options)
        found: list[object] = compare_metadata(context, Base.metadata)
    database.close()
    return found


def where_of(url: str) -> dict[str | None, str]:
    """Return the condition of each partial index of jobs, which Alembic does not compare."""
    return {
        index["name"]: str(condition).replace("::character varying", "")
        for index in inspect(url).get_indexes("jobs")
        for key, condition in index.get("dialect_options", {}).items()
        if key.endswith("_where")
    }


def add_rows(url: str) -> None:
    """Add a row of each kind."""
    database = Database(url)
    tables = sa.MetaData()
    tables.reflect(database.engine)
    with database.write() as session:
        for table, row in ROWS.items():
            session.execute(sa.insert(tables.tables[table]), row)
    database.close()


def count_rows(url: str) -> dict[str, int]:
    database = Database(url)
    with database.read() as session:
        counts = {
            table: session.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar_one()  # noqa: S608
            for table in ROWS
        }
    database.close()
    return counts


class TestUpgrade:
    def test_makes_the_tables_that_the_code_has(self, empty_url: str):
        upgrade(empty_url)
        assert differences(empty_url) == []

    def test_makes_the_indexes_and_constraints_that_the_code_has(self, empty_url: str):
        upgrade(empty_url)
        by_migration = where_of(empty_url), checks_of(empty_url)
        drop_all(empty_url)
        database = Database(empty_url)
        Base.metadata.create_all(database.engine)
        database.close()
        assert by_migration == (where_of(empty_url), checks_of(empty_url))
        assert len(by_migration[0]) == 2

    def test_again_changes_nothing(self, empty_url: str):
        upgrade(empty_url)
        add_rows_of_now(empty_url)
        upgrade(empty_url)
        assert count_rows(empty_url)["jobs"] == 1

    def test_keeps_the_rows_of_the_first_revision(self, empty_url: str):
        upgrade(empty_url, FIRST)
        add_rows(empty_url)
        upgrade(empty_url)
        assert differences(empty_url) == []
        assert set(count_rows(empty_url).values()) == {1}
        database = Database(empty_url)
        with database.read() as session:
            backbone = session.execute(
                sa.text("SELECT weights_per_head, task_heads, max_positions FROM backbones")
            ).one()
        database.close()
        assert (backbone[0], backbone[2]) == (0, None)
        assert backbone[1] in ("{}", {})

    @pytest.mark.process
    def test_of_two_processes_at_once(self, empty_url: str):
        code = "import sys; from store.database.schema import upgrade; upgrade(sys.argv[1])"
        command = [sys.executable, "-c", code, empty_url]
        with ThreadPoolExecutor(3) as pool:
            runs = list(pool.map(lambda _: subprocess.run(command, check=False), range(3)))
        assert [run.returncode for run in runs] == [0, 0, 0]
        assert differences(empty_url) == []

    def test_that_fails_leaves_everything_as_it_was(self, empty_url: str):
        upgrade(empty_url, FIRST)
        database = Database(empty_url)
        with database.write() as session:
            session.execute(sa.text("CREATE TABLE counters (mine INTEGER)"))  # in 0002's way
        database.close()
        with pytest.raises(sa.exc.DBAPIError):
            upgrade(empty_url)
        columns = {column["name"] for column in inspect(empty_url).get_columns("backbones")}
        assert "task_heads" not in columns

    def test_to_an_unknown_revision_is_refused(self, empty_url: str):
        with pytest.raises(SchemaError, match="9999"):
            upgrade(empty_url, "9999")

    def test_brings_the_names_of_tenants_into_one_form(self, empty_url: str):
        upgrade(empty_url, FIRST)
        names = ["a", " a ", "\uff41", "b\u200b", "\u200b", "b"]
        database = Database(empty_url)
        with database.write() as session:
            for number, name in enumerate(names):
                later = NOW + timedelta(seconds=number)
                row = {"id": f"ten_{number}", "name": name, "is_admin": False, "created_at": later}
                session.execute(sa.insert(Base.metadata.tables["tenants"]), row)
        upgrade(empty_url)
        with database.read() as session:
            found = dict(session.execute(sa.text("SELECT id, name FROM tenants")).all())
        database.close()
        assert found == {
            "ten_0": "a",
            "ten_1": "a ten_1",
            "ten_2": "a ten_2",
            "ten_3": "b",
            "ten_4": "ten_4",
            "ten_5": "b ten_5",
        }

    @pytest.mark.parametrize("change", ["UPDATE audit_events SET action = 'x'", "DELETE"])
    def test_lets_nobody_change_the_audit_trail(self, empty_url: str, change: str):
        upgrade(empty_url)
        database = Database(empty_url)
        with database.write() as session:
            record(session, ON_THE_SERVER, "key.created", tenant_id="ten_a", subject_id="key_a")
        statement = "DELETE FROM audit_events" if change == "DELETE" else change
        refused = pytest.raises(sa.exc.DBAPIError, match="audit trail cannot be changed")
        with database.engine.connect() as connection, refused:
            connection.execute(sa.text(statement))
        with database.read() as session:
            assert session.scalar(sa.text("SELECT action FROM audit_events")) == "key.created"
        database.close()


class TestDowngrade:
    def test_to_base_leaves_no_table(self, empty_url: str):
        upgrade(empty_url)
        downgrade(empty_url, "base")
        assert set(inspect(empty_url).get_table_names()) <= {"alembic_version"}

    def test_keeps_the_rows_and_leads_back(self, empty_url: str):
        upgrade(empty_url)
        add_rows_of_now(empty_url)
        checks, indexes = checks_of(empty_url), where_of(empty_url)
        downgrade(empty_url, "-1")
        assert set(count_rows(empty_url).values()) == {1}
        assert (checks_of(empty_url), where_of(empty_url)) == (checks, indexes)
        upgrade(empty_url)
        assert differences(empty_url) == []
        assert set(count_rows(empty_url).values()) == {1}


def add_rows_of_now(url: str) -> None:
    downgrade(url, FIRST)
    add_rows(url)
    upgrade(url)


def checks_of(url: str) -> list[object]:
    """Return the states that a job's row may have: the constraint must survive SQLite's copying."""
    assert [each["name"] for each in inspect(url).get_check_constraints("jobs")] == [
        "ck_jobs_status"
    ]
    (check_,) = inspect(url).get_check_constraints("jobs")
    return sorted(status for status in JobStatus if f"'{status}'" in check_["sqltext"])


class TestCheck:
    def test_names_the_command_where_there_are_no_tables(self, empty_url: str):
        database = Database(empty_url)
        with pytest.raises(SchemaError, match=r"no tables yet.*hifi migrate"):
            check(database)
        database.close()

    def test_refuses_an_older_revision_and_takes_the_newest(self, empty_url: str):
        database = Database(empty_url)
        upgrade(empty_url, FIRST)
        with pytest.raises(SchemaError, match="is at revision 0001"):
            check(database)
        upgrade(empty_url)
        check(database)
        database.close()

    def test_tables_of_a_newer_version_are_not_touched(self, empty_url: str):
        upgrade(empty_url)
        database = Database(empty_url)
        with database.write() as session:
            session.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(SchemaError):
            check(database)
        with pytest.raises(SchemaError, match="older than the tables"):
            upgrade(empty_url)
        database.close()
