"""When an idle worker looks up."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pyprocrastinate import App
from pyprocrastinate.pulse import wake_payload
from pyprocrastinate.wires import CHANNEL

Status = Callable[[int], str]


@pytest.fixture
def idle(conn: psycopg.Connection[Any], until: Any) -> Callable[[], Any]:
    """
    Return an async function that waits until a worker sleeps for good: all early looks are over.
    """

    async def idle() -> None:
        await until(lambda: conn.execute("select from procrastinate.workers where idle").rowcount == 1)
        await asyncio.sleep(1.2)

    return idle


@pytest.mark.scenario(59)
async def test_a_notification_wakes_it(app: App, working: Any, until: Any, idle: Any, status: Status) -> None:
    @app.task(queue="Größe " * 15)
    async def task() -> None: ...

    async with working(queues=["other", task.queue]):
        await idle()
        began = time.monotonic()
        job_id = await task.defer_async()
        await until(lambda: status(job_id) == "succeeded")
        assert time.monotonic() - began < 5  # of 30


@pytest.mark.scenario(58)
async def test_without_notifications_it_polls(
    app: App, working: Any, until: Any, idle: Any, status: Status, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="pyprocrastinate")

    @app.task
    async def task() -> None: ...

    async with working(listen_notify=False, fetch_job_polling_interval=0.2):
        await idle()
        job_id = await task.defer_async()
        await until(lambda: status(job_id) == "succeeded")
    assert "listen_notify_disabled" in [getattr(record, "action", "") for record in caplog.records]


@pytest.mark.scenario("R6")
@pytest.mark.parametrize("asleep", [True, False])
async def test_a_job_that_becomes_due_starts_then(
    app: App, working: Any, until: Any, idle: Any, job: Callable[[int], dict[str, Any]], asleep: bool
) -> None:
    @app.task
    async def task() -> None: ...

    async with working(listen_notify=asleep):
        if asleep:
            await idle()
        job_id = await task.configure(schedule_in={"seconds": 2}).defer_async()
        await until(lambda: job(job_id)["status"] == "succeeded")
        row = job(job_id)
        assert 0 <= (row["started_at"] - row["scheduled_at"]).total_seconds() < 1


@pytest.mark.scenario("R6")
async def test_a_lock_that_another_worker_gives_back_wakes_it(
    app: App, working: Any, until: Any, idle: Any, status: Status, conn: psycopg.Connection[Any]
) -> None:
    @app.task(name="task", lock="l")
    async def task() -> None: ...

    (other,) = conn.execute("select procrastinate.register_worker_v1('other')").fetchone()
    await task.defer_async()
    claim = conn.execute("select id, token from procrastinate.fetch_v1(%s)", [other]).fetchone()
    second = await task.defer_async()
    async with working():
        await idle()
        assert status(second) == "todo"
        began = time.monotonic()
        conn.execute("select procrastinate.finish_v1(%s, array[%s], array[%s])", [other, *claim])
        await until(lambda: status(second) == "succeeded")
        assert time.monotonic() - began < 5


async def test_nonsense_and_floods_are_ignored(
    app: App, working: Any, until: Any, status: Status, conn: psycopg.Connection[Any]
) -> None:
    @app.task
    async def task() -> None:
        await asyncio.sleep(0)

    chance = random.Random(7)
    alphabet = "aq{}[]\"\\':0fé☃ \n"
    payloads = ["", "a", "q", "q" + "0" * 8, "x" * 7999, '{"type": "abort"}', "qzzzzzzzz", "aa"]
    payloads += ["".join(chance.choices(alphabet, k=chance.randrange(40))) for _ in range(300)]
    async with working(queues=["default"]):
        for payload in payloads:
            conn.execute("select pg_notify(%s, %s)", [CHANNEL, payload])
        conn.execute(
            "select pg_notify(%s, x || g) from generate_series(1, 5000) as g, unnest(%s::text[]) as x",
            [CHANNEL, ["a", wake_payload("default"), "?"]],
        )
        for _ in range(300):
            for payload in ("a", wake_payload("default")):
                conn.execute("select pg_notify(%s, %s)", [CHANNEL, payload])
        job_id = await task.defer_async()
        await until(lambda: status(job_id) == "succeeded")
        running = await app.configure_task("unknown", queue="elsewhere").defer_async()
        assert status(running) == "todo"


def test_a_payload_is_a_hash_of_the_queue(conn: psycopg.Connection[Any]) -> None:
    conn.execute(f"listen {CHANNEL}")
    with conn.transaction():
        conn.execute("select procrastinate.defer('t', queue => 'Größe')")
    (notify,) = conn.notifies(timeout=5, stop_after=1)
    assert notify.payload == wake_payload("Größe")
