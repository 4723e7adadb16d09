"""The tasks of the soak; each writes down when it begins and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import psycopg

from pyprocrastinate import App, JobContext, PsycopgConnector
from pyprocrastinate.exceptions import JobAborted
from tests.faults.history import History

# In seconds; a worker is dead after LEASE without a heartbeat.
LEASE = 3.0
HEARTBEAT = 0.5
POLL = 20.0
SHORT_POLL = 1.0
GRACE = 2.0
QUEUES = ["a", "b"]
# Served only by workers that listen and hardly ever look without being told.
WAKE = "wake"
# One more for each of those.
WAKES = {"w0": "wake w0", "w1": "wake w1"}
# Both schedules; the one made in SQL catches up on every tick that it missed.
EVERY = "* * * * * */3"
EVERY_SECONDS = 3
# How often a job of "flaky" is retried, and how often one of "crash" runs, at most.
FLAKY_RETRIES = 4
CRASH_RUNS = 2
# Of rows that no client could have deferred, and by which one knows them: they have no key, and whoever puts them there
# may not hear that they are there.
POISON_RANK = -9
UNKNOWN = "os.system"
SCHEDULE = f"""
select procrastinate.schedule('in sql', 'tick', '{EVERY}', args => '{{"schedule": "in sql"}}', catch_up => 'all',
                              queue => 'b', options => '{{"timestamp": true}}')
"""


def make_app(dsn: str, history: History, plugins: Iterable[object] = ()) -> App:
    """Return the app; workers have it, and need not be told that there is a pooler between."""
    app = App(connector=PsycopgConnector(conninfo=dsn), plugins=plugins)

    @contextmanager
    def observed(context: JobContext, key: str) -> Iterator[None]:
        what = {"job": context.job.id, "token": context.token, "key": key}
        history.write("start", attempts=context.job.attempts, pid=os.getpid(), **what)
        try:
            yield
        except BaseException as error:
            history.write("end", outcome=type(error).__name__, **what)
            raise
        history.write("end", outcome="succeeded", **what)

    @app.task(name="quick", pass_context=True)
    async def quick(context: JobContext, key: str) -> None:
        with observed(context, key):
            pass

    @app.task(name="work", pass_context=True)
    async def work(context: JobContext, key: str, seconds: float) -> None:
        with observed(context, key):
            await asyncio.sleep(seconds)

    @app.task(name="thread", pass_context=True)
    def thread(context: JobContext, key: str, seconds: float) -> None:
        with observed(context, key):
            time.sleep(seconds)

    @app.task(name="patient", pass_context=True)
    def patient(context: JobContext, key: str, seconds: float) -> None:
        """Look every now and then whether to stop, as a function in a thread has to."""
        with observed(context, key):
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                if context.should_abort():
                    raise JobAborted
                time.sleep(0.05)

    @app.task(name="flaky", pass_context=True, retry=FLAKY_RETRIES)
    async def flaky(context: JobContext, key: str, fails: int) -> None:
        with observed(context, key):
            if context.job.attempts < fails:
                raise ValueError(f"run {context.job.attempts}")

    @app.task(name="complete", pass_context=True)
    def complete(context: JobContext, key: str) -> None:
        """Write an effect and end the job in one transaction."""
        with observed(context, key), psycopg.connect(dsn) as conn:
            conn.execute("insert into audit.effect values (%s, %s, %s)", [key, context.job.id, context.token])
            history.write("completing", job=context.job.id, token=context.token)
            context.complete(conn)

    @app.periodic(cron=EVERY, queue="a", task_kwargs={"schedule": "declared"})
    @app.task(name="tick", pass_context=True)
    async def tick(context: JobContext, timestamp: int, schedule: str) -> None:
        with observed(context, f"{schedule} {timestamp}"):
            pass

    @app.task(name="crash", pass_context=True)
    async def crash(context: JobContext, key: str) -> None:
        with observed(context, key):
            history.write("crash", name=history.name, job=context.job.id)
            os.kill(os.getpid(), signal.SIGKILL)

    return app
