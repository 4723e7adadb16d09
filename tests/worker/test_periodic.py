"""Schedules that an app declares."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pyprocrastinate import App, Blueprint
from pyprocrastinate.exceptions import InvalidCron, TaskAlreadyRegistered


async def drain(app: App) -> None:
    await app.run_worker_async(wait=False, install_signal_handlers=False)


@pytest.mark.scenario(68)
async def test_it_fires_on_time_with_its_time(app: App, working: Any, until: Any) -> None:
    seen: list[tuple[int, str]] = []

    @app.periodic(cron="* * * * * *", priority=7, task_kwargs={"x": "extra"})
    @app.task(name="task", pass_context=True)
    async def task(context: Any, timestamp: int, x: str) -> None:
        seen.append((timestamp, x))
        assert context.job.priority == 7

    async with working(concurrency=2):
        await until(lambda: len(seen) >= 3)
    first = seen[0][0]
    assert seen[:3] == [(first, "extra"), (first + 1, "extra"), (first + 2, "extra")]


async def test_the_schema_knows_what_was_declared(
    app: App, working: Any, until: Any, conn: psycopg.Connection[Any]
) -> None:
    blueprint = Blueprint()

    @blueprint.periodic(cron="0 3 * * *", timezone="Europe/Paris", queue="night")
    @blueprint.periodic(cron="0 4 * * *", periodic_id="late", lock="l", queueing_lock="q")
    @blueprint.task(name="task", priority=2)
    async def task(timestamp: int) -> None: ...

    app.add_tasks_from(blueprint, namespace="ns")
    async with working() as worker:
        await until(lambda: worker.worker_id)
        with conn.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            rows = cursor.execute("select * from procrastinate.schedule order by name").fetchall()
    keys = ("name", "task", "cron", "timezone", "queue", "priority", "lock", "queueing_lock")
    assert [tuple(row[key] for key in keys) for row in rows] == [
        ("ns:task", "ns:task", "0 3 * * *", "Europe/Paris", "night", 2, None, None),
        ("ns:task:late", "ns:task", "0 4 * * *", "UTC", "default", 2, "l", "q"),
    ]


async def test_the_same_twice_is_refused(app: App) -> None:
    @app.periodic(cron="0 3 * * *", periodic_id="a")
    @app.task
    async def task(timestamp: int) -> None: ...

    app.periodic(cron="0 4 * * *", periodic_id="b")(task)
    with pytest.raises(TaskAlreadyRegistered):
        app.periodic(cron="0 5 * * *", periodic_id="a")(task)


async def test_a_worker_with_a_bad_expression_does_not_start(app: App) -> None:
    @app.periodic(cron="61 * * * *")
    @app.task
    async def task(timestamp: int) -> None: ...

    with pytest.raises(InvalidCron):
        await drain(app)


async def test_an_expression_that_croniter_reads_differently_is_warned_about(
    app: App, caplog: pytest.LogCaptureFixture, conn: psycopg.Connection[Any]
) -> None:
    conn.execute("select procrastinate.enable_test_clock()")

    @app.periodic(cron="0 0 */2 * 1")
    @app.task(name="task")
    async def task(timestamp: int) -> None: ...

    await drain(app)
    (record,) = [each for each in caplog.records if each.levelname == "WARNING"]
    assert vars(record)["action"] == "database_warning"
    assert 'schedule "task" fires next at ' in record.getMessage()
    assert 'croniter would read "0 0 1-31/2 * 1"' in record.getMessage()


async def test_a_worker_fires_the_ticks_that_the_clock_jumps_over(
    app: App, working: Any, until: Any, conn: psycopg.Connection[Any], status: Callable[[int], str]
) -> None:
    seen: list[int] = []
    # far from now: one that has just passed would still be fired at the start
    minute = (datetime.datetime.now().minute + 30) % 60

    @app.periodic(cron=f"{minute} * * * *")
    @app.task(name="task")
    async def task(timestamp: int) -> None:
        seen.append(timestamp)

    conn.execute("select procrastinate.enable_test_clock()")
    async with working(update_heartbeat_interval=0.05, stalled_worker_timeout=7200) as worker:
        await until(lambda: worker.worker_id)
        conn.execute("select procrastinate.advance('1 hour')")
        await until(lambda: len(seen) == 1)
        conn.execute("select procrastinate.advance('1 hour')")
        await until(lambda: len(seen) == 2)
    assert seen[1] - seen[0] == 3600
