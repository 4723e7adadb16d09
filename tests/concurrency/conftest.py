"""Sessions and workers for tests of what happens at the same time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "faults_support"))

import gates
from sessions import Session

Register = Callable[..., int]

# Two jobs running under one lock: whatever else goes wrong, this index would raise it.
BACKSTOP = """
create unique index backstop on procrastinate.job (lock) where lock is not null and state = 'x'
"""
ORPHANS = """
select distinct lock from procrastinate.job as j
 where state in ('w', 'b')
   and not exists (
     select from procrastinate.job as k where k.lock = j.lock and k.state in ('r', 'h', 'x'))
"""


@pytest.fixture(autouse=True)
def backstop(conn: psycopg.Connection[Any]) -> Iterator[None]:
    """Forbid a second running job under a lock, and let no test leave a deadlock behind."""
    conn.execute(BACKSTOP)
    yield
    conn.execute("select pg_stat_force_next_flush()")
    deadlocks = conn.execute("select deadlocks from pg_stat_database where datname = current_database()").fetchone()
    assert deadlocks == (0,)


@pytest.fixture
def patient(conn: psycopg.Connection[Any]) -> None:
    """Let an end wait for a fetch that looks at its lock, however long the test has it take."""
    gates.rewrite(conn, "_await_locks", "interval '100 milliseconds'", "interval '1 minute'")


@pytest.fixture
def session(connect: Callable[..., psycopg.Connection[Any]]) -> Iterator[Callable[[], Session]]:
    """Return a function that opens sessions which may block each other."""
    watcher = connect()
    opened: list[Session] = []

    def session() -> Session:
        opened.append(Session(connect, watcher))
        return opened[-1]

    yield session
    for each in opened:
        each.close()


@pytest.fixture
def register(conn: psycopg.Connection[Any]) -> Register:
    """Return a function that registers a worker."""

    def register(queues: list[str] | None = None, stalled_after: str | None = None) -> int:
        row = conn.execute(
            "select procrastinate.register_worker_v1('w', %s, stalled_after => %s)", [queues, stalled_after]
        ).fetchone()
        assert row is not None
        return int(row[0])

    return register


@pytest.fixture
def defer(conn: psycopg.Connection[Any]) -> Callable[..., int]:
    """Return a function that defers a job, committed at once."""

    def defer(lock: str | None = None, **more: Any) -> int:
        names = ["task", "lock", *more]
        row = conn.execute(
            f"select procrastinate.defer({', '.join(f'{n} => %s' for n in names)})", ["task", lock, *more.values()]
        ).fetchone()
        assert row is not None
        return int(row[0])

    return defer


@pytest.fixture
def states(conn: psycopg.Connection[Any]) -> Callable[[], dict[int, str]]:
    """Return a function that tells the state of each waiting or running job."""

    def states() -> dict[int, str]:
        return dict(conn.execute("select id, state from procrastinate.job order by id").fetchall())

    return states


@pytest.fixture
def orphans(conn: psycopg.Connection[Any]) -> Callable[[], list[Any]]:
    """Return a function that lists locks under which jobs wait with nothing to call them up."""
    return lambda: conn.execute(ORPHANS).fetchall()
