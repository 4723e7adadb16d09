"""Graphile Worker, from npm: in its default configuration, and `batched` as its own performance test runs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.systems import Connection, System

if TYPE_CHECKING:
    from benchmarks.load import Load


class Graphile(System):
    """It deletes jobs when they have ended."""

    title = "Graphile Worker"
    requirements = ("npm", "graphile-worker@0", "pg@8")
    script = Path(__file__).with_suffix(".mjs")
    variants = ("", "batched")

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.drained = dict.fromkeys((1, 10, 100), 100_000) if self.variant else {1: 4_000, 10: 10_000, 100: 10_000}

    def fill(self, conn: Connection, load: Load) -> None:
        """Insert into its table what addJob would."""
        conn.execute(f"""
            insert into graphile_worker._private_jobs (task_id)
            select t.id from graphile_worker._private_tasks as t, generate_series(1, {load.count})
             where t.identifier = 'noop'""")

    def pending(self, conn: Connection) -> int:
        """Count what is there."""
        row = conn.execute("select count(*) from graphile_worker._private_jobs").fetchone()
        assert row
        return int(row[0])


def system(name: str) -> System:
    """Return it."""
    return Graphile(name)
