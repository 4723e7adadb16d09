"""Whoever may connect may fill the queue of notifications, which all databases of a server share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from conftest import PgServer
from pyprocrastinate import embedded
from pyprocrastinate.migrate import migrate


@pytest.fixture(scope="module")
def small(pg_server: PgServer) -> Iterator[str]:
    """Return a database with the schema, on a server whose queue of notifications is small."""
    if pg_server.server is None:
        pytest.skip("needs a server of its own, with a small queue of notifications")
    with psycopg.connect(pg_server.dsn(pg_server.maintenance_dbname)) as conn:
        if conn.info.server_version < 170000:
            pytest.skip("needs PostgreSQL 17")
    with embedded.Server(settings={"max_notify_queue_pages": 64}) as server:
        migrate(server.conninfo())
        yield server.conninfo()


@pytest.fixture
def direct_dsn(small: str) -> str:
    return small


@pytest.fixture
def db(session: Callable[..., Any]) -> Any:
    return session()


def fill(conn: Any) -> None:
    for n in range(1000):
        conn.execute("select pg_notify('noise', %s || repeat('z', 7900))", [str(n)])


@pytest.fixture
def full(db: Any, connect: Any) -> Any:
    """Return a transaction that has the queue kept as it is, full, until it ends; by somebody without a right."""
    name = f"nobody_{db.conn.info.backend_pid}"
    db.conn.execute(f"create role {name}")
    deaf, loud = connect(), connect()
    for conn in (deaf, loud):
        conn.execute(f"set session authorization {name}")
    deaf.execute("listen noise")
    deaf.execute("begin; select 1")
    with pytest.raises(psycopg.errors.ProgramLimitExceeded):
        fill(loud)
    yield deaf
    deaf.execute("rollback; unlisten *")
    db.conn.execute(f"drop role {name}")


def test_all_goes_on_that_would_notify(db: Any, worker: Any, session: Any, full: Any, outcome: Any) -> None:
    next_in_line = {"lock": "l", "queue": "other"}
    first, second, third = db.defer(lock="l"), db.defer(**next_in_line), db.defer(**next_in_line)
    job = worker.take()
    # somebody waits, whom each of these would wake
    db.worker("idle").idle()
    assert db.defer(queue="a")
    assert db.defer_many({"queue": "a"}, {"queue": "b"})
    with session(autocommit=False).conn as conn:
        conn.execute("select procrastinate.defer('t', queue => 'c')")
    assert [verdict.verdict for verdict in worker.finish(job)] == ["ok"]
    assert db.status(first) == "succeeded"
    (job,) = worker.fetch()
    assert job.id == second
    assert db.cancel(second, abort=True) == "abort_requested"
    worker.end(job, "released")
    assert db.status(second) == "aborted"
    assert db.cancel(third) == "cancelled"
    assert db.retry(third) is True
    db.call("schedule", name="s", task="t", cron="* * * * *")
    db.conn.execute("update procrastinate.tick set next_at = procrastinate.now_() + interval '1 minute'")
    assert db.worker("another", stalled_after="2 seconds").id
    db.advance("1 hour")
    assert {kind for kind, _ in db.tick()} == {"scheduled"}
    db.call("unschedule", name="s")


def test_who_listens_hears_again_once_there_is_room(db: Any, worker: Any, listener: Any, full: Any) -> None:
    worker.idle()
    db.defer()
    full.execute("commit; unlisten *")
    db.defer()
    assert len(listener.heard()) == 1
