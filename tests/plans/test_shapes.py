"""What a call reads does not grow with the number of jobs, whatever they wait for."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

JOBS = 10_000
CAPACITY = 10

# Of the one that is fetched or ended, and of any call.
BUFFERS_A_JOB = 30
# Before PostgreSQL 17, an index scan for an array of ids goes down the tree anew for each of them.
BUFFERS_A_JOB_ONE_BY_ONE = 40
BUFFERS_A_CALL = 100
# Of a job that was deferred while others waited for its lock, and stands in the line from the next fetch on.
BUFFERS_TO_LINE_UP = 15

WORK = """
    select id, token, scan_next from procrastinate.work_v1(%s, %s::bigint[], %s::bigint[], '[]', true, %s, 0, %s)
"""
TICK = "update procrastinate.tick set next_at = '2020-01-01'"

Fill = Callable[[psycopg.Connection[Any]], Any]


def together(job: Callable[[int], dict[str, Any]]) -> Fill:
    """Defer all in one call."""
    jobs = json.dumps([{"task": "t"} | job(n) for n in range(JOBS)])
    return lambda conn: conn.execute("select count(*) from procrastinate.defer_many(%s)", [jobs])


def singly(lock: str) -> Fill:
    """Defer one by one under a lock."""
    query = "select count(procrastinate.defer('t', lock => %s)) from generate_series(1, %s)"
    return lambda conn: conn.execute(query, [lock, JOBS])


SHAPES = {
    "without locks": together(lambda n: {}),
    "10,000 locks": together(lambda n: {"lock": f"l{n}"}),
    "1,000 locks": together(lambda n: {"lock": f"l{n % 1000}"}),
    "one lock": together(lambda n: {"lock": "l"}),
    "one lock, deferred singly": singly("l"),
    "200 queues": together(lambda n: {"queue": f"q{n % 200}"}),
    "ten priorities": together(lambda n: {"priority": n % 10}),
    "a thousand priorities": together(lambda n: {"priority": n % 1000}),
    "scheduled a year ahead": together(lambda n: {"schedule_in": "1 year"}),
    "blocked behind a lock": together(lambda n: {"lock": "held"}),
    "blocked behind a lock, deferred singly": singly("held"),
}
QUEUES = [None, ["default"], ["q0"], ["default", "q0", "q1"], ["default", *(f"q{n}" for n in range(200))]]


class Calls:
    """A worker of some queues, in a session whose first calls are over."""

    def __init__(self, session: Any, queues: list[str] | None) -> None:
        self.session = session
        self.worker = session.value("select procrastinate.register_worker_v1('w', %s::text[])", queues)
        self.queues = len(queues or [""])
        self.scan: Any = None
        self.claims: list[Any] = []
        self.settled = False
        for _ in range(2):
            self.work()
            self.rest()
        self.settled = True

    def work(self) -> int:
        """End what was fetched, fetch, and return how many jobs that are."""
        ends = [claim[0] for claim in self.claims], [claim[1] for claim in self.claims]
        *claims, last = self.session.call(WORK, self.worker, *ends, CAPACITY, self.scan)
        self.bounded(len(claims) + len(self.claims))
        self.claims, self.scan = claims, last[2]
        return len(claims)

    def rest(self) -> None:
        """Do what a worker does that has nothing else to do."""
        self.session.call("select * from procrastinate.idle_v1(%s, %s)", self.worker, self.scan)
        self.bounded()
        self.session.call("select * from procrastinate.heartbeat_v1(%s)", self.worker)
        self.bounded()

    def bounded(self, jobs: int = 0) -> None:
        """Assert it of the last call."""
        if self.settled:
            # each queue is looked into
            assert not self.session.careless(2 * CAPACITY + 4 * self.queues)
            together = self.session.conn.info.server_version >= 170000
            each = BUFFERS_A_JOB if together else BUFFERS_A_JOB_ONE_BY_ONE
            assert self.session.buffers <= each * jobs + BUFFERS_A_CALL + 4 * self.queues


@pytest.mark.parametrize("shape", SHAPES)
def test_what_a_call_reads_does_not_grow_with_the_jobs(
    conn: psycopg.Connection[Any], dsn: str, explaining: Callable[[str], Any], shape: str
) -> None:
    session = explaining(dsn)
    holder = session.value("select procrastinate.register_worker_v1('holder')")
    session.call("select procrastinate.defer('t', lock => 'held')")
    assert len(session.call("select id from procrastinate.fetch_v1(%s)", holder)) == 1
    SHAPES[shape](conn)

    if "singly" in shape:
        first, lining_up = session.value("select procrastinate.register_worker_v1('first')"), 0
        for _ in range(2):
            session.call("select id from procrastinate.fetch_v1(%s)", first)
            lining_up += session.buffers
        assert BUFFERS_TO_LINE_UP * JOBS >= lining_up > JOBS
        session.call("select procrastinate.unregister_worker_v1(%s)", first)
    fetched = 0
    for queues in QUEUES:
        calls = Calls(session, queues)
        for _ in range(4):
            fetched += calls.work()
            calls.rest()
        assert session.value("select procrastinate.unregister_worker_v1(%s)", calls.worker) == len(calls.claims)
    assert bool(fetched) == (not {"scheduled", "blocked"} & set(shape.split()))


@pytest.mark.parametrize("shape", ["one lock", "10,000 locks", "scheduled a year ahead"])
def test_what_a_defer_and_a_tick_read_does_not_grow_with_the_jobs(
    conn: psycopg.Connection[Any], dsn: str, explaining: Callable[[str], Any], shape: str
) -> None:
    SHAPES[shape](conn)
    session = explaining(dsn)
    for lock, queueing_lock in [(None, None), ("l", None), ("l", "q")]:
        for conflict in ("ignore", "replace", "ignore", "replace"):
            session.call(
                "select procrastinate.defer('t', lock => %s, queueing_lock => %s, on_conflict => %s)",
                lock, queueing_lock, conflict,
            )  # fmt: skip
        assert not session.careless(2 * CAPACITY)
        assert session.buffers <= BUFFERS_A_CALL
    for _ in range(3):
        conn.execute(TICK)
        session.call("select * from procrastinate.tick_v1()")
    assert not session.careless(2 * CAPACITY)
    # it looks at 200 locks, one by one
    assert session.buffers <= 200 * BUFFERS_A_JOB


@pytest.mark.parametrize("held", ["the lock", "its next job"])
def test_jobs_that_wait_for_an_open_transaction_are_looked_at_once(
    conn: psycopg.Connection[Any], dsn: str, explaining: Callable[[str], Any], held: str
) -> None:
    """What is deferred meanwhile, by as many as there may be, keeps no other job waiting."""
    session, other = explaining(dsn), psycopg.connect(dsn)
    calls = Calls(session, None)
    calls.settled = False
    job = session.value("select procrastinate.defer('t', lock => 'l')")
    if held == "the lock":
        calls.work()
        other.execute("select procrastinate.complete_v1(%s, %s)", calls.claims[0][:2])
    else:
        other.execute("select procrastinate.cancel(%s)", [job])
    calls.claims = []
    singly("l")(conn)
    singly("l")(conn)
    session.call("select procrastinate.defer('t')")
    # 20 times 500 are looked at in a call, or one call might take long
    assert [calls.work() for _ in range(2 * JOBS // 10_000 + 1)].count(1) == 1
    calls.work()
    calls.work()
    assert not session.careless(2 * CAPACITY)
    other.commit()
    other.close()
    assert calls.work() == 1


def test_whether_a_lock_is_held_is_seen_without_reading_all_that_run(
    conn: psycopg.Connection[Any], dsn: str, explaining: Callable[[str], Any]
) -> None:
    SHAPES["10,000 locks"](conn)
    ((holder,),) = conn.execute("select procrastinate.register_worker_v1('holder')")
    fetch = functools.partial(conn.execute, "select id from procrastinate.fetch_v1(%s, 200)", [holder])
    assert sum(map(len, iter(lambda: fetch().fetchall(), []))) == JOBS
    session = explaining(dsn)
    calls = Calls(session, None)
    calls.settled = False
    blocked = [{"task": "t", "lock": f"l{n}"} for n in range(CAPACITY)]
    conn.execute(
        "select count(*) from procrastinate.defer_many(%s)", [json.dumps(blocked + [{"task": "t"}] * CAPACITY)]
    )
    assert calls.work() == CAPACITY
    assert not session.careless(2 * CAPACITY)
