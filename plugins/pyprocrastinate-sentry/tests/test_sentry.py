"""What Sentry is told of jobs, as its SDK would send it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sentry_sdk
from sentry_sdk.transport import Transport

import pyprocrastinate_sentry
from pyprocrastinate.exceptions import JobAborted, JobRetry
from pyprocrastinate.retry import RetryDecision
from pyprocrastinate_sentry import monitor_slug

EXAMPLE = Path(__file__).parents[1] / "example.py"
SECRET = "correct horse battery staple"


class Collecting(Transport):
    """A transport that keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.items = []

    def capture_envelope(self, envelope):
        # As it would go over the wire.
        self.items += [json.loads(item.get_bytes()) for item in envelope.items]

    @property
    def events(self):
        return [item for item in self.items if "type" not in item or item["type"] == "event"]

    @property
    def check_ins(self):
        return [item for item in self.items if "monitor_slug" in item]


@pytest.fixture
def init():
    """Return a function that sets the SDK up, and returns its transport."""

    def init(**options):
        transport = Collecting()
        sentry_sdk.init(
            "https://key@sentry.invalid/1", transport=transport, auto_enabling_integrations=False, **options
        )
        return transport

    yield init
    sentry_sdk.get_client().close()
    sentry_sdk.get_global_scope().set_client(None)


@pytest.fixture
async def app(open_app):
    app = await open_app(pyprocrastinate_sentry)

    @app.task(name="fail", queue="post")
    def fail(to=""):
        raise ValueError("no such address")

    @app.task(name="try_again", retry=1)
    async def try_again(to=""):
        raise ConnectionError("busy")

    return app


def told(event):
    return event["level"], event["contexts"]["procrastinate"]["attempt"], event["exception"]["values"][-1]["type"]


async def test_an_error_says_which_job_it_was(app, drain, init):
    sent = init()
    job_id = await app.tasks["fail"].defer_async()
    await drain(app)
    (event,) = sent.events
    assert told(event) == ("error", 1, "ValueError")
    assert event["transaction"] == "fail"
    assert event["tags"] == {"procrastinate.task": "fail", "procrastinate.queue": "post"}
    assert event["contexts"]["procrastinate"] == {"job_id": job_id, "task": "fail", "queue": "post", "attempt": 1}
    (value,) = event["exception"]["values"]
    assert value["mechanism"] == {"type": "pyprocrastinate", "handled": False}
    assert value["stacktrace"]["frames"][-1]["function"] == "fail"


async def test_a_retry_is_a_warning(app, drain, init):
    sent = init()
    await app.tasks["try_again"].defer_async()
    await drain(app)
    assert [told(event) for event in sent.events] == [
        ("warning", 1, "ConnectionError"),
        ("error", 2, "ConnectionError"),
    ]


async def test_retries_are_quiet_by_choice(app, drain, init, monkeypatch):
    monkeypatch.setenv("PROCRASTINATE_SENTRY_RETRIES", "off")
    sent = init()
    await app.tasks["try_again"].defer_async()
    await drain(app)
    assert [told(event) for event in sent.events] == [("error", 2, "ConnectionError")]


async def test_what_was_asked_for_is_no_error(app, drain, init):
    sent = init()

    @app.task(name="abort")
    def abort():
        raise JobAborted

    @app.task(name="retry", pass_context=True)
    def retry(context):
        if not context.job.attempts:
            raise JobRetry(RetryDecision())

    await abort.defer_async()
    await retry.defer_async()
    await drain(app)
    assert sent.events == []


async def test_a_task_that_nobody_knows(app, drain, init, conn):
    sent = init()
    conn.execute("select procrastinate.defer('unheard_of', jsonb_build_object('to', %s::text))", [SECRET])
    await drain(app)
    (event,) = sent.events
    assert event["level"] == "error"
    assert event["logentry"]["message"] == "Job of unheard_of failed"
    assert event["tags"]["procrastinate.task"] == "unheard_of"
    assert SECRET not in json.dumps(event)


@pytest.mark.filterwarnings("ignore:The send_default_pii option is deprecated")
@pytest.mark.parametrize(
    ("options", "private"),
    [
        ({}, True),
        ({"send_default_pii": True}, False),
        ({"data_collection": {"queues": False}}, True),
        ({"data_collection": {"queues": True}}, False),
    ],
)
async def test_arguments_are_sent_only_where_that_is_allowed(app, drain, init, options, private):
    sent = init(**options)

    @app.task(name="outer")
    async def outer(to):
        await app.tasks["fail"].defer_async(to=to)
        copy = to
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ValueError(f"{len(copy)} are too many") from error

    await outer.defer_async(to=SECRET)
    await drain(app)
    assert len(sent.events) == 2
    for event in sent.events:
        assert (SECRET in json.dumps(event)) is not private
        assert ("args" in event["contexts"]["procrastinate"]) is not private


