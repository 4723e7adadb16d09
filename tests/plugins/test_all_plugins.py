"""With all plugins of this checkout at work, what they count is what the database says."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from prometheus_client import REGISTRY

from pyprocrastinate import App, PsycopgConnector
from pyprocrastinate.exceptions import JobAborted

# The registry is that of the process, so these are tasks of no other test.
PREFIX = "all_plugins."
ENDLESS = 8


@pytest.fixture
async def app(dsn, monkeypatch):
    """Return an app that has all plugins, and no task."""
    monkeypatch.delenv("PROCRASTINATE_PLUGINS", raising=False)
    monkeypatch.setenv("PROCRASTINATE_METRICS_PORT", "0")
    monkeypatch.setenv("PROCRASTINATE_METRICS_HOST", "127.0.0.1")
    app = App(connector=PsycopgConnector(conninfo=dsn))
    async with app.open_async():
        yield app


class Endless:
    """Jobs that run until they are asked to stop."""

    def __init__(self, number):
        self.number = number
        self.running = set()
        self.all_run, self.some_left = asyncio.Event(), asyncio.Event()

    async def run(self, context):
        if context.job.attempts:
            return
        self.running.add(context.job.id)
        if len(self.running) == self.number:
            self.all_run.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.running.discard(context.job.id)
            if len(self.running) == self.number // 2:
                self.some_left.set()


@pytest.fixture
def endless(app):
    """Add tasks that end in every way there is; return those that have to be asked to."""
    endless = Endless(2 * ENDLESS)

    def task(name, **options):
        return app.task(name=PREFIX + name, **options)

    @task("threaded", queue="a")
    def threaded(number):
        pass

    @task("quick", queue="b")
    async def quick(number):
        pass

    @task("flaky", queue="a", retry=3, pass_context=True)
    async def flaky(context, number):
        if context.job.attempts < number % 3:
            raise ConnectionError(number)

    @task("broken", queue="b", retry=1)
    def broken(number):
        raise ValueError(number)

    @task("refuses", queue="a", retry=1)
    async def refuses(number):
        raise JobAborted

    @task("stops", pass_context=True, priority=1)
    async def stops(context):
        await endless.run(context)

    @task("resumes", pass_context=True, priority=1, retry=1)
    async def resumes(context):
        await endless.run(context)

    return endless


def counted(name, *labels):
    """Return the values of a metric by task and these labels, without zeros."""
    values = Counter()
    for metric in REGISTRY.collect():
        for sample in metric.samples:
            task = sample.labels.get("task", "")
            if sample.name == f"procrastinate_{name}" and task.startswith(PREFIX):
                values[task.removeprefix(PREFIX), *(sample.labels[label] for label in labels)] += sample.value
    return +values


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.long)])
async def test_the_counters_are_what_the_database_says(app, endless, conn, count):
    def told():
        counters = {name: counted(f"jobs_{name}_total") for name in ("deferred", "started", "retried", "stale")}
        counters["finished"] = counted("jobs_finished_total", "outcome")
        counters["abort_requests"] = counted("jobs_abort_requests_total", "reason")
        counters["waits"], counters["runs"] = counted("job_wait_seconds_count"), counted("job_run_seconds_count")
        return counters

    def database(query):
        found = conn.execute(query).fetchall()
        return Counter({(task.removeprefix(PREFIX), *rest): number for task, *rest, number in found})

    before = told()
    for name in ("threaded", "quick", "flaky", "broken", "refuses"):
        await app.tasks[PREFIX + name].batch_defer_async(*({"number": number} for number in range(count // 5)))
    for name in ("stops", "resumes"):
        await app.tasks[PREFIX + name].batch_defer_async(*[{}] * ENDLESS)

    worker = app.make_worker(concurrency=40, install_signal_handlers=False, shutdown_graceful_timeout=0)
    run = asyncio.create_task(worker.run())
    async with asyncio.timeout(60):
        await endless.all_run.wait()
    for job_id in sorted(endless.running)[::2]:
        assert await app.job_manager.cancel_job_by_id_async(job_id, abort=True)
    async with asyncio.timeout(60):
        await endless.some_left.wait()
    worker.stop()
    await run
    await app.run_worker_async(concurrency=40, install_signal_handlers=False, wait=False)

    after = told()
    counters = {name: after[name] - before[name] for name in after}
    assert counters["deferred"] == database("select task, count(*) from procrastinate.jobs group by task")
    assert counters["finished"] == database("select task, status, count(*) from procrastinate.jobs group by 1, 2")
    runs = database("select task, sum(attempts)::int from procrastinate.jobs group by task")
    assert counters["started"] == counters["runs"] == runs
    assert counters["waits"] == counters["deferred"]
    assert counters["stale"] == Counter()
    events = """
        select j.task, count(*) from procrastinate.events as e join procrastinate.jobs as j on j.id = e.job_id
         where e.type = '{}' group by j.task
    """
    assert counters["retried"] == database(events.format("deferred_for_retry"))
    requests = counters["abort_requests"]
    asked = Counter({key[:1]: number for key, number in requests.items() if key[1] == "user_request"})
    assert asked == database(events.format("abort_requested")) == Counter({("stops",): 4, ("resumes",): 4})
    # What the scenario is for did happen.
    assert {outcome for _, outcome in counters["finished"]} == {"succeeded", "failed", "aborted"}
    assert {reason for _, reason in requests} == {"user_request", "shutdown"}
    assert counters["retried"]["resumes",] == ENDLESS // 2
