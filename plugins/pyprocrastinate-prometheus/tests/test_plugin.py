"""The plugin in a worker and at the command line, from defer to scrape."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from pyprocrastinate.exceptions import JobAborted
from pyprocrastinate_prometheus import Plugin
from pyprocrastinate_prometheus._plugin import DASHBOARD

EXAMPLE = Path(__file__).parents[1] / "example.py"


def read(url):
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read().decode()


def value(text, name, **labels):
    """Return a value of a scrape."""
    found = [
        sample.value
        for metric in text_string_to_metric_families(text)
        for sample in metric.samples
        if (sample.name, sample.labels) == (f"procrastinate_{name}", labels)
    ]
    assert len(found) == 1, f"{name}{labels} is not in\n{text}"
    return found[0]


@pytest.fixture
async def app(open_app, plugin):
    app = await open_app(plugin)

    @app.task(name="work", queue="q", retry=1, pass_context=True)
    async def work(context, how="succeed"):
        if how == "fail" or (how == "retry" and not context.job.attempts):
            raise ValueError
        if how == "abort":
            raise JobAborted

    return app


async def test_jobs_of_a_worker_are_counted(app, drain, sample):
    await app.tasks["work"].batch_defer_async(*({"how": how} for how in ("succeed", "retry", "fail", "abort")))
    await drain(app)
    labels = {"task": "work", "queue": "q"}
    assert sample("jobs_deferred_total", **labels) == 4
    assert sample("jobs_started_total", **labels) == 6
    assert {o: sample("jobs_finished_total", **labels, outcome=o) for o in ("succeeded", "failed", "aborted")} == {
        "succeeded": 2,
        "failed": 1,
        "aborted": 1,
    }
    assert sample("jobs_retried_total", **labels) == 2
    assert sample("jobs_stale_total", **labels) == 0
    assert sample("job_run_seconds_count", **labels) == 6
    assert sample("job_wait_seconds_count", **labels) == 4


async def test_a_worker_serves_what_it_did_and_what_the_database_holds(app, plugin, monkeypatch, conn, drain):
    monkeypatch.setenv("PROCRASTINATE_METRICS_PORT", "0")
    monkeypatch.setenv("PROCRASTINATE_METRICS_HOST", "127.0.0.1")
    conn.execute("select procrastinate.defer('elsewhere', queue => 'other')")
    scrapes = []

    @app.task(name="scrape", queue="q")
    def scrape():
        while plugin.port is None:
            time.sleep(0.01)
        scrapes.append(read(f"http://127.0.0.1:{plugin.port}/metrics"))

    await scrape.defer_async()
    await drain(app, queues=["q"])
    (scraped,) = scrapes
    assert value(scraped, "jobs_started_total", task="scrape", queue="q") == 1
    assert value(scraped, "queue_depth", queue="other", status="todo", state="ready") == 1
    assert value(scraped, "queue_depth", queue="q", status="doing", state="running") == 1
    assert value(scraped, "workers", state="live") == 1
    assert plugin.port is None


async def test_there_is_no_endpoint_unless_it_is_wanted(app, plugin, monkeypatch, drain):
    monkeypatch.delenv("PROCRASTINATE_METRICS_PORT", raising=False)
    ports = []

    @app.task(name="look")
    def look():
        ports.append(plugin.port)

    await look.defer_async()
    await drain(app)
    assert ports == [None]


def test_the_endpoint_stays_until_the_last_worker_has_stopped(monkeypatch, dsn, open_app):
    class Worker:
        listen_notify = True

        class connector:
            @staticmethod
            def address():
                return dsn

    monkeypatch.setenv("PROCRASTINATE_METRICS_PORT", "0")
    plugin = Plugin(CollectorRegistry())
    for _ in range(2):
        plugin.worker_started(Worker())
    port = plugin.port
    assert port
    plugin.worker_stopped()
    assert plugin.port == port
    plugin.worker_stopped()
    assert plugin.port is None
    plugin.worker_started(Worker())
    assert "procrastinate_queue_depth" in read(f"http://127.0.0.1:{plugin.port}/metrics")
    plugin.worker_stopped()


# The command line


@pytest.fixture
def run(dsn, tmp_path):
    """Return a function that runs the command with this plugin, and returns what it prints."""

    def run(*arguments, **environ):
        environ = os.environ | {"PROCRASTINATE_DSN": dsn, "PROCRASTINATE_PLUGINS": "prometheus"} | environ
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "pyprocrastinate", *arguments],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_metrics_once(run, conn):
    conn.execute("select procrastinate.defer('t', queue => 'q')")
    printed = run("metrics", "--once")
    assert value(printed, "queue_depth", queue="q", status="todo", state="ready") == 1
    assert value(printed, "database_up") == 1


def test_the_dashboard_is_printed(run):
    assert run("metrics", "--dashboard", PROCRASTINATE_DSN="") == DASHBOARD.read_text("utf-8")


def test_metrics_alone(dsn, conn, tmp_path):
    conn.execute("select procrastinate.defer('t', queue => 'q')")
    environ = os.environ | {"PROCRASTINATE_DSN": dsn, "PROCRASTINATE_PLUGINS": "prometheus"}
    command = [sys.executable, "-m", "pyprocrastinate", "metrics", "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, env=environ, stderr=subprocess.PIPE, text=True) as process:
        try:
            url = process.stderr.readline().split()[-1]
            assert value(read(url), "queue_depth", queue="q", status="todo", state="ready") == 1
        finally:
            process.terminate()


def test_a_port_in_use_is_one_clear_line(dsn, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "pyprocrastinate", "metrics", "--host", "127.0.0.1", "--port", str(port)],
            cwd=tmp_path,
            env=os.environ | {"PROCRASTINATE_DSN": dsn, "PROCRASTINATE_PLUGINS": "prometheus"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: metrics cannot be served at 127.0.0.1:{port}: ")
    assert line.endswith(". Choose another host or port")


APP = """
import time, urllib.request
from pyprocrastinate import App, PsycopgConnector
from pyprocrastinate_prometheus import plugin
app = App(connector=PsycopgConnector())