async def test_breadcrumbs_and_tags_are_those_of_the_job(app, drain, init):
    sent = init()
    barrier = asyncio.Barrier(2)

    @app.task(name="meet")
    async def meet(name):
        sentry_sdk.set_tag("name", name)
        sentry_sdk.add_breadcrumb(message=f"I am {name}")
        await barrier.wait()
        raise ValueError(name)

    await meet.batch_defer_async({"name": "Ada"}, {"name": "Grace"})
    await drain(app, concurrency=2)
    crumbs = {
        (event["tags"]["name"], event["exception"]["values"][0]["value"]): [
            crumb["message"] for crumb in event["breadcrumbs"]["values"]
        ]
        for event in sent.events
    }
    assert crumbs == {("Ada", "Ada"): ["I am Ada"], ("Grace", "Grace"): ["I am Grace"]}


async def test_other_errors_that_are_logged_still_are_sent(app, drain, init):
    sent = init()

    @app.task(name="log")
    def log():
        logging.getLogger("shop").error("out of paper")

    await log.defer_async()
    await drain(app)
    assert [event["logentry"]["message"] for event in sent.events] == ["out of paper"]
    assert sent.events[0]["tags"]["procrastinate.task"] == "log"


async def test_without_init_nothing_happens(app, drain, status):
    assert not sentry_sdk.is_initialized()
    job_id = await app.tasks["fail"].defer_async()
    await drain(app)
    assert status(job_id) == "failed"


# Check-ins


@pytest.fixture
def run_schedules(app, drain, conn, monkeypatch):
    """Return an async function that lets declared and other schedules fire once, and runs their jobs."""
    monkeypatch.setenv("PROCRASTINATE_SENTRY_CRONS", "on")

    @app.periodic(cron="0 * * * *", periodic_id="Often")
    @app.task(name="app.clean_up")
    def clean_up(timestamp):
        pass

    @app.task(name="report", retry=1)
    def report():
        raise ValueError("no paper")

    async def run_schedules():
        conn.execute("select procrastinate.enable_test_clock()")
        conn.execute("select procrastinate.schedule('Report!', 'report', '0 * * * *')")
        # To where the next tick is far away.
        conn.execute("""
            select procrastinate.advance(date_trunc('hour', now) + interval '1 hour 30 seconds' - now)
              from procrastinate.now_() as now
        """)
        # As the app's worker declares it, which may find nothing to do before it is due.
        declared = [{"name": "app.clean_up:Often", "task": "app.clean_up", "cron": "0 * * * *"}]
        conn.execute("select procrastinate.register_worker_v1('w', schedules => %s)", [json.dumps(declared)])
        conn.execute("select procrastinate.tick_v1()")
        await drain(app)

    return run_schedules


async def test_check_ins_of_schedules(run_schedules, init):
    sent = init()
    await run_schedules()
    by_monitor = {
        slug: [c for c in sent.check_ins if c["monitor_slug"] == slug] for slug in ("app-clean_up-often", "report")
    }
    assert [c["status"] for c in by_monitor["app-clean_up-often"]] == ["in_progress", "ok"]
    assert [c["status"] for c in by_monitor["report"]] == ["in_progress", "in_progress", "error"]
    for check_ins in by_monitor.values():
        assert len({c["check_in_id"] for c in check_ins}) == 1
        assert check_ins[-1]["duration"] >= 0
    expected = {"schedule": {"type": "crontab", "value": "0 * * * *"}, "timezone": "UTC"}
    assert {json.dumps(c.get("monitor_config")) for c in by_monitor["app-clean_up-often"]} == {json.dumps(expected)}
    assert {c.get("monitor_config") for c in by_monitor["report"]} == {None}


async def test_check_ins_are_off_unless_they_are_wanted(run_schedules, init, monkeypatch):
    monkeypatch.delenv("PROCRASTINATE_SENTRY_CRONS")
    sent = init()
    await run_schedules()
    assert len(sent.events) == 2
    assert sent.check_ins == []


@pytest.mark.parametrize(
    ("schedule", "slug"),
    [
        ("nightly", "nightly"),
        ("App.Tasks.clean_up:Ünique", "app-tasks-clean_up-nique"),
        ("a" * 60, "a" * 41 + "-11ee3912"),
    ],
)
def test_the_slug_of_a_monitor(schedule, slug):
    assert monitor_slug(schedule) == slug
    assert re.fullmatch(r"[a-z0-9_-]{1,50}", slug)


def test_the_example(dsn, tmp_path):
    environ = os.environ | {"PROCRASTINATE_DSN": dsn, "PROCRASTINATE_PLUGINS": "sentry", "SENTRY_DSN": ""}
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLE], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        "error: send, attempt 1: ValueError: no such address",
        "warning: call, attempt 1: ConnectionError: the line is busy",
        "warning: call, attempt 2: ConnectionError: the line is busy",
    ]
