"""This project's SQL in a bare loop: what the schema can do, whatever the worker does with it."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks import load as loads
from benchmarks.systems import Connection, System, connect, one_by_one

if TYPE_CHECKING:
    from benchmarks.load import Load, Work

WORK = "select * from procrastinate.work_v1(%s, %s::bigint[], %s::bigint[], '[]', %s, %s, 0, %s)"
# What must be true of the jobs that the newest worker has run, as a user sees them.
RAN = """
with ran as materialized (
  select j.* from procrastinate.jobs as j
   where j.status = 'succeeded' and j.worker_id = (select max(w.worker_id) from procrastinate.jobs as w))
select """
CHECKS = {
    "all that ran are listed": "count(*) = %(jobs)s from ran",
    # A worker may give a job back that it has not begun half a second after its fetch.
    "jobs without a lock have started in order": """
        not exists (
          select from (select started_at, lag(started_at) over (order by priority desc, id) as before
                         from ran where lock is null) as o
           where o.started_at < o.before and o.before < o.started_at + interval '500 ms')""",
    "jobs of one lock have run one after the other, in order": """
        not exists (
          select from (select started_at, lag(finished_at) over (partition by lock order by priority desc, id) as before
                         from ran where lock is not null) as o
           where o.started_at < o.before)""",
    "each has its events": """
        (select array_agg(e.type order by e.at, e.id desc) = '{deferred,started,succeeded}'
           from procrastinate.events as e where e.job_id = (select max(id) from ran))""",
}
HOOK = """
create schema if not exists bench;
create or replace function bench.hook(job_ids bigint[]) returns void language sql as '';
select procrastinate.register_sql_hook(event, 'bench.hook(bigint[])')
  from unnest('{deferred,started,finished,rescued}'::text[]) as event
"""
CALLERS = """
select pg_get_functiondef(oid) from pg_proc
 where pronamespace = 'procrastinate'::regnamespace and prosrc ~ 'perform procrastinate._call_hooks'
