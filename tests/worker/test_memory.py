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

# The first ones fill what is made once: prepared statements, threads, caches.
FIRST = 2
ROUNDS = 3


@pytest.fixture(autouse=True)
def no_logs() -> Iterator[None]:
    """Keep pytest from keeping what is logged."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def blocks() -> int:
    """Return how many pieces of memory Python has given out."""
    gc.collect()
    return sys.getallocatedblocks()


def growth(figures: list[int]) -> float:
    """Return what a round has added, on average."""
    return (figures[-1] - figures[FIRST - 1]) / ROUNDS


async def test_jobs_that_have_ended_leave_nothing(
    app: App, working: Any, until: Any, conn: psycopg.Connection[Any]
) -> None:
    lot = 400
    kept: list[object] = []

    @app.task
    async def fine(n: int) -> None: ...

    @app.task
    async def keeper(n: int) -> None:
        kept.append([n])

    @app.task(retry=RetryStrategy(max_attempts=2))
    async def failing(n: int) -> None:
        raise ValueError(n)

    @app.task
    def in_a_thread(n: int) -> None: ...

    async def rounds(*tasks: Any) -> float:
        figures = []
        for _ in range(FIRST + ROUNDS):
            for task in tasks:
                await task.batch_defer_async(*({"n": n} for n in range(lot - 20)))
                await task.configure(lock="one at a time").batch_defer_async(*({"n": n} for n in range(20)))
            await until(lambda: conn.execute("select from procrastinate.job limit 1").rowcount == 0)
            figures.append(blocks())
        return growth(figures)

    async with working(concurrency=20, delete_jobs="always"):
        assert await rounds(fine, failing, in_a_thread) < lot
        # one that does pile up is seen
        assert await rounds(keeper) >= lot


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts files in /proc")
async def test_lost_connections_leave_nothing(
    app: App, working: Any, until: Any, status: Callable[[int], str], conn: psycopg.Connection[Any]
) -> None:
    @app.task
    async def task() -> None: ...

    both = "from pg_stat_activity where application_name = 'pyprocrastinate worker' and datname = current_database()"
    figures: dict[str, list[int]] = {}
    async with working(update_heartbeat_interval=0.1):
        for _ in range(FIRST + ROUNDS):
            for _ in range(5):
                await until(lambda: conn.execute(f"select {both}").rowcount == 2)
                conn.execute(f"select pg_terminate_backend(pid) {both}")
                job_id = await task.defer_async()
                await until(lambda job_id=job_id: status(job_id) == "succeeded")
            counted = {
                "blocks": blocks(),
                "threads": threading.active_count(),
                "tasks": len(asyncio.all_tasks()),
                "files": len(os.listdir("/proc/self/fd")),
            }
            for what, figure in counted.items():
                figures.setdefault(what, []).append(figure)
    assert growth(figures.pop("blocks")) < 100
    # One may just be on its way, or gone; what piled up would do so with each of five losses.
    assert {what: growth(counts) for what, counts in figures.items() if growth(counts) >= 1} == {}
