"""Procrastinate 3, from PyPI."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from benchmarks.systems import Connection, System
from benchmarks.systems.api import Api

if TYPE_CHECKING:
    from benchmarks.load import Load


class Procrastinate(Api):
    """With its psycopg connector."""

    title = "Procrastinate"
    requirements = ("procrastinate>=3,<4", "psycopg[binary]>=3.2")
    drained = {1: 2_000, 10: 4_000, 100: 4_000}  # noqa: RUF012

    def fill(self, conn: Connection, load: Load) -> None:
        """Insert without its triggers, which write an event for each job."""
        status = "succeeded" if load.finished else "todo"
        conn.execute("alter table procrastinate_jobs disable trigger user")
        conn.execute(f"""
            insert into procrastinate_jobs (queue_name, task_name, lock, args, status)
            select {load.queue}, 'noop', ({load.lock})::text, '{{}}', '{status}'
              from generate_series(1, {load.count}) as g order by g""")
        conn.execute("alter table procrastinate_jobs enable trigger user")

    def pending(self, conn: Connection) -> int:
        """Count what waits or runs."""
        row = conn.execute("select count(*) from procrastinate_jobs where status in ('todo', 'doing')").fetchone()
        assert row
        return int(row[0])

    def install(self, dsn: str) -> None:
        """Apply its schema."""

        async def apply() -> None:
            app, _ = self.app(dsn)
            async with app.open_async():
                await app.schema_manager.apply_schema_async()

        asyncio.run(apply())


def system(name: str) -> System:
    """Return it."""
    return Procrastinate(name)
