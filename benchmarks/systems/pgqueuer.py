"""pgqueuer, from PyPI, over asyncpg; a worker's concurrency is its batch size, as it documents."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from psycopg.conninfo import conninfo_to_dict

from benchmarks.systems import Connection, System
from benchmarks.systems.api import pings

if TYPE_CHECKING:
    from benchmarks.load import Load, Tally, Work


class Pgqueuer(System):
    """Its own table for jobs, another as a log of what has ended."""

    title = "pgqueuer"
    requirements = ("pgqueuer>=1,<2", "asyncpg", "psycopg[binary]>=3.2")
    drained = {1: 2_000, 10: 10_000, 100: 40_000}  # noqa: RUF012

    def fill(self, conn: Connection, load: Load) -> None:
        """Insert without its trigger, which notifies for each job."""
        conn.execute("alter table pgqueuer disable trigger user")
        conn.execute(f"""
            insert into pgqueuer (priority, entrypoint, status, created, updated, heartbeat, execute_after)
            select 0, 'noop', 'queued', now(), now(), now(), now() from generate_series(1, {load.count})""")
        conn.execute("alter table pgqueuer enable trigger user")

    def pending(self, conn: Connection) -> int:
        """Count what is not in the log alone."""
        row = conn.execute("select count(*) from pgqueuer where status <> 'successful'").fetchone()
        assert row
        return int(row[0])

    def load(self) -> None:
        """Import it."""
        for module in ("asyncpg", "pgqueuer", "pgqueuer.db", "pgqueuer.queries"):
            import_module(module)

    async def _driver(self, dsn: str) -> Any:
        asyncpg, db = import_module("asyncpg"), import_module("pgqueuer.db")
        given: dict[str, Any] = {k: v for k, v in conninfo_to_dict(dsn).items() if k in ("host", "port", "user")}
        return db.AsyncpgDriver(await asyncpg.connect(database=conninfo_to_dict(dsn)["dbname"], **given))

    async def _queries(self, dsn: str) -> Any:
        return import_module("pgqueuer.queries").Queries(await self._driver(dsn))

    def install(self, dsn: str) -> None:
        """Create its tables."""

        async def install() -> None:
            await (await self._queries(dsn)).install()

        asyncio.run(install())

    async def work(self, work: Work) -> None:
        """Run it until the harness says stop."""
        queue = import_module("pgqueuer").PgQueuer(await self._driver(work.dsn))

        @queue.entrypoint("noop")  # type: ignore[untyped-decorator]
        async def noop(job: Any) -> None:
            work.tally.tick(1, float(job.payload) if job.payload else 0.0)

        worker = asyncio.create_task(queue.run(batch_size=work.concurrency))
        stop = asyncio.create_task(work.stop.wait())
        await asyncio.wait({worker, stop}, return_when=asyncio.FIRST_COMPLETED)
        queue.shutdown.set()
        await worker

    async def defer(self, dsn: str, count: int, connections: int) -> float:
        """Enqueue one by one."""
        queues = [await self._queries(dsn) for _ in range(connections)]
        numbers = iter(range(count))

        async def some(queries: Any) -> None:
            for _ in numbers:
                await queries.enqueue("noop", None)

        begin = time.monotonic()
        await asyncio.gather(*map(some, queues))
        return time.monotonic() - begin

    async def bulk(self, dsn: str, count: int, size: int) -> float:
        """Enqueue lists."""
        queries = await self._queries(dsn)
        begin = time.monotonic()
        for _ in range(count // size):
            await queries.enqueue(["noop"] * size, [None] * size, [0] * size)
        return time.monotonic() - begin

    async def ping(self, dsn: str, count: int, tally: Tally, others: Sequence[Tally] = ()) -> None:
        """Enqueue now and then."""
        queries = await self._queries(dsn)

        async def defer() -> None:
            await queries.enqueue("noop", repr(time.monotonic()).encode())

        await pings(defer, count, tally, *others)


def system(name: str) -> System:
    """Return it."""
    return Pgqueuer(name)
