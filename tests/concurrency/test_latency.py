"""A defer wakes a worker that sleeps for long, whoever defers, and however its transaction ends."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import psycopg
import pytest

from pyprocrastinate import App, JobContext, PsycopgConnector

# The worker would look by itself after this long. Nothing here comes near.
INTERVAL = 60.0
PATIENCE = 10.0

Asleep = Callable[[], Awaitable[None]]


class Sleeper:
    """A worker that only a notification wakes, and when its jobs began, by the clock on the wall."""

    def __init__(self) -> None:
        self.began: dict[int, float] = {}

    async def wait_for(self, job_id: int) -> float:
        deadline = time.monotonic() + PATIENCE
        while job_id not in self.began:
            assert time.monotonic() < deadline, "nobody woke it"
            await asyncio.sleep(0.001)
        return self.began[job_id]


@pytest.fixture
async def sleeper(dsn: str) -> AsyncIterator[Sleeper]:
    app = App(connector=PsycopgConnector(conninfo=dsn))
    sleeper = Sleeper()

    @app.task(name="note", pass_context=True)
    async def note(context: JobContext) -> None:
        sleeper.began[context.job.id] = time.time()

    async with app.open_async():
        worker = app.make_worker(fetch_job_polling_interval=INTERVAL, install_signal_handlers=False)
        run = asyncio.create_task(worker.run())
        try:
            yield sleeper
            worker.stop()
            await run
        finally:
            run.cancel()
            await asyncio.wait({run})


@pytest.fixture
def asleep(conn: psycopg.Connection[Any]) -> Asleep:
    """
    Return an async function that waits until the worker sleeps for good.

    After it has gone idle it looks again, for the last time 1 s later: its loop's connection has
    been silent for longer.
    """

    async def asleep() -> None:
        deadline = time.monotonic() + PATIENCE
        query = """
            select exists (select from procrastinate.workers where idle)
               and bool_and(state_change < clock_timestamp() - interval '1.2 s')
              from pg_stat_activity
             where datname = current_database() and query like '%idle_v1%' and pid <> pg_backend_pid()
            """
        while conn.execute(query).fetchone() != (True,):
            assert time.monotonic() < deadline, "it does not come to rest"
            await asyncio.sleep(0.01)

    return asleep


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.long)])
async def test_a_defer_from_psql_starts_at_once(
    conn: psycopg.Connection[Any], dsn: str, pg_server: Any, sleeper: Sleeper, asleep: Asleep, times: int
) -> None:
    psql = str(pg_server.tool("psql"))
    waits = []
    for _ in range(times):
        await asleep()
        done = await asyncio.to_thread(
            subprocess.run,
            [psql, dsn, "-XAtc", "select procrastinate.defer('note')"],
            check=True,
            capture_output=True,
            text=True,
        )
        job_id = int(done.stdout)
        began = await sleeper.wait_for(job_id)
        row = conn.execute(
            "select extract(epoch from deferred_at) from procrastinate.jobs where id = %s", [job_id]
        ).fetchone()
        assert row is not None
        waits.append(began - float(row[0]))
    print(f"\ndefer in psql to start of the task: median of {times} {statistics.median(waits) * 1e3:.1f} ms")


@pytest.fixture
def open_defer(connect: Callable[..., Any]) -> tuple[psycopg.Connection[Any], int]:
    """Return a connection whose transaction has deferred a job before any worker was there."""
    conn = connect(autocommit=False)
    return conn, _defer(conn)


async def test_a_transaction_begun_before_the_worker_slept_wakes_it_with_its_commit(
    open_defer: tuple[psycopg.Connection[Any], int], sleeper: Sleeper, asleep: Asleep
) -> None:
    other, job_id = open_defer
    await asleep()
    other.commit()
    await sleeper.wait_for(job_id)


async def test_a_defer_late_in_a_transaction_begun_before_the_worker_slept(
    connect: Callable[..., Any], sleeper: Sleeper, asleep: Asleep
) -> None:
    other = connect(autocommit=False)
    other.execute("select 1")
    await asleep()
    job_id = _defer(other)
    other.commit()
    await sleeper.wait_for(job_id)


@pytest.mark.scenario("R17")
async def test_what_is_rolled_back_is_never_seen(
    conn: psycopg.Connection[Any], open_defer: tuple[psycopg.Connection[Any], int], sleeper: Sleeper, asleep: Asleep
) -> None:
    other, job_id = open_defer
    await asleep()
    other.rollback()
    seen = _defer(conn)
    await sleeper.wait_for(seen)
    assert set(sleeper.began) == {seen}
    assert conn.execute("select from procrastinate.jobs where id = %s", [job_id]).rowcount == 0


async def test_jobs_deferred_as_the_worker_goes_to_sleep(
    conn: psycopg.Connection[Any], connect: Callable[..., Any], sleeper: Sleeper
) -> None:
    """Whichever of the two looks first, none is left lying until the interval has passed."""
    other = connect()
    for _ in range(50):
        for deferrer in (conn, other):
            await sleeper.wait_for(await asyncio.to_thread(_defer, deferrer))


def _defer(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute("select procrastinate.defer('note')").fetchone()
    assert row is not None
    return int(row[0])
