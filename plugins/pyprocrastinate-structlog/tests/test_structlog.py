"""A task's log records say of which job they are."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
import structlog
from structlog.testing import LogCapture

import pyprocrastinate_structlog

EXAMPLE = Path(__file__).parents[1] / "example.py"


@pytest.fixture
def logged():
    """Return the records that are logged, as dicts."""
    capture = LogCapture()
    before = structlog.get_config()
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, capture])
    yield capture.entries
    structlog.configure(**before)


async def test_records_of_a_task_have_its_job(open_app, drain, logged):
    app = await open_app(pyprocrastinate_structlog)

    @app.task(name="in_a_thread", queue="slow")
    def in_a_thread():
        structlog.get_logger().info("here")

    @app.task(name="on_the_loop", retry=1)
    async def on_the_loop():
        structlog.get_logger().info("here")
        raise ValueError

    slow, loop = await in_a_thread.defer_async(), await on_the_loop.defer_async()
    await drain(app)
    here = [entry for entry in logged if entry["event"] == "here"]
    assert [{name: entry[name] for name in ("job_id", "task", "queue", "attempt")} for entry in here] == [
        {"job_id": slow, "task": "in_a_thread", "queue": "slow", "attempt": 1},
        {"job_id": loop, "task": "on_the_loop", "queue": "default", "attempt": 1},
        {"job_id": loop, "task": "on_the_loop", "queue": "default", "attempt": 2},
    ]


async def test_jobs_side_by_side_are_kept_apart(open_app, drain, logged):
    app = await open_app(pyprocrastinate_structlog)
    barrier = asyncio.Barrier(3)

    @app.task(name="meet")
    async def meet(number):
        structlog.contextvars.bind_contextvars(number=number)
        await barrier.wait()
        structlog.get_logger().info("met")

    ids = await meet.batch_defer_async(*({"number": number} for number in range(3)))
    await drain(app, concurrency=3)
    met = {entry["job_id"]: entry["number"] for entry in logged if entry["event"] == "met"}
    assert met == dict(zip(ids, range(3), strict=True))
    assert structlog.contextvars.get_contextvars() == {}


def test_the_example(dsn, tmp_path):
    environ = os.environ | {"PROCRASTINATE_DSN": dsn, "PROCRASTINATE_PLUGINS": "structlog", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLE], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split("greeting")[1].split() for line in lines] == [
        ["attempt=1", "job_id=1", "name=Ada", "queue=default", "task=greet"],
        ["attempt=1", "job_id=2", "name=Grace", "queue=slow", "task=greet"],
    ]
