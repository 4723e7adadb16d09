"""A worker that lives for months: neither the jobs that it has run nor the connections that it has lost pile up."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pyprocrastinate import App, RetryStrategy

# The interpreter keeps the names that it has looked up on types, up to 4096; it fills for some 50 lost connections.
clear_caches = sys._clear_internal_caches if sys.version_info >= (3, 13) else sys._clear_type_cache


@pytest.fixture(autouse=True)
def no_logs() -> Iterator[None]:
    """Keep pytest from keeping what is logged."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


async def blocks() -> int:
    """Return how many pieces of memory Python has given out, without those that only wait to be given back."""
    counts = []
    # Now and then a call is under way; the least is what stays.
    for _ in range(10):
        # The event loop keeps cancelled timers, of three blocks each, until they are more than 100 and the most.
        for _ in range(101):
            asyncio.get_running_loop().call_later(60, print).cancel()
        await asyncio.sleep(0.01)
        clear_caches()
        gc.collect()
        counts.append(sys.getallocatedblocks())
    return min(counts)


async def test_jobs_that_have_ended_leave_nothing(
    app: App, working: Any, until: Any, conn: psycopg.Connection[Any]
) -> None:
    lot, lots = 400, 2
    kept: list[object] = []

    @app.task
    async def fine(n: int) -> None: ...

    @app.task
    async def keeper(n: int) -> None:
        kept.append(object())

    @app.task(retry=RetryStrategy(max_attempts=2))
    async def failing(n: int) -> None:
        raise ValueError(n)

    @app.task
    def in_a_thread(n: int) -> None: ...

    figures = []
    async with working(concurrency=20, delete_jobs="always"):
        # The first ones fill what is made once: prepared statements, threads, caches.
        for tasks in [(fine, failing, in_a_thread)] * 2 + [(keeper,)]:
            for _ in range(lots):
                for task in tasks:
                    await task.batch_defer_async(*({"n": n} for n in range(lot - 20)))
                    await task.configure(lock="one at a time").batch_defer_async(*({"n": n} for n in range(20)))
                await until(lambda: conn.execute("select from procrastinate.job limit 1").rowcount == 0)
            figures.append(await blocks())
    filled, ended, leaked = (figure / (lot * lots) for figure in figures)
    # A single object left by each run of one of the three would be one, as it is with the last.
    assert ended - filled < 0.25
    assert leaked - ended > 0.9


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts files in /proc")
async def test_lost_connections_leave_nothing(
    app: App, working: Any, until: Any, status: Callable[[int], str], conn: psycopg.Connection[Any]
) -> None:
    losses = 10
    kept: list[object] = []

    @app.task
    async def task() -> None: ...

    both = "from pg_stat_activity where application_name = 'pyprocrastinate worker' and datname = current_database()"
    figures = []
    async with working():
        for leaking in (False, False, True):
            for _ in range(losses):
                conn.execute(f"select pg_terminate_backend(pid) {both}")
                job_id = await task.defer_async()
                await until(lambda job_id=job_id: status(job_id) == "succeeded")
                await until(lambda: conn.execute(f"select {both}").rowcount == 2)
                if leaking:
                    # five blocks: the list has two
                    kept.append([object(), object(), object()])
            counted = {
                "blocks": await blocks(),
                "threads": threading.active_count(),
                "tasks": len(asyncio.all_tasks()),
                "files": len(os.listdir("/proc/self/fd")),
            }
            figures.append(counted)
    filled, lost, leaked = figures
    left = {what: (lost[what] - filled[what]) / losses for what in lost}
    seen = (leaked["blocks"] - lost["blocks"]) / losses
    # Without a leak it was at most 1.3, and with five blocks at least 5.
    assert left.pop("blocks") < 3
    assert seen > 4
    # One may just be on its way, or gone; what piled up would do so with each loss.
    assert {what: more for what, more in left.items() if more >= 0.2} == {}
