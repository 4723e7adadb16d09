"""
What the queue in memory of pyprocrastinate-testing works out by itself, beside the database: cron, JSON, delays.

How it behaves as a queue is put to the test in test_state_machine.py.
"""

from __future__ import annotations

import datetime
import json
from typing import Any

import hypothesis.strategies as st
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings

from pyprocrastinate.operations import Call
from pyprocrastinate_testing import InMemoryConnector, functions
from pyprocrastinate_testing.views import VIEWS

SOME = settings(
    max_examples=200,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def queue():
    return InMemoryConnector()


def tried(call):
    """Return what a call gives, or how it is refused."""
    try:
        return call()
    except psycopg.Error as error:
        diag = error.diag
        return (error.sqlstate, diag.message_primary, diag.message_detail, diag.message_hint)


def rows(queue, function, **args):
    return queue.run_for_worker(Call(function, args, list))


# What there is

# The test clock is a method there; there are no roles, no server to tell of, no functions of the database's to call.
MISSING = {"now_", "advance", "enable_test_clock", "register_sql_hook", "unregister_sql_hook"}
MISSING |= {"grant_access", "revoke_access", "backend_v1"}


def test_the_same_functions_can_be_called_with_the_same_parameters(db):
    public = db.rows("""
        select p.proname as name, p.proargnames[1:p.pronargs] as parameters, p.pronargdefaults as defaults
          from pg_proc as p where p.pronamespace = 'procrastinate'::regnamespace and p.proname !~ '^_'
    """)
    here = {
        name: ([*signature.parameters][1:], sum(p.default is not p.empty for p in signature.parameters.values()))
        for name, signature in functions.signatures().items()
    }
    assert here == {row.name: (row.parameters or [], row.defaults) for row in public if row.name not in MISSING}


def test_the_same_views_have_the_same_columns(db, queue):
    queue.run(Call("register_worker_v1", {"name": "w", "tasks": '{"t": {}}'}, list))
    queue.run(Call("schedule", {"name": "s", "task": "t", "cron": "@daily"}, list))
    queue.run(Call("defer", {"task": "t", "lock": "x"}, list))
    here = {name: list(view(queue._tables)[0]) for name, view in VIEWS.items()}
    columns = db.rows("""
        select c.table_name as view, array_agg(c.column_name::text order by c.ordinal_position) as columns
          from information_schema.columns as c join information_schema.views as v using (table_schema, table_name)
         where c.table_schema = 'procrastinate' and (table_name, c.column_name) <> ('settings', 'description')
         group by c.table_name
    """)
    assert here == {row.view: row.columns for row in columns if row.view not in ("sql_hooks", "roles")}


# Cron


def field(low, high, *names):
    number = st.integers(low, high)
    some = st.sampled_from(names) if names else number.map(str)
    value = st.one_of(number.map(str), some)
    span = st.tuples(number, number).map(lambda ends: f"{min(ends)}-{max(ends)}")
    step = st.tuples(st.one_of(st.just("*"), span, value), st.integers(1, 30)).map(lambda part: f"{part[0]}/{part[1]}")
    parts = st.lists(st.one_of(value, span, step), min_size=1, max_size=3).map(",".join)
    return st.one_of(st.just("*"), st.just("*"), parts)


EXPRESSIONS = st.one_of(
    st.tuples(
        field(0, 59),
        field(0, 23),
        field(1, 31),
        field(1, 12, "jan", "FEB"),
        field(0, 7, "sun", "Mon", "sat"),
        st.one_of(st.just(""), field(0, 59)),
    ).map(lambda fields: " ".join(fields).strip()),
    st.sampled_from(
        ["@daily", "@HOURLY", "@yearly", " 0 0 29 2 1 ", "0 0 30 2 *", "* * * * * 30", "0 1-3 * * fri-sun"]
    ),
)
BAD = st.sampled_from(
    [
        "",
        "@often",
        "* * * *",
        "60 * * * *",
        "* * * * 8",
        "5-1 * * * *",
        "*/0 * * * *",
        "1,,2 * * * *",
        "a * * * *",
        "٣ * * * *",
    ]
)
ZONES = st.sampled_from(
    [
        "UTC",
        "Europe/Berlin",
        "america/new_york",
        "Australia/Lord_Howe",
        "Africa/Cairo",
        "Asia/Kathmandu",
        "America/Santiago",
    ]
)
# mostly near a change of the clocks somewhere
TIMES = st.one_of(
    st.sampled_from(["2026-03-29", "2026-10-25", "2026-03-08", "2026-11-01", "2026-04-05", "2026-10-04", "2026-04-24"])
    .map(datetime.datetime.fromisoformat)
    .flatmap(lambda day: st.integers(-100_000, 100_000).map(lambda s: day + datetime.timedelta(seconds=s))),
    st.datetimes(datetime.datetime(1990, 1, 1), datetime.datetime(2090, 1, 1)),
).map(lambda time: time.replace(tzinfo=datetime.UTC))


def ticks(db, queue, expression, after, timezone):
    """Return the next tick as the database and as the queue in memory tell it."""
    ask = "select procrastinate.cron_next(%s, %s, %s)"
    there = tried(lambda: db.one(ask, expression, after, timezone))
    call = Call("cron_next", {"expression": expression, "after": after, "timezone": timezone}, list)
    here = tried(lambda: queue._rows(call)[0][0])
    return there, here


def test_cron_fires_at_the_same_times(db, queue):
    @SOME
    @given(EXPRESSIONS, TIMES, ZONES)
    def compare(expression, after, timezone):
        there, here = ticks(db, queue, expression, after, timezone)
        assert here == there

    compare()


def test_bad_expressions_are_refused_in_the_same_words(db, queue):
    after = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)

    @SOME
    @given(BAD, st.sampled_from(["UTC", "Mars/Olympus"]))
    def compare(expression, timezone):
        there, here = ticks(db, queue, expression, after, timezone)
        assert there[0] in ("JQ020", "JQ021")
        assert here == there

    compare()


