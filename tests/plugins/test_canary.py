"""
A secret in the arguments of jobs comes out nowhere but where it may.

A program with all plugins defers, runs, loses and breaks jobs in every way, and prints what would leave it: logs,
metrics, traces, error reports, and what else somebody in the database can see.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import psycopg
import pytest

CANARY = "S3CR3T-c4n4ry"

PROGRAM = """
import asyncio, json, logging, os

import psycopg, sentry_sdk
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY, generate_latest
from sentry_sdk.transport import Transport

from pyprocrastinate import App, PsycopgConnector

DSN, CANARY, LOG_ARGS = (os.environ.pop(name) for name in ("DSN", "CANARY", "LOG_ARGS"))
said = {"logs": [], "reports": [], "notifications": [], "errors": []}


class Everything(logging.Handler):
    def emit(self, record):
        said["logs"].append(f"{self.format(record)} {vars(record)}")


class Collecting(Transport):
    def capture_envelope(self, envelope):
        said["reports"] += [item.get_bytes().decode(errors="replace") for item in envelope.items]


logging.basicConfig(level=logging.DEBUG, handlers=[Everything()])
sentry_sdk.init("https://key@sentry.invalid/1", transport=Collecting(), enable_logs=True, traces_sample_rate=1.0)
spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
tracers = TracerProvider()
tracers.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(tracers)
metrics.set_meter_provider(MeterProvider([reader]))

app = App(connector=PsycopgConnector(conninfo=DSN), log_args=LOG_ARGS == "True")
conn = psycopg.connect(DSN, autocommit=True)
conn.add_notify_handler(lambda notify: said["notifications"].append(notify.payload))
conn.execute("listen procrastinate_v1")


@app.task(name="good", queue="q", lock="l")
async def good(secret): ...

@app.task(name="threaded", queue="q")
def threaded(secret): ...

@app.task(name="bad", queue="q", retry=1)
async def bad(secret):
    raise ValueError("no luck")

@app.task(name="strict")
async def strict(other): ...

@app.task(name="slow", pass_context=True)
async def slow(context, secret):
    began.set()
    while not context.should_abort():
        await asyncio.sleep(0.01)
    from pyprocrastinate.exceptions import JobAborted
    raise JobAborted

@app.task(name="completes", pass_context=True)
async def completes(context, secret):
    async with await psycopg.AsyncConnection.connect(DSN) as own:
        await context.complete_async(own)


class Opaque:
    def __repr__(self):
        return CANARY


async def refused(defer, **kwargs):
    try:
        await defer(**kwargs)
    except Exception as error:
        import traceback
        shown = [str(error), repr(error), repr(vars(error)), *traceback.format_exception_only(error)]
        cause = error.__cause__
        while cause is not None:
            shown += [str(cause), repr(getattr(cause, "diag", None) and cause.diag.context)]
            cause = cause.__cause__
        said["errors"] += shown
        logging.getLogger("program").error("A defer failed: %s", error)
    else:
        raise AssertionError(f"not refused: {kwargs!r:.100}")