@app.task(name="scrape")
def scrape():
    while plugin.port is None:
        time.sleep(0.01)
    with urllib.request.urlopen(f"http://127.0.0.1:{plugin.port}/metrics") as answer:
        print(answer.read().decode(), end="")
"""


def test_a_worker_of_the_command_line_serves_them_where_the_environment_says(run, conn, tmp_path):
    (tmp_path / "shop.py").write_text(APP)
    conn.execute("select procrastinate.defer('scrape')")
    where = {"PROCRASTINATE_METRICS_PORT": "0", "PROCRASTINATE_METRICS_HOST": "127.0.0.1"}
    printed = run("--app", "shop.app", "worker", "--one-shot", **where)
    assert value(printed, "jobs_started_total", task="scrape", queue="default") == 1
    assert value(printed, "queue_depth", queue="default", status="doing", state="running") == 1


def test_the_example(dsn, tmp_path, unused_tcp_port):
    environ = os.environ | {
        "PROCRASTINATE_DSN": dsn,
        "PROCRASTINATE_PLUGINS": "prometheus",
        "PROCRASTINATE_METRICS_PORT": str(unused_tcp_port),
        "PYTHONUNBUFFERED": "1",
    }
    with subprocess.Popen(
        [sys.executable, EXAMPLE], cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline().endswith("is paid\n")
            scraped = read(f"http://127.0.0.1:{unused_tcp_port}/metrics")
        finally:
            process.terminate()
    assert value(scraped, "jobs_finished_total", task="charge", queue="money", outcome="succeeded") >= 1
    assert value(scraped, "jobs_deferred_total", task="confirm", queue="mail") >= 1