# JSON

NUMBERS = st.sampled_from(["0", "-0", "-0.0", "1.50", "1e2", "1E-3", "12345678901234567890123", "-1.5e10"])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        NUMBERS,
        st.sampled_from(["null", "true", "false"]),
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")).map(json.dumps),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.lists(st.tuples(st.text('abé"\\', max_size=3).map(json.dumps), inner), max_size=3).map(
            lambda items: "{" + ",".join(f"{key}: {value}" for key, value in items) + "}"
        ),
    ),
    max_leaves=8,
)


def test_json_is_kept_and_written_alike(db, queue):
    @SOME
    @given(VALUES)
    def compare(value):
        args = f'{{"a": {value}}}'
        there = db.one("select procrastinate.defer('t', %s::jsonb)", args)
        here = rows(queue, "defer", task="t", args=args)[0][0]
        query = Call("jobs", {"id": here}, list, view=["args::text", "args"])
        written = db.rows("select args::text as text, args from procrastinate.jobs where id = %s", there)[0]
        assert queue.run(query) == [tuple(written)]

    compare()


# Views that the walks leave out


def test_queues_and_settings_look_alike(db, queue):
    worker, double = db.worker(), rows(queue, "register_worker_v1", name="w")[0][0]
    jobs = [{"lock": "x"}, {"lock": "x"}, {"lock": "x", "queue": "b"}, {"schedule_in": "1 hour"}, {}, {}]
    db.defer_many(*jobs)
    rows(queue, "defer_many", jobs=json.dumps([{"task": "task"} | job for job in jobs]))
    # a fetch lines up who waits for a lock
    assert worker.ids(2) == [row[0] for row in rows(queue, "fetch_v1", worker_id=double, capacity=2)] == [1, 5]
    worker.ids(9)
    rows(queue, "fetch_v1", worker_id=double, capacity=9)
    db.set("max_rescues", 7)
    rows(queue, "set_setting", name="max_rescues", value="7")
    for view, columns in {
        "queues": ["name", "ready", "blocked", "scheduled", "doing", "oldest_ready_at"],
        "settings": ["name", "value"],
    }.items():
        there = db.rows(f"select {', '.join(columns)} from procrastinate.{view}")
        assert sorted(queue.run(Call(view, {}, list, columns))) == sorted(map(tuple, there))


# Delays

SECONDS = st.sampled_from([0, 1, 2.5, 60, 3600, 1e6, 1e12])
POLICIES = st.fixed_dictionaries(
    {},
    optional={
        "max_attempts": st.sampled_from([0, 2, 4]),
        "wait": SECONDS,
        "linear_wait": SECONDS,
        "exponential_wait": SECONDS,
        "max_wait": SECONDS,
        "retry_exceptions": st.sampled_from([[], ["ValueError"], ["KeyError"]]),
        "rescues": st.just(1),
    },
)


def test_retries_wait_as_long(db, queue):
    worker, double = db.worker(), rows(queue, "register_worker_v1", name="w")[0][0]
    error = {"class": "ValueError", "ancestors": ["Exception"], "message": "no"}

    def wait(finished, retry_at):
        return retry_at and round((retry_at - finished).total_seconds() / 5)

    @SOME
    @given(POLICIES, st.sampled_from([0, 1, 3, 30]))
    def compare(policy, attempts):
        db.conn.execute("delete from procrastinate.job")
        db.conn.execute(
            "insert into procrastinate.job (task, retry, attempts) values ('t', %s, %s)", [json.dumps(policy), attempts]
        )
        there = worker.fail(worker.take())
        rows(queue, "defer", task="t", retry=json.dumps(policy))
        tables = queue._tables
        (job,) = tables.job.values()
        tables.put(job, attempts=attempts)
        run = rows(queue, "fetch_v1", worker_id=double)[0]
        told = {"id": run[0], "token": run[1], "outcome": "failed", "error": error}
        here = queue._rows(Call("finish_v1", {"worker_id": double, "outcomes": json.dumps([told])}, list))[0]
        tables.job.clear()
        assert (here[5], wait(queue.advance(0), here[6])) == (there.status, wait(db.now(), there.retry_at))

    compare()
