"""What a job of a schedule is told of its tick."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from pyprocrastinate import App


@pytest.mark.scenario(70)
async def test_arguments_never_contradict_the_tick(
    app: App, working: Any, until: Any, conn: psycopg.Connection[Any]
) -> None:
    seen: list[int] = []

    @app.periodic(cron="0 * * * *", task_kwargs={"timestamp": 5})
    @app.task(name="task")
    async def task(timestamp: int) -> None:
        seen.append(timestamp)

    conn.execute("select procrastinate.enable_test_clock()")
    async with working(update_heartbeat_interval=0.05, stalled_worker_timeout=7200) as worker:
        await until(lambda: worker.worker_id)
        conn.execute("select procrastinate.advance('1 hour')")
        query = "select extract(epoch from date_trunc('hour', procrastinate.now_()))::bigint"
        ((hour,),) = conn.execute(query).fetchall()
        await until(lambda: hour in seen)
    assert 5 not in seen
