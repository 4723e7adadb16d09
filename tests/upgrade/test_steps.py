"""An upgrade goes step by step, and no step stops the queue."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pyprocrastinate.exceptions import ProtocolInUse, ProtocolNotSpoken
from pyprocrastinate.migrate import MigrationError, get_schema, migrate, plan
from pyprocrastinate.protocol import PROTOCOL, check_protocol

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

ADD = "alter table procrastinate.job add column more int;"
RETIRE = f"select procrastinate._raise_oldest({PROTOCOL + 1});"


def names(steps: list[Any]) -> list[str]:
    return [step.name.replace("functions of release ", "") for step in steps]


def protocols(conn: Connection) -> Any:
    return conn.execute("select * from procrastinate.protocol()").fetchone()


def register(conn: Connection, name: str = "ada", protocol: int = PROTOCOL) -> int:
    row = conn.execute("select procrastinate.register_worker_v1(%s, protocol => %s)", [name, protocol]).fetchone()
    assert row
    return int(row[0])


def await_waiter(conn: Connection, condition: str) -> None:
    """Return when a backend waits for a lock like this one."""
    query = f"select from pg_locks where not granted and {condition}"
    for _ in range(10_000):
        if conn.execute(query.encode()).rowcount:
            return
    raise AssertionError("nobody waits")


# Stages


def test_pre_then_post(dsn: str, conn: Connection, release: Any) -> None:
    release.add("migrations/pre/9001_more.sql", ADD)
    release.speaks_the_next_protocol()
    assert names(migrate(dsn, stage="pre")) == ["pre/9001_more", "99.0"]
    assert protocols(conn) == (PROTOCOL, PROTOCOL + 1)
    assert names(migrate(dsn, stage="post")) == ["post/9001_retire"]
    assert protocols(conn) == (PROTOCOL + 1, PROTOCOL + 1)


def test_post_needs_pre(dsn: str, release: Any) -> None:
    release.speaks_the_next_protocol()
    with pytest.raises(MigrationError, match="pre stage of this release is not applied"):
        migrate(dsn, stage="post")


def test_a_file_that_was_changed_after_it_was_applied_is_named(dsn: str, release: Any) -> None:
    path = release.folder / "migrations" / "pre" / "0002_jobs.sql"
    path.write_text(path.read_text() + "-- changed")
    for call in (migrate, plan):
        with pytest.raises(MigrationError, match=r"0002_jobs\.sql was changed"):
            call(dsn)


def test_line_ends_do_not_count_as_a_change(dsn: str, release: Any) -> None:
    for path in release.folder.rglob("*.sql"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert plan(dsn) == []


def test_a_step_that_fails_leaves_nothing_and_says_where(dsn: str, conn: Connection, release: Any) -> None:
    release.add("migrations/pre/9001_more.sql", ADD)
    path = release.add("migrations/pre/9002_wrong.sql", "create table procrastinate.x ();\nselekt 1;")
    with pytest.raises(MigrationError, match=r"^pre/9002_wrong\.sql, line 2: syntax error"):
        migrate(dsn)
    assert conn.execute("select to_regclass('procrastinate.x')").fetchone() == (None,)
    path.write_text("create table procrastinate.x ();")
    assert names(migrate(dsn)) == ["pre/9002_wrong"]


def test_a_step_is_safe_from_the_settings_of_the_role(dsn: str, conn: Connection, release: Any) -> None:
    release.add("migrations/pre/9001_slow.sql", "select pg_sleep(0.05);")
    release.add(
        "migrations/pre/9002_index.sql",
        "-- no-transaction\ncreate index concurrently more on procrastinate.job (task);\n",
    )
    for setting in (
        "statement_timeout = 20",
        "idle_in_transaction_session_timeout = 20",
        "default_transaction_isolation = serializable",
        "search_path = nowhere",
        "check_function_bodies = off",
    ):
        conn.execute(f'alter role current_user in database "{conn.info.dbname}" set {setting}'.encode())
    assert names(migrate(dsn)) == ["pre/9001_slow", "pre/9002_index"]


# Functions


def test_changed_functions_are_loaded_again(dsn: str, conn: Connection, release: Any) -> None:
    assert plan(dsn) == []
    release.add(
        "functions/98_more.sql",
        "create or replace function procrastinate.more() returns int begin atomic select 1; end;",
    )
    assert [step.stage for step in migrate(dsn)] == ["functions"]
    assert conn.execute("select procrastinate.more()").fetchone() == (1,)
    assert migrate(dsn) == []
    loads = "select number from procrastinate.migration where stage = 'functions' order by 1"
    assert conn.execute(loads).fetchall() == [(1,), (2,)]


def test_functions_are_loaded_all_or_none(dsn: str, conn: Connection, release: Any) -> None:
    release.add(
        "functions/97_more.sql",
        "create or replace function procrastinate.more() returns int begin atomic select 1; end;",
    )
    release.add("functions/98_wrong.sql", "create or replace function procrastinate.wrong(")
    with pytest.raises(MigrationError, match=r"functions/98_wrong\.sql"):
        migrate(dsn)
    assert conn.execute("select to_regproc('procrastinate.more')").fetchone() == (None,)


def test_an_older_release_leaves_the_functions_of_a_newer_one(
    dsn: str, release: Any, caplog: pytest.LogCaptureFixture
) -> None:
    added = [release.add("migrations/pre/9001_more.sql", ADD), release.add("functions/98_more.sql", "select 1;")]
    release.is_called("99.0")
    migrate(dsn)
    for path in added:
        path.unlink()
    release.is_called("98.9")
    assert migrate(dsn) == []
    assert "of release 99.0, newer than 98.9" in caplog.text


def test_the_newer_release_is_known_by_its_version_alone(dsn: str, release: Any) -> None:
    path = release.add("functions/98_more.sql", "select 1;")
    release.is_called("10.0")
    migrate(dsn)
    path.unlink()
    release.is_called("9.9")
    assert migrate(dsn) == []
    release.is_called("10.0.1")
    assert names(migrate(dsn)) == ["10.0.1"]


def test_an_older_release_is_told_that_it_is_retired(dsn: str, conn: Connection, release: Any) -> None:
    release.speaks_the_next_protocol()
    migrate(dsn)
    release.add("functions/01_protocol.sql", "select 1;")
    release.is_called("98.9")
    with pytest.raises(ProtocolNotSpoken, match="has retired protocol 1"):
        migrate(dsn)


def test_functions_are_replaced_under_those_who_call_them(dsn: str, connect: Connect, release: Any) -> None:
    done = Event()

    def keep_deferring() -> int:
        deferrer, count = connect(), 0
        while not done.is_set() or count == 0:
            deferrer.execute("select procrastinate.defer('anything', lock => 'one')")
            count += 1
        return count

    def keep_looking() -> int:
        reader, count = connect(), 0
        while not done.is_set() or count == 0:
            reader.execute("select count(*) from procrastinate.jobs")
            count += 1
        return count

    with ThreadPoolExecutor() as pool:
        busy = [pool.submit(keep_deferring), pool.submit(keep_looking)]
        try:
            for number in range(5):
                release.add("functions/98_more.sql", f"select {number};")
                migrate(dsn)
        finally:
            done.set()
        assert all(one.result() for one in busy)


def test_grants_survive_a_load(dsn: str, conn: Connection, release: Any) -> None:
    conn.execute("grant execute on function procrastinate.protocol to pg_monitor")
    conn.execute("grant select on procrastinate.jobs to pg_monitor")
    release.add("functions/00_more.sql", "select 1;")
    migrate(dsn)
    assert conn.execute(
        "select has_function_privilege('pg_monitor', 'procrastinate.protocol()', 'execute'), "
        "has_table_privilege('pg_monitor', 'procrastinate.jobs', 'select')"
    ).fetchone() == (True, True)


def test_added_columns_do_not_upset_those_who_work_already(dsn: str, conn: Connection, release: Any) -> None:
    calls = ("fetch_v1(%s)", "idle_v1(%s)", "heartbeat_v1(%s)")

    def relations(kind: str) -> list[str]:
        rows = conn.execute(
            "select relname from pg_class where relnamespace = 'procrastinate'::regnamespace and relkind = %s", [kind]
        ).fetchall()
        assert rows
        return [name for (name,) in rows]

    def work() -> None:
        worker = register(conn, "ada")
        for options in ("", ", lock => 'l', queueing_lock => 'q'", ", retry => 'true'"):
            conn.execute(f"select procrastinate.defer('t'{options})".encode())
        jobs = conn.execute(
            "select * from procrastinate.work_v1(%s, '{}', '{}', '[]', true, 3, 0, null)", [worker]
        ).fetchall()
        held = [(job[0], job[1]) for job in jobs if job[0] is not None]
        assert len(held) == 3
        outcomes = [
            {"id": held[1][0], "token": held[1][1], "outcome": "released"},
            {"id": held[2][0], "token": held[2][1], "outcome": "failed", "error": {"class": "E"}},
        ]
        conn.execute(
            "select * from procrastinate.finish_v1(%s, %s, %s, %s)",
            [worker, [held[0][0]], [held[0][1]], Jsonb(outcomes)],
        )
        for call in calls:
            conn.execute(f"select * from procrastinate.{call}".encode(), [worker])
        conn.execute("select procrastinate.unregister_worker_v1(%s)", [worker])
        conn.execute("select * from procrastinate.tick_v1()")
        conn.execute("select procrastinate.purge('0', '{succeeded,failed}')")
        conn.execute("select procrastinate.cancel(id, delete => true) from procrastinate.jobs")
        for view in relations("v"):
            conn.execute(f"select * from procrastinate.{view}".encode())

    for _ in range(6):  # often enough for every plan to be a cached one
        work()
    release.add(
        "migrations/pre/9001_more.sql",
        "".join(f"alter table procrastinate.{t} add column more int;" for t in relations("r")),
    )
    migrate(dsn)
    work()


# The protocol


@pytest.mark.parametrize(("oldest", "newest"), [(PROTOCOL, PROTOCOL), (1, PROTOCOL + 3)])
def test_a_schema_that_speaks_our_protocol_will_do(oldest: int, newest: int) -> None:
    check_protocol(oldest, newest)


def test_a_worker_is_told_which_side_to_upgrade() -> None:
    with pytest.raises(ProtocolNotSpoken, match="Upgrade pyprocrastinate"):
        check_protocol(2, 3, mine=1)
    with pytest.raises(ProtocolNotSpoken, match="--stage pre"):
        check_protocol(1, 1, mine=2)


def test_a_worker_of_an_unknown_protocol_cannot_register(conn: Connection) -> None:
    for protocol in (PROTOCOL + 1, 0):
        with pytest.raises(psycopg.DatabaseError) as caught:
            register(conn, protocol=protocol)
        assert caught.value.sqlstate == "JQ005"
        assert caught.value.diag.message_hint


def test_post_waits_until_the_older_workers_are_gone(dsn: str, conn: Connection, release: Any) -> None:
    release.speaks_the_next_protocol()
    old = register(conn, "grace")
    with pytest.raises(ProtocolInUse, match=f"grace .id {old}, protocol {PROTOCOL}.") as caught:
        migrate(dsn)
    assert caught.value.hint
    # what came before is applied, so that the new workers can start
    assert names(plan(dsn)) == ["post/9001_retire"]
    assert protocols(conn) == (PROTOCOL, PROTOCOL + 1)
    register(conn, "new", PROTOCOL + 1)
    conn.execute("select procrastinate.unregister_worker_v1(%s)", [old])
    assert names(migrate(dsn, stage="post")) == ["post/9001_retire"]


def test_a_dead_worker_does_not_hold_post_up(dsn: str, conn: Connection, release: Any) -> None:
    release.speaks_the_next_protocol()
    register(conn)
    conn.execute("select procrastinate.enable_test_clock()")
    conn.execute("select procrastinate.advance('1 hour')")
    assert names(migrate(dsn)) == ["99.0", "post/9001_retire"]


def test_a_worker_that_registers_meanwhile_is_seen(dsn: str, conn: Connection, connect: Connect, release: Any) -> None:
    release.speaks_the_next_protocol()
    migrate(dsn, stage="pre")
    with ThreadPoolExecutor() as pool:
        with connect().transaction() as transaction:
            register(transaction.connection)
            post = pool.submit(migrate, dsn)
            await_waiter(conn, "locktype = 'transactionid'")
        with pytest.raises(ProtocolInUse):
            post.result()


def test_a_worker_that_registers_too_late_is_refused(
    conn: Connection, connect: Connect, dsn: str, release: Any
) -> None:
    release.speaks_the_next_protocol()
    migrate(dsn, stage="pre")
    with ThreadPoolExecutor() as pool:
        with connect().transaction() as transaction:
            transaction.connection.execute(RETIRE)
            late = pool.submit(register, connect())
            await_waiter(conn, "locktype = 'transactionid'")
        with pytest.raises(psycopg.DatabaseError) as caught:
            late.result()
    assert caught.value.sqlstate == "JQ005"


# Locks


def test_two_migrators_at_once_both_succeed(
    dsn: str, conn: Connection, connect: Connect, release: Any, caplog: pytest.LogCaptureFixture
) -> None:
    release.add("migrations/pre/9001_more.sql", ADD)
    with ThreadPoolExecutor() as pool:
        with connect().transaction() as reader:
            reader.connection.execute("select from procrastinate.job")
            first = pool.submit(migrate, dsn)
            await_waiter(conn, "relation = 'procrastinate.job'::regclass")
            second = pool.submit(migrate, dsn)
            await_waiter(conn, "locktype = 'advisory'")
        assert names(first.result()) == ["pre/9001_more"]
        assert second.result() == []
    assert "Another migration is running" in caplog.text


def test_a_migrator_does_not_wait_for_ever(
    dsn: str, conn: Connection, connect: Connect, release: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    release.add("migrations/pre/9001_more.sql", ADD)
    with ThreadPoolExecutor() as pool:
        with connect().transaction() as reader:
            reader.connection.execute("select from procrastinate.job")
            first = pool.submit(migrate, dsn)
            await_waiter(conn, "relation = 'procrastinate.job'::regclass")
            monkeypatch.setattr("pyprocrastinate_migrate.TURN_TIMEOUT", 0.01)
            with pytest.raises(MigrationError, match="another migration is running"):
                migrate(dsn)
        first.result()


def test_a_table_in_use_makes_a_step_give_way_and_try_again(
    dsn: str, connect: Connect, release: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    release.add("migrations/pre/9001_more.sql", ADD)
    monkeypatch.setattr("pyprocrastinate_migrate.LOCK_TIMEOUT", 0.01)
    gave_way, go_on = Event(), Event()

    def pause(_: float) -> None:
        gave_way.set()
        go_on.wait(30)

    monkeypatch.setattr("pyprocrastinate_migrate.time.sleep", pause)
    with ThreadPoolExecutor() as pool:
        with connect().transaction() as reader:
            reader.connection.execute("select from procrastinate.job")
            done = pool.submit(migrate, dsn)
            assert gave_way.wait(30)
            # between its tries it does not stand in anybody's way
            connect().execute("select procrastinate.defer('anything')")
        go_on.set()
        assert names(done.result()) == ["pre/9001_more"]


def test_a_table_in_use_for_too_long_is_an_error(
    dsn: str, connect: Connect, release: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    release.add("migrations/pre/9001_more.sql", ADD)
    pauses: list[float] = []
    monkeypatch.setattr("pyprocrastinate_migrate.LOCK_TIMEOUT", 0.01)
    monkeypatch.setattr("pyprocrastinate_migrate.time.sleep", pauses.append)
    with connect().transaction() as reader:
        reader.connection.execute("select from procrastinate.job")
        with pytest.raises(MigrationError, match="in use at each of 10 attempts"):
            migrate(dsn)
    assert pauses == sorted(pauses)
    assert 30 < sum(pauses) < 120


def test_an_index_is_built_while_a_job_is_deferred(dsn: str, conn: Connection, connect: Connect, release: Any) -> None:
    release.add(
        "migrations/pre/9001_index.sql",
        "-- no-transaction\n"
        "drop index concurrently if exists procrastinate.more;\n"
        "create index concurrently more on procrastinate.job (task);\n",
    )
    with ThreadPoolExecutor() as pool:
        with connect().transaction() as writer:
            writer.connection.execute("select procrastinate.defer('before')")
            done = pool.submit(migrate, dsn)
            await_waiter(conn, "locktype = 'virtualxid'")
            conn.execute("select procrastinate.defer('meanwhile')")
        assert names(done.result()) == ["pre/9001_index"]
    assert conn.execute(
        "select indisvalid from pg_index where indexrelid = 'procrastinate.more'::regclass"
    ).fetchone() == (True,)
    assert migrate(dsn) == []


def test_get_schema_builds_the_same_index_in_its_transaction(
    dsn: str, empty_dsn: str, release: Any, dump: Callable[[str], list[str]]
) -> None:
    release.add(
        "migrations/pre/9001_index.sql",
        "-- no-transaction\ncreate index concurrently more on procrastinate.job (task);\n",
    )
    with psycopg.connect(empty_dsn) as conn:
        conn.execute(get_schema().encode())
    migrate(dsn)
    assert dump(empty_dsn) == dump(dsn)
