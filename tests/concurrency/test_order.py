"""Priority descending, then id ascending, among all that is ready: whatever makes a fetch fast."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import gates
import psycopg
import pytest
from sessions import Row, Session, finish

Sessions = Callable[[], Session]
Defer = Callable[..., int]
Register = Callable[..., int]

# A scan counts as slow, so that lanes are in use from the second fetch on.
TIMED = "v_took := extract(epoch from clock_timestamp() - v_start) * 1e6 / (100 + v_size);"


def always_lanes(conn: psycopg.Connection[Any]) -> None:
    """Make every scan count as slow."""
    gates.rewrite(conn, "_fetch", TIMED, "v_took := 1e6;")


class Worker:
    """A bare client that keeps what a fetch returns for the next."""

    def __init__(self, conn: psycopg.Connection[Any], worker: int) -> None:
        self.conn = conn
        self.worker = worker
        self.scan: list[int] | None = None
        self.claims: list[Row] = []

    def work(self, capacity: int, extra: int = 0) -> list[int]:
        """End what was fetched last, fetch, and return the ids."""
        return self.call([], capacity, extra)

    def call(self, outcomes: list[dict[str, Any]], capacity: int, extra: int = 0) -> list[int]:
        """As `work`, with other outcomes than success for some."""
        told = {o["id"] for o in outcomes}
        plain = [c for c in self.claims if c[0] not in told]
        *self.claims, (*_, self.scan) = self.conn.execute(
            "select id, token, lock, scan_next from procrastinate.work_v1("
            "%s, %s::bigint[], %s::bigint[], %s::jsonb, true, %s, %s, %s::bigint[])",
            [
                self.worker, [c[0] for c in plain], [c[1] for c in plain], json.dumps(outcomes),
                capacity, extra, self.scan,
            ],
        ).fetchall()  # fmt: skip
        return [c[0] for c in self.claims]

    def until(self, job: int, capacity: int = 1) -> float:
        """Work on until this job is fetched, and return the seconds it took."""
        started = time.monotonic()
        while job not in self.work(capacity):
            assert time.monotonic() < started + 30, "never fetched"
        return time.monotonic() - started


@pytest.fixture(params=["heads", "lanes", "lanes of several queues"])
def worker(request: pytest.FixtureRequest, conn: psycopg.Connection[Any], register: Register) -> Worker:
    """A worker which scans from the head each time, or with lanes."""
    if "lanes" in request.param:
        always_lanes(conn)
    return Worker(conn, register(["other", "default", "third"] if "several" in request.param else None))


def backlog(conn: psycopg.Connection[Any], count: int, priorities: int = 1) -> None:
    conn.execute(
        "select count(*) from procrastinate.defer_many((select jsonb_agg(jsonb_build_object("
        "'task', 't', 'priority', -(n %% %s))) from generate_series(1, %s) as n))",
        [priorities, count],
    )


SIZES = [10_000, pytest.param(100_000, marks=pytest.mark.long)]


@pytest.mark.parametrize("size", SIZES)
def test_a_better_job_is_in_the_very_next_fetch(
    conn: psycopg.Connection[Any], worker: Worker, defer: Defer, size: int
) -> None:
    backlog(conn, size, priorities=3)
    for priority in (1, 5, 2, 5, 1):
        for _ in range(4):
            assert len(worker.work(10)) == 10
        assert worker.scan is not None
        better = defer(priority=priority)
        assert worker.work(10)[0] == better


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("how", ["committed late", "retried", "released", "due"])
def test_a_job_ready_late_is_fetched_within_a_second(
    conn: psycopg.Connection[Any], worker: Worker, session: Sessions, defer: Defer, size: int, how: str
) -> None:
    other = session()
    other.run("begin")
    late = None
    if how == "committed late":
        late = other.one("select procrastinate.defer('t')")
    backlog(conn, size)
    if how == "due":
        conn.execute("select procrastinate.enable_test_clock()")
        late = defer(priority=0, schedule_in="1 hour")
        conn.execute("update procrastinate.job set id = -1 where id = %s", [late])
        late = -1
    for _ in range(5):
        worker.work(10)
    if how == "committed late":
        other.run("commit")
    elif how == "due":
        conn.execute("select procrastinate.advance('2 hours')")
        conn.execute("update procrastinate.worker set heartbeat_at = procrastinate.now_()")
    else:
        late, token, *_ = worker.claims[0]
        told = {"id": late, "token": token, "outcome": "failed" if how == "retried" else "released", "retry": {"in": 0}}
        # ended by somebody else, as after a restart: this worker's own are handed to it anyway
        other.run("rollback")
        other.run(
            "select procrastinate.finish_v1(%s, outcomes => jsonb_build_array(%s::jsonb))",
            worker.worker,
            json.dumps(told),
        )
        worker.claims = worker.claims[1:]
    assert late is not None
    assert worker.until(late) < 1.5
    assert conn.execute("select count(*) > 100 from procrastinate.job").fetchone() == (True,)


@pytest.mark.parametrize("scans", [0, 1, 2, 5])
def test_a_late_commit_is_in_the_next_scan_that_looks_behind_the_lanes(
    conn: psycopg.Connection[Any], register: Register, session: Sessions, defer: Defer, scans: int
) -> None:
    """However many such scans there were since its id was given."""
    always_lanes(conn)
    worker, other = Worker(conn, register()), session()

    def look_behind() -> list[int]:
        defer()
        if worker.scan and worker.scan[0]:
            worker.scan[0] = 1
        return worker.work(9)

    for _ in range(8):
        look_behind()
    assert worker.scan is not None
    assert worker.scan[6] > 1, "lanes are in use"
    other.run("begin")
    late = other.one("select procrastinate.defer('t')")
    for _ in range(scans):
        look_behind()
        defer()
        assert late not in worker.work(9)
    other.run("commit")
    before = worker.scan[6]
    assert late in look_behind() + look_behind()
    assert (worker.scan[6] > before) == (scans > 1), "only a long transaction costs a scan from the head"


def test_a_fetch_that_passes_over_blocked_jobs_brings_no_more_than_there_is_room_for(
    conn: psycopg.Connection[Any], worker: Worker, defer: Defer
) -> None:
    defer("L")
    worker.work(1)
    kept, worker.claims = worker.claims, []
    for _ in range(3):
        defer("L", priority=1)
    backlog(conn, 700)
    assert len(worker.work(1)) == 1
    assert len(worker.work(2, extra=2)) == 4
    worker.claims += kept


def test_what_a_finish_hands_over_is_taken_in_its_order(
    conn: psycopg.Connection[Any], worker: Worker, defer: Defer
) -> None:
    """The next job of a freed lock stands between jobs that are blocked and jobs that are free."""
    other = Worker(conn, worker.worker)
    held = defer("M")
    running = defer("L")
    assert other.work(1) == [held]
    assert worker.work(1) == [running]
    blocked = [defer("M", priority=5) for _ in range(3)]
    handed = defer("L", priority=3)
    free = defer(priority=4)
    worse = defer()
    assert worker.work(1) == [free]
    assert worker.work(1) == [handed]
    assert worker.work(1) == [worse]
    assert other.work(1) == blocked[:1]


def test_jobs_beyond_the_free_slots_come_in_order_too(
    conn: psycopg.Connection[Any], worker: Worker, defer: Defer
) -> None:
    for lock in ("L", "M"):
        defer(lock)
    assert len(worker.work(2)) == 2
    handed = [defer(lock, priority=1) for lock in ("L", "M")]
    # lined up, so that only the end of the running jobs brings them into sight
    assert Worker(conn, worker.worker).work(5) == []
    free = [defer() for _ in range(4)]
    assert worker.work(1, extra=1) == [handed[0], free[0]]
    assert worker.work(1, extra=1) == [handed[1], free[1]]
    assert worker.work(1, extra=5) == free[2:]


@pytest.mark.parametrize("queues", [None, ["default"], ["default", "other"]])
def test_a_fetch_looks_past_what_somebody_holds(
    conn: psycopg.Connection[Any], session: Sessions, register: Register, defer: Defer, queues: list[str] | None
) -> None:
    other = session()
    worker = Worker(conn, register(queues))
    held = [defer() for _ in range(3)]
    free = defer()
    other.run("begin")
    for job in held:
        other.run("select procrastinate.cancel(%s)", job)
    assert worker.work(1) == [free]


@pytest.fixture
def clients(connect: Callable[..., Any], register: Register) -> list[Worker]:
    return [Worker(connect(), register()) for _ in range(2)]


def test_two_workers_take_turns_in_order(conn: psycopg.Connection[Any], clients: list[Worker], defer: Defer) -> None:
    jobs = [defer(priority=n % 3) for n in range(12)]
    expected = sorted(jobs, key=lambda job: (-(jobs.index(job) % 3), job))
    a, b = clients
    got = [i for _ in range(3) for w in (a, b) for i in w.work(2)]
    assert got == expected
    for client in clients:
        conn.execute(finish(client.worker, *client.claims))