async def main():
    global began
    began = asyncio.Event()
    secret = {"secret": CANARY}
    async with app.open_async():
        for task in (good, threaded, bad, completes):
            await task.defer_async(**secret)
            await task.batch_defer_async(secret, secret)
        await strict.defer_async(**secret)
        await app.configure_task("unknown").defer_async(**{CANARY: CANARY})
        await slow.defer_async(**secret)
        locked = good.configure(queueing_lock="once", schedule_in={"days": 1})
        await locked.defer_async(**secret)
        await refused(locked.defer_async, **secret)
        deep = [CANARY]
        for _ in range(100):
            deep = [deep]
        for value in (CANARY + "\\0", CANARY + "\\ud800", [CANARY, float("nan")], [CANARY, float("inf")], deep,
                      CANARY * 200_000, Opaque(), {CANARY}):
            await refused(good.defer_async, secret=value)
            await refused(lambda **kwargs: good.batch_defer_async(kwargs, kwargs), secret=value)
        for bad_option in ({"queue": "x" * 200}, {"priority": -2**31}, {"lock": ""}):
            await refused(good.configure(**bad_option).defer_async, **secret)
        for poison in (f'{{"a": "{CANARY}", "deep": {"[" * 3000}{"]" * 3000}}}', f'["{CANARY}"]', f'"{CANARY}"'):
            conn.execute("insert into procrastinate.job (task, queue, args) values ('good', 'q', %s)", [poison])
        conn.execute("select procrastinate.schedule('s', 'good', '* * * * *', args => %s)", [json.dumps(secret)])
        conn.execute("select procrastinate.enable_test_clock(), procrastinate.advance('2 minutes')")
        # a worker that was lost
        lost = conn.execute("select procrastinate.register_worker_v1('lost')").fetchone()[0]
        conn.execute("select id from procrastinate.fetch_v1(%s, 2)", [lost])
        conn.execute("select procrastinate.advance('2 minutes')")
        worker = asyncio.create_task(app.run_worker_async(install_signal_handlers=False, wait=False, concurrency=3))
        await began.wait()
        for job in await app.job_manager.list_jobs_async(task="slow"):
            await app.job_manager.cancel_job_by_id_async(job.id, abort=True)
        await worker
        await app.run_worker_async(install_signal_handlers=False, wait=False)
        conn.execute("select 1")


asyncio.run(main())
sentry_sdk.flush()
said["traces"] = [span.to_json() for span in spans.get_finished_spans()]
said["metrics"] = [reader.get_metrics_data().to_json(), generate_latest(REGISTRY).decode()]
kinds = "select status, count(*) from procrastinate.jobs group by 1"
said["statuses"] = [dict(conn.execute(kinds).fetchall())]
print(json.dumps(said))
"""

# What an observer sees, and more: all that is not arguments.
ELSEWHERE = {
    "jobs": "to_jsonb(t) - 'args'",
    "schedules": "to_jsonb(t) - 'args'",
    **dict.fromkeys(("events", "queues", "tasks", "workers", "locks", "settings", "sql_hooks", "roles"), "to_jsonb(t)"),
}


def run(dsn: str, log_args: bool) -> dict[str, list[Any]]:
    environ = {name: value for name, value in os.environ.items() if name != "PROCRASTINATE_PLUGINS"}
    environ |= {"PROCRASTINATE_METRICS_PORT": "0", "PROCRASTINATE_METRICS_HOST": "127.0.0.1"}
    environ |= {"DSN": dsn, "CANARY": CANARY, "LOG_ARGS": str(log_args)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environ, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert CANARY not in done.stderr
    found: dict[str, list[Any]] = json.loads(done.stdout)
    return found


def test_it_is_in_no_log_metric_trace_report_event_or_notification(dsn: str, conn: psycopg.Connection[Any]) -> None:
    said = run(dsn, log_args=False)
    assert {"succeeded", "failed", "aborted"} <= set(said.pop("statuses")[0]), "every way to end"
    assert all(said.values()), "there is something of each"
    for kind, each in said.items():
        for line in each:
            assert CANARY not in str(line), kind
    for view, columns in ELSEWHERE.items():
        shown = conn.execute(f"select ({columns})::text from procrastinate.{view} as t".encode()).fetchall()
        assert [line for (line,) in shown if CANARY in line] == [], view
    views = conn.execute(
        "select relname from pg_class where relnamespace = 'procrastinate'::regnamespace and relkind = 'v'"
    )
    assert {view for (view,) in views} == ELSEWHERE.keys()


def test_with_log_args_it_is_in_the_logs(dsn: str) -> None:
    """So that the test above can fail."""
    assert CANARY in str(run(dsn, log_args=True)["logs"])


@pytest.mark.parametrize("tool", ["jobs", "queues", "plugins"])
def test_nor_does_the_command_show_it_unasked(dsn: str, conn: psycopg.Connection[Any], tool: str) -> None:
    conn.execute("select procrastinate.defer('t', %s)", [f'{{"secret": "{CANARY}"}}'])
    environ = os.environ | {"PROCRASTINATE_DSN": dsn}
    done = subprocess.run(
        [sys.executable, "-m", "pyprocrastinate", "-v", tool], capture_output=True, text=True, env=environ, check=True
    )
    assert CANARY not in done.stdout + done.stderr
