"""A schema is the same, whichever way it came into the database."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from pyprocrastinate import _sqlfiles
from pyprocrastinate.migrate import MigrationError, get_schema, migrate, plan, script

Dump = Callable[[str], list[str]]


def psql(pg_server: Any, dsn: str, *options: str | Path, text: str | None = None) -> str:
    command = [pg_server.tool("psql"), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1"]
    done = subprocess.run(
        [*command, *options, f"--dbname={dsn}"],
        input=text,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    return done.stdout + done.stderr


def by_psql_from_the_script(pg_server: Any, dsn: str) -> None:
    assert psql(pg_server, dsn, text=script(plan(dsn))) == ""


def by_psql_from_get_schema(pg_server: Any, dsn: str) -> None:
    assert psql(pg_server, dsn, "--single-transaction", text=get_schema()) == ""


def by_get_schema_in_a_transaction(_: Any, dsn: str) -> None:
    with psycopg.connect(dsn) as conn:
        settings = "select name, setting from pg_settings where name not like 'plpgsql.%' order by 1"
        before = conn.execute(settings).fetchall()
        conn.execute(get_schema().encode())
        # whatever else the user does in this transaction goes by the user's own settings
        assert before == conn.execute(settings).fetchall()


def by_stages(_: Any, dsn: str) -> None:
    migrate(dsn, stage="pre")
    migrate(dsn, stage="post")


@pytest.mark.scenario(75)
@pytest.mark.parametrize(
    "install", [by_psql_from_the_script, by_psql_from_get_schema, by_get_schema_in_a_transaction, by_stages]
)
def test_every_way_gives_the_same_schema_and_record(
    pg_server: Any, dsn: str, empty_dsn: str, dump: Dump, install: Callable[[Any, str], None]
) -> None:
    install(pg_server, empty_dsn)
    assert dump(empty_dsn) == dump(dsn)
    assert migrate(empty_dsn) == []


def test_files_by_hand_give_the_same_schema_without_a_record(
    pg_server: Any, dsn: str, empty_dsn: str, dump: Dump
) -> None:
    for step in plan(empty_dsn):
        for path, _ in step.files:
            assert psql(pg_server, empty_dsn, f"--file={path}") == ""
    assert dump(empty_dsn) == [line for line in dump(dsn) if not line.startswith("applied ")]
    with pytest.raises(MigrationError, match="without a record"):
        migrate(empty_dsn)


def test_pg_dump_sees_no_difference_either(pg_server: Any, dsn: str, empty_dsn: str) -> None:
    def pg_dump(conninfo: str) -> list[str]:
        command = [pg_server.tool("pg_dump"), "--schema-only", f"--dbname={conninfo}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "server version mismatch" in done.stderr:
            pytest.skip("pg_dump is older than the server")
        assert done.returncode == 0, done.stderr
        # newer ones bracket the dump with a random key
        return [line for line in done.stdout.splitlines() if "restrict " not in line]

    by_get_schema_in_a_transaction(pg_server, empty_dsn)
    assert pg_dump(empty_dsn) == pg_dump(dsn)


def test_the_dump_sees_what_matters(conn: psycopg.Connection[Any], dsn: str, dump: Dump) -> None:
    changes = (
        "alter table procrastinate.job add column more int",
        "alter table procrastinate.job set (fillfactor = 71)",
        "drop index procrastinate.job_ready",
        "grant execute on function procrastinate.defer to pg_monitor",
        "comment on function procrastinate.defer is 'else'",
        "alter function procrastinate.defer reset search_path",
        "create function procrastinate.more() returns void begin atomic end",
        "create view procrastinate.more as select 1 as one",
        "grant select on procrastinate.job to pg_monitor",
        "update procrastinate.protocol_range set newest = 7",
    )
    seen = [dump(dsn)]
    for change in changes:
        conn.execute(change)
        assert dump(dsn) != seen[-1], change
        seen.append(dump(dsn))


def test_twice_is_harmless(dsn: str, dump: Dump) -> None:
    before = dump(dsn)
    assert plan(dsn) == []
    assert migrate(dsn) == []
    assert "begin" not in script(plan(dsn))
    assert dump(dsn) == before


def test_functions_loaded_twice_change_nothing(conn: psycopg.Connection[Any], dsn: str, dump: Dump) -> None:
    before = dump(dsn)
    with conn.transaction():
        for path in _sqlfiles.function_files():
            conn.execute(path.read_bytes())
    assert dump(dsn) == before


def test_a_plan_changes_nothing(empty_dsn: str) -> None:
    stages = [step.stage for step in plan(empty_dsn)]
    assert stages == sorted(stages, key=["pre", "functions", "post"].index)
    assert "functions" in stages
    with psycopg.connect(empty_dsn) as conn:
        assert conn.execute("select to_regnamespace('procrastinate')").fetchone() == (None,)


def test_what_was_applied_is_recorded(conn: psycopg.Connection[Any]) -> None:
    rows = conn.execute("select number, stage, slug from procrastinate.migration").fetchall()
    assert (1, "pre", "schema") in rows
    assert len([row for row in rows if row[1] == "functions"]) == 1
    assert len(rows) == 1 + sum(len(_sqlfiles.migration_files(stage)) for stage in ("pre", "post"))


@pytest.fixture
def latin1_dsn(pg_server: Any, empty_dsn: str) -> Iterator[str]:
    name = sql.Identifier(f"{conninfo_to_dict(empty_dsn)['dbname']}_latin1")
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("create database {} encoding 'LATIN1' locale 'C' template template0").format(name))
        yield pg_server.dsn(name._obj[0])
        conn.execute(sql.SQL("drop database {} with (force)").format(name))


def test_only_utf8_will_do(pg_server: Any, latin1_dsn: str, empty_dsn: str) -> None:
    with pytest.raises(MigrationError, match="is LATIN1, not UTF8"):
        migrate(latin1_dsn)
    for text in (script(plan(empty_dsn)), get_schema()):
        said = psql(pg_server, latin1_dsn, text=text)
        assert "is LATIN1, not UTF8" in said
        assert "template template0" in said
    with psycopg.connect(latin1_dsn) as conn:
        assert conn.execute("select to_regnamespace('procrastinate')").fetchone() == (None,)


def test_a_schema_that_somebody_else_made_is_left_alone(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn) as conn:
        conn.execute("create schema procrastinate")
    with pytest.raises(MigrationError, match="without a record"):
        migrate(empty_dsn)
