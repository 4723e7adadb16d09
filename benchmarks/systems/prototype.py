"""
An earlier sketch of the storage, where somebody has it: $PROTOTYPE_SQL is the path of its script.

It is measured only by the storage workload, as a second opinion on what the schema should reach.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from benchmarks import load as loads
from benchmarks.systems import Connection, System, connect
from benchmarks.systems.core import YEAR

if TYPE_CHECKING:
    from benchmarks.load import Load, Work

WORK = "select * from p.work(1, %s::bigint[], %s::bigint[], null, %s::text[], %s::int, %s)"


class Prototype(System):
    """`p.work` in a bare loop."""

    title = "prototype"

    def fill(self, conn: Connection, load: Load) -> None:
        """Insert as its defer_many does."""
        if load.finished:
            conn.execute(f"""
                insert into p.done (id, status, rank, attempts, deferred_at, finished_at, queue,
                       task, args)
                select nextval(pg_get_serial_sequence('p.job', 'id')), 's', 0, 1, now(), now(),
                       {load.queue}, 't', '{{}}'
                  from generate_series(1, {load.count}) as g""")
            return
        conn.execute(f"""
            insert into p.job (queue, lock, scheduled_at, state)
            select queue, lock, {YEAR if load.scheduled else "null"}, case
                   when {load.scheduled} then 's'
                   when lock is null or {load.singly} then 'r'
                   when row_number() over (partition by lock order by g) = 1 then 'r'
                   else 'w' end::"char"
              from (select g, {load.queue} as queue, ({load.lock})::text as lock
                      from generate_series(1, {load.count}) as g) as job
             order by g""")

    def occupy(self, conn: Connection, lock: str) -> None:
        """Claim a job under the lock."""
        conn.execute(
            "select p.defer_many('{t}', array['{}']::jsonb[], '{default}', null, array[%s], null, null, null)", [lock]
        )
        assert conn.execute("select p.work(99, '{}', '{}', null, null, 1, null)").rowcount == 2

    def pending(self, conn: Connection) -> int:
        """Count what is not in history."""
        row = conn.execute("select count(*) from p.job").fetchone()
        assert row
        return int(row[0])

    def install(self, dsn: str) -> None:
        """Run the script."""
        with psycopg.connect(dsn) as conn:
            conn.execute(Path(os.environ["PROTOTYPE_SQL"]).read_text().encode())

    async def work(self, work: Work) -> None:
        """Loop over p.work."""
        conn = await connect(work.dsn)
        cursor = conn.cursor(binary=True)
        position: list[int] | None = None

        async def exchange(done: list[Any], capacity: int) -> tuple[list[Any], list[Any]]:
            nonlocal position
            ids, tokens = [d[0] for d in done], [d[1] for d in done]
            await cursor.execute(WORK, (ids, tokens, work.queues, capacity, position))
            *rows, last = await cursor.fetchall()
            position = last[11] if rows else None
            return rows, [json.loads(row[4]) for row in rows]

        await loads.bare_loop(work, exchange)
        await conn.close()

    async def bulk(self, dsn: str, count: int, size: int) -> float:
        """Call its defer_many."""
        conn = await connect(dsn)
        cursor = conn.cursor(binary=True)
        columns = (["t"] * size, ["{}"] * size, ["default"] * size)
        begin = time.monotonic()
        for _ in range(count // size):
            await cursor.execute(
                "select p.defer_many(%s::text[], %s::jsonb[], %s::text[], null, null, null, null, null)", columns
            )
            assert len(await cursor.fetchall()) == size
        seconds = time.monotonic() - begin
        await conn.close()
        return seconds


def system(name: str) -> System:
    """Return it."""
    return Prototype(name)
