"""
The tests of workers, once more on a queue in memory: all that ask for nothing but an app and what becomes of jobs.
"""

from __future__ import annotations

import importlib
import inspect

import pytest

from pyprocrastinate import App
from pyprocrastinate.operations import Call
from tests.worker.conftest import until, working  # noqa: F401  # fixtures
from tests.worker.test_stop import starting  # noqa: F401  # a fixture

MODULES = ["abort", "middleware", "periodic", "retry", "run", "stop", "wake"]
NEED_A_DATABASE = {"conn", "connect", "aconnect", "dsn", "empty_dsn", "pg_server", "program"}
# a round trip is over so soon that no task is shorter
OTHERWISE = {"test_a_job_that_was_fetched_ahead_is_not_begun_any_more"}
JOB = "id, status, task, queue, args, headers, priority, lock, queueing_lock, attempts, deferred_at, scheduled_at, "
JOB += "started_at, finished_at, worker_id, abort_requested, error_class, error_message, result"

for name in MODULES:
    module = importlib.import_module(f"tests.worker.test_{name}")
    for test, body in vars(module).items():
        if not test.startswith("test_") or test in OTHERWISE:
            continue
        if not NEED_A_DATABASE & inspect.signature(body).parameters.keys():
            globals()[f"test_{name}_{test.removeprefix('test_')}"] = body


@pytest.fixture
async def app(queue):
    async with App(connector=queue).open_async() as app:
        yield app


@pytest.fixture
def idle(queue, until):  # noqa: F811
    """Return an async function that waits until a worker sleeps for good: all early looks are over."""
    return lambda: until(lambda: [name for name, _ in queue.queries].count("idle_v1") >= 4)


@pytest.fixture
def job(queue):
    """Return a function that reads a job's row of the view."""
    columns = JOB.split(", ")

    def job(job_id):
        (row,) = queue.run(Call("jobs", {"id": job_id}, list, columns))
        return dict(zip(columns, row, strict=True))

    return job


@pytest.fixture
def status(queue):
    """Return a function that tells the status of a job."""
    return lambda job_id: queue.jobs[job_id]["status"] if job_id in queue.jobs else None


@pytest.fixture
def events(queue):
    """Return a function that tells a job's story."""

    def events(job_id):
        found = queue.run(Call("events", {"job_id": job_id}, list, ["type", "at", "id"]))
        return [event[0] for event in sorted(found, key=lambda event: (event[1], -event[2]))]

    return events