"""
CALL = re.compile(r"if '\w+' = any \([^;]*?then\s*perform procrastinate\._call_hooks[^;]*;\s*end if;")
YEAR = "clock_timestamp() + interval '1 year'"


class Core(System):
    """
    `work_v1`, one call a batch; history kept, or `delete`.

    `hooked`: a function that does nothing is called after each event. `hookless`: as if SQL-side hooks had never been.
    """

    title = "core"
    schema = "pyprocrastinate"
    variants: ClassVar[tuple[str, ...]] = ("", "hookless", "hooked", "delete")

    def fill(self, conn: Connection, load: Load) -> None:
        """Insert into the table what defer_many would."""
        self._set_hooks(conn)
        if load.finished:
            conn.execute(f"""
                insert into procrastinate.done (id, token, worker_id, deferred_at, started_at,
                       finished_at, rank, attempts, status, task, queue, args)
                select nextval(pg_get_serial_sequence('procrastinate.job', 'id')),
                       nextval('procrastinate.token_seq'), 0, now() - interval '1 day', now(),
                       now(), 0, 1, 'succeeded', 'noop', {load.queue}, '{{}}'
                  from generate_series(1, {load.count}) as g
                """)
            return
        conn.execute(f"""
            insert into procrastinate.job (task, queue, lock, scheduled_at, state)
            select 'noop', queue, lock, {YEAR if load.scheduled else "null"}, case
                   when {load.scheduled} then 's'
                   when lock is null or {load.singly} then 'r'
                   when row_number() over (partition by lock order by g) = 1 then 'r'
                   else 'w' end::"char"
              from (select g, {load.queue} as queue, ({load.lock})::text as lock
                      from generate_series(1, {load.count}) as g) as job
             order by g
            """)

    def _set_hooks(self, conn: Connection) -> None:
        if self.variant == "hooked":
            conn.execute(HOOK)
        elif self.variant == "hookless":
            for (body,) in conn.execute(CALLERS).fetchall():
                conn.execute(CALL.sub("", body).encode())
            assert not conn.execute(CALLERS).fetchall()

    def occupy(self, conn: Connection, lock: str) -> None:
        """Claim a job under the lock."""
        conn.execute("select procrastinate.defer('noop', lock => %s)", [lock])
        row = conn.execute("select procrastinate.register_worker_v1('holder')").fetchone()
        assert row
        assert conn.execute("select id from procrastinate.fetch_v1(%s)", row).fetchone()

    def employ(self, conn: Connection) -> None:
        """Register one that never says that it is idle."""
        self._set_hooks(conn)
        conn.execute("select procrastinate.register_worker_v1('busy')")

    def complaints(self, conn: Connection, jobs: int) -> list[str]:
        """Look at counts, order and events as a user would, then list and cancel a job."""
        if self.variant == "delete":
            wrong = {
                "nothing is kept": _one(
                    conn, "select not exists (select from procrastinate.jobs where finished_at is not null)"
                )
            }
        else:
            wrong = {what: _one(conn, RAN + query, {"jobs": jobs}) for what, query in CHECKS.items()}
        job = {"id": _one(conn, "select procrastinate.defer('noop', queue => 'checked')")}
        listed = "select status from procrastinate.jobs where id = %(id)s"
        wrong["a job is listed"] = _one(conn, listed, job) == "todo"
        wrong["and cancelled"] = _one(conn, "select procrastinate.cancel(%(id)s)", job) == "cancelled"
        wrong["and listed as that"] = _one(conn, listed, job) == "cancelled"
        return [f"not true: {what}" for what, true in wrong.items() if not true]

    def pending(self, conn: Connection) -> int:
        """Count what is not in history."""
        return int(_one(conn, "select count(*) from procrastinate.job"))

    def resting(self, conn: Connection) -> int:
        """Ask the view of workers."""
        return int(_one(conn, "select count(*) from procrastinate.workers where idle"))

    def size(self, conn: Connection) -> int:
        """Measure the table of live jobs."""
        return int(_one(conn, "select pg_total_relation_size('procrastinate.job')"))

    def install(self, dsn: str) -> None:
        """Migrate."""
        from pyprocrastinate.migrate import migrate

        migrate(dsn)

    async def work(self, work: Work) -> None:
        """Loop over work_v1."""
        keep = self.variant != "delete"
        conn = await connect(work.dsn)
        cursor = conn.cursor(binary=True)
        await cursor.execute("select procrastinate.register_worker_v1('bench', %s::text[])", [work.queues])
        row = await cursor.fetchone()
        assert row
        worker = row[0]
        scan: list[int] | None = None

        async def exchange(done: list[Any], capacity: int) -> tuple[list[Any], list[Any]]:
            nonlocal scan
            ids, tokens = [d[0] for d in done], [d[1] for d in done]
            await cursor.execute(WORK, (worker, ids, tokens, keep, capacity, scan))
            *rows, last = await cursor.fetchall()
            assert last[13] is None, last[13]
            scan = last[14] if rows else None
            return rows, [json.loads(row[4]) for row in rows]

        await loads.bare_loop(work, exchange)
        await conn.close()

    async def defer(self, dsn: str, count: int, connections: int) -> float:
        """Call defer."""
        links = [await connect(dsn) for _ in range(connections)]
        seconds = await one_by_one(links, "select procrastinate.defer('noop', %s)", count)
        for link in links:
            await link.close()
        return seconds

    async def bulk(self, dsn: str, count: int, size: int) -> float:
        """Call defer_many."""
        jobs = json.dumps([{"task": "noop", "args": {}} for _ in range(size)])
        conn = await connect(dsn)
        cursor = conn.cursor(binary=True)
        begin = time.monotonic()
        for _ in range(count // size):
            await cursor.execute("select id from procrastinate.defer_many(%s)", (jobs,))
            assert len(await cursor.fetchall()) == size
        seconds = time.monotonic() - begin
        await conn.close()
        return seconds


def _one(conn: Connection, query: str, parameters: dict[str, Any] | None = None) -> Any:
    row = conn.execute(query.encode(), parameters).fetchone()
    assert row
    return row[0]


def system(name: str) -> System:
    """Return it."""
    return Core(name)
