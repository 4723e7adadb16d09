"""With all plugins of this checkout at work, what they count is what the database says."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from contextlib import closing

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from pyprocrastinate import App, PsycopgConnector
from pyprocrastinate.exceptions import JobAborted
from pyprocrastinate_prometheus import QueueCollector

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


WORKER = """
import os, signal, sys
from pyprocrastinate import App, PsycopgConnector
app = App(connector=PsycopgConnector(conninfo=sys.argv[1]))

@app.task(name="quick")
async def quick():
    pass

@app.task(name="die", pass_context=True)
async def die(context):
    if not context.job.attempts:
        os.kill(os.getpid(), signal.SIGKILL)

app.run_worker(concurrency=5)
"""


class Process:
    """A worker with all plugins, in a process of its own."""

    def __init__(self, program, dsn):
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.port = free.getsockname()[1]
        environ = {"PROCRASTINATE_METRICS_PORT": str(self.port), "PROCRASTINATE_METRICS_HOST": "127.0.0.1"}
        environ |= {key: value for key, value in os.environ.items() if key != "PROCRASTINATE_PLUGINS"}
        self.process = subprocess.Popen([sys.executable, program, dsn], env=environ)

    def scrape(self, name):
        """Return the sum of a metric's series; None while nothing answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
                text = answer.read().decode()
        except urllib.error.URLError:
            return None
        metrics = text_string_to_metric_families(text)
        return sum(s.value for metric in metrics for s in metric.samples if s.name == f"procrastinate_{name}")


@pytest.fixture
def start(dsn, tmp_path):
    """Return a function that starts a worker."""
    program, started = tmp_path / "worker.py", []
    program.write_text(WORKER)

    def start():
        started.append(Process(program, dsn))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
async def test_who_is_killed_takes_along_only_counts_since_the_last_scrape(start, dsn, conn, until):
    def one(query):
        return conn.execute(query).fetchone()[0]

    def ended():
        return one("select count(*) from procrastinate.jobs where status = 'succeeded'")

    def defer(*tasks):
        jobs = [f'{{"task": "{task}"}}' for task in tasks]
        conn.execute(f"select procrastinate.defer_many('[{','.join(jobs)}]')")

    def gauges():
        with closing(QueueCollector(lambda: dsn)) as collector:
            samples = [sample for metric in collector.collect() for sample in metric.samples]
        return Counter({tuple(s.labels.values())[-1]: s.value for s in samples if s.labels.keys() & {"state"}})

    defer(*["quick"] * 50)
    doomed = start()
    last_scrape = await until(lambda: (seen := doomed.scrape("jobs_finished_total")) == 50 and seen)
    defer(*["quick"] * 30)
    await until(lambda: ended() == 80)
    defer("die", *["quick"] * 40)
    await until(lambda: doomed.process.poll() is not None)
    assert doomed.process.returncode == -signal.SIGKILL

    before_it_was_seen = ended()
    states = dict(conn.execute("select status, count(*) from procrastinate.jobs group by 1").fetchall())
    seen = {"ready": states.get("todo", 0), "running": states["doing"], "live": 1}
    assert +gauges() == Counter(seen)
    conn.execute("select procrastinate.enable_test_clock(), procrastinate.advance('1 hour')")
    assert +gauges() == +Counter(seen | {"live": 0, "dead": 1})

    heir = start()
    await until(lambda: ended() == 121)
    left = 121 - before_it_was_seen
    await until(lambda: heir.scrape("jobs_finished_total") == left)
    assert heir.scrape("jobs_started_total") == heir.scrape("job_run_seconds_count") == left
    assert heir.scrape("jobs_rescued_total") == states["doing"]
    counted = last_scrape + heir.scrape("jobs_finished_total")
    assert ended() - counted == before_it_was_seen - last_scrape == 30
    heir.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(heir.process.wait, 30) == 0
