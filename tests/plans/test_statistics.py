"""
The same plans whatever the statistics say.

Statistics are of yesterday: a queue is empty at one time and has a million jobs at the next.
All calls that touch the tables of jobs are made in each state of the statistics, with plans for any
values and plans for the very ones, in new sessions and in one that planned everything while there
were no jobs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

JOBS = 1_000_000

STATES = {
    # The plans of the session that was there before are kept: an insert invalidates none.
    "analysed while empty, then a million": f"""
        insert into procrastinate.job (task, queue, rank)
        select 't', case when g % 100 = 0 then 'small' else 'big' end, g % 10
          from generate_series(1, {JOBS}) as g
    """,
    # as after the first insert into a new database
    "never analysed": """
        update pg_class set reltuples = -1, relpages = 0
         where oid in ('procrastinate.job'::regclass, 'procrastinate.done'::regclass, 'procrastinate.event'::regclass)
    """,
    "analysed, one queue has 99 %": "analyze procrastinate.job, procrastinate.done, procrastinate.event",
    "99.9 % done": """
        with d as (delete from procrastinate.job where id % 1000 <> 0 and state = 'r' returning *)
        insert into procrastinate.done (id, deferred_at, finished_at, rank, attempts, status, task, queue, args)
        select d.id, d.deferred_at, clock_timestamp(), d.rank, 1, 'succeeded', d.task, d.queue, d.args from d
         where d.id % 10 = 0;
        vacuum procrastinate.job
    """,
    "analysed with a million, then empty": """
        delete from procrastinate.job;
        vacuum procrastinate.job
    """,
}
PLANS = {"as shipped": None, "for any values": "force_generic_plan", "for the very values": "force_custom_plan"}

# What a call may read, whatever there is: rows of a table; and buffers.
ROWS = 300
BUFFERS_A_JOB = 50
BUFFERS_A_CALL = 500
BUFFERS_OF_PLANNING = 2_500

WORK = "select * from procrastinate.work_v1(%s, %s::bigint[], %s::bigint[], %s::jsonb, %s, %s, 0, %s::bigint[])"
QUEUES = {"all": None, "one": ["big"], "two": ["small", "big"]}


@dataclass
class Calls:
    """All calls that touch the tables of jobs, with a few jobs that are better than all others."""

    session: Any
    planning: bool
    """Whether the session has yet to read the catalog, or plans anew each time, for which it reads statistics."""
    careless: set[str] = field(default_factory=set)
    workers: dict[str, int] = field(default_factory=dict)

    def __call__(self, query: str, *parameters: Any, jobs: int = 0) -> Any:
        rows = self.session.call(query, *parameters)
        name = query.partition("procrastinate.")[2].partition("(")[0]
        self.careless |= {f"{name}: {scan}" for scan in self.session.careless(ROWS)}
        buffers = BUFFERS_A_CALL + BUFFERS_A_JOB * jobs + BUFFERS_OF_PLANNING * self.planning
        if self.session.buffers > buffers:
            most = max(self.session.scans, key=lambda scan: scan.buffers)
            self.careless.add(f"{name}: {self.session.buffers} buffers, and not {buffers}; the most by {most}")
        return rows

    def defer(self, **options: Any) -> int:
        names = ", ".join(f"{name} => %s" for name in options)
        ((job,),) = self(f"select procrastinate.defer('t', priority => 9, {names})", *options.values())
        return int(job)

    def register(self, queues: list[str] | None) -> int:
        ((worker,),) = self(
            "select procrastinate.register_worker_v1('w', %s::text[], stalled_after => '1 day')", queues
        )
        return int(worker)

    def take(self, worker: int, count: int) -> dict[int, int]:
        """Fetch so many jobs, and return their tokens."""
        rows = self("select id, token from procrastinate.fetch_v1(%s, %s)", worker, count, jobs=count)
        assert len(rows) == count
        return dict(rows)

    def work(
        self, worker: int, done: dict[int, int], outcomes: Any, capacity: int, scan: Any, keep: bool = True
    ) -> Any:
        ends = list(done), list(done.values()), json.dumps(outcomes)
        *rows, last = self(WORK, worker, *ends, keep, capacity, scan, jobs=len(done) + len(outcomes) + capacity)
        assert all(verdict["verdict"] == "ok" for verdict in last[13] or ()), last[13]
        return {row[0]: row[1] for row in rows}, last[14]

    def all(self) -> None:
        """Call everything once."""
        self.ends()
        self.manage()
        self.rescue()
        self.drain()

    def drain(self) -> None:
        """Take from what there is, by all lists of queues, in batches and one by one."""
        jobs = [
            {"task": "t", "queue": queue, "priority": -100} for queue in ("big", "small", "big") for _ in range(220)
        ]
        self.session.call("select count(*) from procrastinate.defer_many(%s)", json.dumps(jobs))
        if not self.workers:
            self.workers = {name: self.register(queues) for name, queues in QUEUES.items()}
        for name, queues in QUEUES.items():
            # the other index of candidates has them in another order, or those of other queues as well
            other = "job_ready" if queues else "job_ready_queue"
            worker, scan, claims = self.workers[name], None, {}
            for keep in (True, False):
                for capacity in (100, 1):
                    claims, scan = self.work(worker, claims, [], capacity, scan, keep)
                    assert len(claims) == capacity
                    self.careless |= {f"of {name} queues: {read}" for read in self.session.scans if read.index == other}
                    self("select * from procrastinate.idle_v1(%s, %s)", worker, scan)
            self("select * from procrastinate.finish_v1(%s, %s, %s)", worker, list(claims), list(claims.values()))

    def ends(self) -> None:
        """End runs in every way, with locks of both kinds and without."""
        worker = self.register(["calls"])
        options: list[dict[str, Any]] = [{"lock": "a"}] * 4 + [{"lock": "b"}] * 3 + [{}] * 4 + [{"queueing_lock": "q"}]
        jobs = [self.defer(queue="calls", **each) for each in options]
        self.defer(queue="calls", queueing_lock="q", on_conflict="ignore")
        self.defer(queue="calls", queueing_lock="q", on_conflict="replace", lock="c")
        many = [{"task": "t", "queue": "calls", "priority": 9, "lock": lock} for lock in ("a", "a", None)]
        many[2]["queueing_lock"] = "r"
        self("select * from procrastinate.defer_many(%s)", json.dumps(many))
        self("select procrastinate.cancel(%s)", jobs[1])
        kinds = [
            ("failed", {"retry": {"in": 0}}), ("failed", {"retry": {"in": 0}}), ("released", {}),
            ("failed", {}), ("aborted", {}), ("unknown_task", {}), ("succeeded", {"result": 1}),
        ]  # fmt: skip
        claims, scan = self.work(worker, {}, [], 10, None)
        first = claims
        for _ in range(9):
            outcomes = [
                {"id": job, "token": claims.pop(job), "outcome": kind} | more
                for job, (kind, more) in zip(list(claims), kinds, strict=False)
            ]
            kinds = []
            claims, scan = self.work(worker, claims, outcomes, 10, scan)
        assert not claims
        # told again: each has ended
        verdicts = self("select * from procrastinate.finish_v1(%s, %s, %s)", worker, list(first), list(first.values()))
        assert {row[2] for row in verdicts} <= {"already", "stale"}
        self("select procrastinate.unregister_worker_v1(%s)", worker)

    def manage(self) -> None:
        """Do what operators do."""
        worker = self.register(["calls"])
        running, completed, taken, ended, waiting = (self.defer(queue="calls", lock=f"m{n}") for n in range(5))
        claims = self.take(worker, 5)
        self("select procrastinate.cancel(%s, abort => true)", running)
        assert self("select abort from procrastinate.heartbeat_v1(%s)", worker) == [([running],)]
        assert len(self("select * from procrastinate.held_v1(%s)", worker)) == 5
        self("select procrastinate.complete_v1(%s, %s)", completed, claims[completed])
        assert self("select procrastinate.retry(%s)", completed) == [(True,)]
        assert self("select procrastinate.retry(%s)", taken) == [(True,)]
        assert self("select procrastinate.finish_job_v1(%s, 'failed')", ended) == [(True,)]
        for job in completed, taken:
            assert self("select procrastinate.cancel(%s, delete => true)", job) == [("deleted",)]
        # with what it holds
        assert self("select procrastinate.unregister_worker_v1(%s)", worker) == [(2,)]
        assert self("select procrastinate.cancel(%s)", waiting) == [("cancelled",)]

    def rescue(self) -> None:
        """Tick after a worker has died."""
        worker = self.register(["calls"])
        jobs = [self.defer(queue="calls", lock=lock) for lock in ("a", None)]
        self.take(worker, 2)
        conn = self.session.conn
        conn.execute("update procrastinate.worker set heartbeat_at = '2020-01-01' where id = %s", [worker])
        conn.execute("update procrastinate.tick set next_at = '2020-01-01', purged_at = null")
        rescued = self("select job_id from procrastinate.tick_v1() where kind = 'rescued'")
        assert sorted(rescued) == [(job,) for job in jobs]
        for job in jobs:
            self("select procrastinate.cancel(%s)", job)


class Stage:
    """A database that goes through the states, each of which follows from the one before."""

    def __init__(self, conn: psycopg.Connection[Any], session: Callable[[], Any]) -> None:
        self.conn = conn
        self.session = session
        self.left = list(STATES)
        self.kept = self.session()
        # what is explained is slow, and a fetch does more when it is slow
        for _ in range(6):
            Calls(self.kept, planning=True).all()
        # plans are made once more, for any values, and kept
        self.conn.execute("truncate procrastinate.job, procrastinate.done, procrastinate.event")
        self.conn.execute("analyze procrastinate.job, procrastinate.done, procrastinate.event")
        Calls(self.kept, planning=True).all()

    def reach(self, state: str) -> None:
        while state in self.left:
            for statement in STATES[self.left.pop(0)].split(";"):
                self.conn.execute(statement)

    @contextmanager
    def planning(self, mode: str | None) -> Iterator[Any]:
        """Open a session in which all functions make plans of this kind."""
        query = """
            select oid::regprocedure from pg_proc
             where pronamespace = 'procrastinate'::regnamespace
               and 'plan_cache_mode=force_generic_plan' = any (proconfig)
        """
        session = self.session()
        if mode is None:
            yield session
            return
        session.set("plan_cache_mode", mode)
        functions = [name for (name,) in self.conn.execute(query)]
        for name in functions:
            self.conn.execute(f"alter function {name} set plan_cache_mode = {mode}")
        yield session
        for name in functions:
            self.conn.execute(f"alter function {name} set plan_cache_mode = force_generic_plan")


@pytest.fixture(scope="module")
def stage(pg_server: Any, pg_template: Any, explaining: Callable[[str], Any]) -> Iterator[Stage]:
    name = f"{pg_template.template_dbname}_plans"
    with psycopg.connect(pg_server.dsn(pg_server.maintenance_dbname), autocommit=True) as admin:
        admin.execute(f"create database {name} template {pg_template.template_dbname}")
        with psycopg.connect(pg_server.dsn(name), autocommit=True) as conn:
            yield Stage(conn, lambda: explaining(pg_server.dsn(name)))
        admin.execute(f"drop database {name} with (force)")


def test_plans_of_a_time_with_no_jobs_do_no_harm_when_there_are_a_million(stage: Stage) -> None:
    stage.reach(next(iter(STATES)))
    stage.kept.explain(True)
    calls = Calls(stage.kept, planning=False)
    calls.all()
    assert not calls.careless, "\n".join(sorted(calls.careless))


@pytest.mark.parametrize("mode", PLANS)
@pytest.mark.parametrize("state", STATES)
def test_no_call_reads_more_than_its_own_jobs(stage: Stage, state: str, mode: str) -> None:
    stage.reach(state)
    with stage.planning(PLANS[mode]) as session:
        calls = Calls(session, planning=True)
        calls.all()
        session.explain(False)
        calls.planning = mode == "for the very values"
        # after five calls PostgreSQL may think that a plan for any values will do
        for _ in range(8 if mode == "as shipped" else 0):
            calls.all()
        session.explain(True)
        calls.all()
    assert not calls.careless, "\n".join(sorted(calls.careless))
