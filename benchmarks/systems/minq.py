"""
The floor: a queue of a few lines of PL/pgSQL, which promises next to nothing.

`archive` keeps history, `delete` does not; `-cursor` remembers in the worker where it fetched last,
`-listen` waits for a NOTIFY.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.types.json import Jsonb

from benchmarks import load as loads
from benchmarks.systems import Connection, System, connect, one_by_one
from benchmarks.systems.api import pings

if TYPE_CHECKING:
    from benchmarks.load import Load, Tally, Work


INSERT = "insert into q.job (queue, args) values ('default', %s) returning id"
FUNCTION = """
create function q.wake() returns trigger language plpgsql as
$$ begin perform pg_notify('q', ''); return null; end $$
"""
TRIGGER = """
create trigger wake after insert on q.job for each statement execute function q.wake()
"""


class Minq(System):
    """The functions ff_* and, with a cursor, ffc_*."""

    title = "minq"
    variants = ("archive", "delete", "archive-cursor", "archive-listen")

    def fill(self, conn: Connection, load: Load) -> None:
        """Insert what is ready, or what has ended."""
        table = "q.archive" if load.finished else "q.job"
        if load.finished:
            conn.execute(f"""
                insert into {table} (id, queue, status, priority, run_at, args)
                select -g, {load.queue}, 'd', 0, now(), '{{}}'
                  from generate_series(1, {load.count}) as g""")
        else:
            conn.execute(f"""
                insert into {table} (queue, args)
                select {load.queue}, '{{}}' from generate_series(1, {load.count}) as g""")

    def pending(self, conn: Connection) -> int:
        """Count what is not done."""
        row = conn.execute("select count(*) from q.job where status <> 'd'").fetchone()
        assert row
        return int(row[0])

    def install(self, dsn: str) -> None:
        """Run the script."""
        script = Path(__file__).parents[1] / "minq.sql"
        with psycopg.connect(dsn) as conn:
            conn.execute(script.read_text().encode())

    async def work(self, work: Work) -> None:
        """Loop over one of the functions."""
        finish, _, extra = self.variant.partition("-")
        queue = (work.queues or ["default"])[0]
        conn = await connect(work.dsn)
        cursor = conn.cursor(binary=True)
        last = 0

        async def exchange(done: list[Any], capacity: int) -> tuple[list[Any], list[Any]]:
            nonlocal last
            if extra == "cursor":
                await cursor.execute(
                    f"select id, args from q.ffc_{finish}(%s::bigint[], %s, %s::int, 1, %s)",
                    (done, queue, capacity, last),
                )
            else:
                await cursor.execute(
                    f"select id, args from q.ff_{finish}(%s::bigint[], %s, %s::int, 1)", (done, queue, capacity)
                )
            rows = await cursor.fetchall()
            last = max((row[0] for row in rows), default=0)
            return [row[0] for row in rows], [row[1] for row in rows]

        if extra == "listen":
            listener = await connect(work.dsn)
            await listener.execute("listen q")

            async def rest() -> None:
                async for _ in listener.notifies(timeout=0.5, stop_after=1):
                    pass

            await loads.bare_loop(work, exchange, rest)
            await listener.close()
        else:
            await loads.bare_loop(work, exchange)
        await conn.close()

    async def defer(self, dsn: str, count: int, connections: int) -> float:
        """Insert."""
        links = [await connect(dsn) for _ in range(connections)]
        seconds = await one_by_one(links, INSERT, count)
        for link in links:
            await link.close()
        return seconds

    async def ping(self, dsn: str, count: int, tally: Tally, others: Sequence[Tally] = ()) -> None:
        """Insert, which notifies."""
        conn = await connect(dsn)
        await conn.execute(FUNCTION)
        await conn.execute(TRIGGER)

        async def defer() -> None:
            await conn.execute(INSERT, (Jsonb({"t": time.monotonic()}),))

        await pings(defer, count, tally, *others)
        await conn.close()

    async def bulk(self, dsn: str, count: int, size: int) -> float:
        """Call q.add."""
        conn = await connect(dsn)
        cursor = conn.cursor(binary=True)
        args = [Jsonb({}) for _ in range(size)]
        begin = time.monotonic()
        for _ in range(count // size):
            await cursor.execute("select q.add('default', %s::jsonb[])", (args,))
            assert len(await cursor.fetchall()) == size
        seconds = time.monotonic() - begin
        await conn.close()
        return seconds


def system(name: str) -> System:
    """Return it."""
    return Minq(name)
