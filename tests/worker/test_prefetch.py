"""Fetching ahead of free slots."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pyprocrastinate import App, operations

Status = Callable[[int], str]


class Calls:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.work: list[Any] = []
        real = operations.run_async

        async def run_async(connection: Any, call: Any, *, binary: bool = False) -> Any:
            answer = await real(connection, call, binary=binary)
            if call.source == "work_v1":
                self.work.append((call.args, answer))
            return answer

        monkeypatch.setattr(operations, "run_async", run_async)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Return the calls of `work_v1`, with their answers, as they are made."""
    return Calls(monkeypatch)


async def drain(app: App, **options: Any) -> None:
    await app.run_worker_async(wait=False, install_signal_handlers=False, **options)


async def test_short_tasks_are_fetched_ahead(app: App, calls: Calls) -> None:
    @app.task
    async def short() -> None: ...

    await short.batch_defer_async(*({} for _ in range(500)))
    await drain(app)
    assert max(len(answer.claims) for _, answer in calls.work) > 100
    assert len(calls.work) < 50


async def test_one_half_runs_while_the_database_is_told_of_the_other(app: App, calls: Calls) -> None:
    @app.task
    async def short() -> None: ...

    half = 500  # of 100 that run and 900 that were fetched ahead
    await short.batch_defer_async(*({} for _ in range(12 * half)))
    await drain(app, concurrency=100)
    fetched = [len(answer.claims) for _, answer in calls.work]
    assert max(fetched) == half
    assert fetched.count(half) >= 8


async def test_tasks_that_keep_the_event_loop_busy_are_counted_one_after_the_other(app: App, calls: Calls) -> None:
    @app.task
    async def busy() -> None:
        time.sleep(0.001)  # noqa: ASYNC251

    await busy.batch_defer_async(*({} for _ in range(1000)))
    await drain(app, concurrency=10)
    # half of ten that run and of a tenth of a second of work
    assert max(len(answer.claims) for _, answer in calls.work) <= 55


async def test_only_if_the_worker_is_told_so(app: App, calls: Calls) -> None:
    @app.task
    async def short() -> None: ...

    await short.batch_defer_async(*({} for _ in range(30)))
    await drain(app, prefetch=False)
    assert max(len(answer.claims) for _, answer in calls.work) == 1


async def test_tasks_longer_than_a_round_trip_are_not(app: App, calls: Calls) -> None:
    @app.task
    async def long() -> None:
        await asyncio.sleep(0.05)

    await long.batch_defer_async(*({} for _ in range(20)))
    await drain(app, concurrency=4)
    assert max(len(answer.claims) for _, answer in calls.work) == 4
    assert {args["extra"] for args, _ in calls.work} == {0}


async def test_jobs_with_locks_are_not(app: App, calls: Calls) -> None:
    order: list[int] = []

    @app.task
    async def short(n: int) -> None:
        order.append(n)

    for n in range(60):
        lock = {"lock": f"l{n % 20}"} if n % 2 else {"queueing_lock": f"q{n}"}
        await short.configure(**lock).defer_async(n=n)
    for n in range(60, 160):
        await short.defer_async(n=n)
    await drain(app)
    ahead = [args["extra"] for args, answer in calls.work if answer.claims]
    # The first fetch does not know how long tasks take, the one after the last lock does not know of its end.
    assert ahead[:61] == [0] * 61
    assert max(ahead[61:]) > 0
    assert max(len(answer.claims) for _, answer in calls.work[:61]) == 1
    assert order == list(range(160))


async def test_what_is_not_begun_in_time_goes_to_others_at_no_attempt(
    app: App,
    working: Any,
    until: Any,
    status: Status,
    calls: Calls,
    job: Callable[[int], dict[str, Any]],
    conn: psycopg.Connection[Any],
) -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    @app.task
    async def short() -> None: ...

    @app.task
    async def block() -> None:
        begun.set()
        await release.wait()

    await short.batch_defer_async(*({} for _ in range(300)))
    await block.defer_async()
    late = await short.batch_defer_async(*({} for _ in range(20)))
    async with working() as first:
        await asyncio.wait_for(begun.wait(), 20)
        held = {job(each)["worker_id"] for each in late}
        assert held == {first.worker_id}
        await until(lambda: {status(each) for each in late} == {"todo"})
        assert {job(each)["attempts"] for each in late} == {0}
        async with working(queues=["default"]) as second:
            await until(lambda: {status(each) for each in late} == {"succeeded"})
            assert {job(each)["worker_id"] for each in late} == {second.worker_id}
        release.set()
