"""How tasks run: in which order, how many at once, and how often."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pyprocrastinate import App, RetryStrategy


async def drain(app: App, **options: Any) -> None:
    await app.run_worker_async(wait=False, install_signal_handlers=False, **options)


CODEC_APP = """
import datetime, json
from pyprocrastinate import App, PsycopgConnector

def dumps(value):
    return json.dumps(value, default=lambda day: {"day": day.isoformat()})

def loads(text):
    return json.loads(text, object_hook=lambda o: datetime.date.fromisoformat(o["day"]) if "day" in o else o)

app = App(connector=PsycopgConnector(json_dumps=dumps, json_loads=loads))

@app.task(name="show")
def show(when):
    print(repr(when))
    show_again.configure(queue="elsewhere").defer(when=when + datetime.timedelta(1))

@app.task(name="show_again")
def show_again(when):
    print(repr(when))
"""


@pytest.mark.scenario(4)
def test_a_worker_of_the_command_runs_its_queues_with_the_apps_codec(dsn: str, tmp_path: Path) -> None:
    (tmp_path / "codec_app.py").write_text(CODEC_APP)

    def run(*args: str) -> str:
        argv = [sys.executable, "-m", "pyprocrastinate", "--app=codec_app.app", *args]
        env = {**os.environ, "PROCRASTINATE_DSN": dsn}
        done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("defer", "show", '{"when": {"day": "2024-02-28"}}')
    assert run("worker", "--one-shot", "--queues=default") == "datetime.date(2024, 2, 28)\n"
    assert run("worker", "--one-shot", "--queues=elsewhere") == "datetime.date(2024, 2, 29)\n"


@pytest.mark.scenario(5, 6)
@pytest.mark.parametrize(
    ("retry", "raised", "told"),
    [
        (10, [ValueError, ValueError], ["job_error_retry", "job_error_retry", "job_success"]),
        (
            RetryStrategy(max_attempts=10, retry_exceptions=[ValueError, KeyError]),
            [ValueError, KeyError, AttributeError],
            ["job_error_retry", "job_error_retry", "job_error"],
        ),
    ],
    ids=["any error", "these errors"],
)
async def test_each_run_of_a_retried_job_is_told(
    app: App, caplog: pytest.LogCaptureFixture, retry: Any, raised: list[type[Exception]], told: list[str]
) -> None:
    left = iter(raised)

    @app.task(retry=retry)
    async def task() -> None:
        for error in left:
            raise error

    await task.defer_async()
    with caplog.at_level("INFO", logger="pyprocrastinate.worker"):
        await drain(app)
    ends = [record for record in caplog.records if getattr(record, "action", "").startswith(("job_error", "job_succ"))]
    assert [vars(record)["action"] for record in ends] == told
    assert [record.exc_info[0] for record in ends if record.exc_info] == raised


@pytest.mark.scenario(7)
async def test_priorities_come_before_the_order_of_deferring(app: App) -> None:
    order: list[int] = []

    @app.task
    async def task(priority: int) -> None:
        order.append(priority)

    for priority in (5, 7, 6):
        await task.configure(priority=priority).defer_async(priority=priority)
    await drain(app)
    assert order == [7, 6, 5]


@pytest.mark.scenario(9)
async def test_a_function_may_have_an_event_loop_of_its_own(app: App) -> None:
    threads: list[int] = []

    @app.task
    def task() -> None:
        async def inner() -> None:
            threads.append(await asyncio.to_thread(threading.get_ident))

        asyncio.run(inner())

    await task.defer_async()
    await drain(app)
    assert threads
    assert threads[0] != threading.get_ident()


@pytest.mark.scenario(11)
async def test_all_slots_are_filled_and_each_job_runs_once(app: App) -> None:
    # nobody gets on before twenty are running
    meeting = asyncio.Barrier(20)
    ran: list[int] = []

    @app.task
    async def task(n: int) -> None:
        await asyncio.wait_for(meeting.wait(), 20)
        ran.append(n)

    await task.batch_defer_async(*({"n": n} for n in range(100)))
    await drain(app, concurrency=20)
    assert sorted(ran) == list(range(100))


HELD = 4711


@pytest.mark.scenario(22)
def test_a_running_job_is_not_overtaken_in_another_process(
    program: Any, conn: psycopg.Connection[Any], connect: Any, status: Callable[[int], str]
) -> None:
    conn.execute("create table said (id int generated always as identity, what text)")
    body = """
        import psycopg
        conn = psycopg.connect(os.environ["DSN"], autocommit=True)

        @app.task(name="task")
        def task(n):
            conn.execute("insert into said (what) values (%s)", [f"before {n}"])
            conn.execute("select pg_advisory_lock_shared(4711), pg_advisory_unlock_shared(4711)")
            conn.execute("insert into said (what) values (%s)", [f"after {n}"])

        @app.task(name="free")
        def free():
            say("free")

        say("ready")
        app.run_worker(fetch_job_polling_interval=30.0)
    """

    def defer(task: str, options: str = "") -> int:
        row = conn.execute(f"select procrastinate.defer('{task}' {options})").fetchone()
        assert row
        return int(row[0])

    def wait_for(query: str, count: int) -> None:
        pause = threading.Event()
        for _ in range(2000):
            if conn.execute(query).rowcount == count:
                return
            pause.wait(0.01)
        pytest.fail(f"not {count} rows: {query}")

    holder = connect()
    holder.execute("select pg_advisory_lock(4711)")
    workers = [program(body), program(body)]
    wait_for("select from procrastinate.workers where idle", 2)
    defer("task", ", '{\"n\": 1}', lock => 'l'")
    wait_for("select from said", 1)
    second = defer("task", ", '{\"n\": 2}', lock => 'l', priority => 9")
    # whoever runs this has looked at the second one and left it
    free = defer("free")
    wait_for(f"select from procrastinate.jobs where id = {free} and status = 'succeeded'", 1)
    assert status(second) == "todo"
    holder.execute("select pg_advisory_unlock(4711)")
    wait_for(f"select from procrastinate.jobs where id = {second} and status = 'succeeded'", 1)
    said = conn.execute("select what from said order by id").fetchall()
    assert [what for (what,) in said] == ["before 1", "after 1", "before 2", "after 2"]
    assert [worker.process.poll() for worker in workers] == [None, None]


@pytest.mark.scenario(24)
async def test_jobs_of_a_lock_end_in_their_order_whoever_runs_them(
    app: App, working: Any, until: Any, conn: psycopg.Connection[Any]
) -> None:
    chance = random.Random(11)
    said: list[str] = []

    @app.task
    async def say(letter: str) -> None:
        for _ in range(chance.randrange(200)):
            await asyncio.sleep(0)
        said.append(letter)

    async with working(concurrency=4), working(concurrency=4), working(concurrency=4):
        await until(lambda: conn.execute("select from procrastinate.workers").rowcount == 3)
        await say.configure(lock="l").batch_defer_async(*({"letter": letter} for letter in "abcd"))
        await until(lambda: len(said) == 4)
    assert "".join(said) == "abcd"
