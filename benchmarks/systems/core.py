"""This project's SQL in a bare loop: what the schema can do, whatever the worker does with it."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from benchmarks import load as loads
from benchmarks.systems import Connection, System, connect, one_by_one

if TYPE_CHECKING:
    from benchmarks.load import Load, Work

WORK = "select * from procrastinate.work_v1(%s, %s::bigint[], %s::bigint[], '[]', %s, %s, 0, %s)"
YEAR = "clock_timestamp() + interval '1 year'"


class Core(System):
    """`work_v1`, one call a batch; history kept, or `delete`."""

    title = "core"
    variants = ("", "delete")

    def fill(self, conn: Connection, load: Load) -> None:
        """Insert into the table what defer_many would."""
        if load.finished:
            conn.execute(f"""
                insert into procrastinate.done (id, token, worker_id, deferred_at, started_at,
                       finished_at, rank, attempts, status, task, queue, args)
                select nextval(pg_get_serial_sequence('procrastinate.job', 'id')),
                       nextval('procrastinate.token_seq'), 1, now() - interval '1 day', now(),
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

    def occupy(self, conn: Connection, lock: str) -> None:
        """Claim a job under the lock."""
        conn.execute("select procrastinate.defer('noop', lock => %s)", [lock])
        row = conn.execute("select procrastinate.register_worker_v1('holder')").fetchone()
        assert row
        assert conn.execute("select id from procrastinate.fetch_v1(%s)", row).fetchone()

    def pending(self, conn: Connection) -> int:
        """Count what is not in history."""
        row = conn.execute("select count(*) from procrastinate.job").fetchone()
        assert row
        return int(row[0])

    def size(self, conn: Connection) -> int:
        """Measure the table of live jobs."""
        row = conn.execute("select pg_total_relation_size('procrastinate.job')").fetchone()
        assert row
        return int(row[0])

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
        """Call defer, while there is a worker that is busy."""
        links = [await connect(dsn) for _ in range(connections)]
        await links[0].execute("select procrastinate.register_worker_v1('busy')")
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


def system(name: str) -> System:
    """Return it."""
    return Core(name)
