"""The views: what they promise to whoever reads them."""

from __future__ import annotations

import datetime as dt

import pytest

COLUMNS = {
    "jobs": [
        "id bigint",
        "status text",
        "task text",
        "queue text",
        "args jsonb",
        "headers jsonb",
        "priority integer",
        "lock text",
        "queueing_lock text",
        "attempts integer",
        "deferred_at timestamp with time zone",
        "scheduled_at timestamp with time zone",
        "started_at timestamp with time zone",
        "finished_at timestamp with time zone",
        "worker_id bigint",
        "abort_requested boolean",
        "error_class text",
        "error_message text",
        "result jsonb",
    ],
    "events": [
        "id bigint",
        "job_id bigint",
        "type text",
        "at timestamp with time zone",
        "worker_id bigint",
        "detail jsonb",
    ],
    "queues": [
        "name text",
        "ready bigint",
        "blocked bigint",
        "scheduled bigint",
        "doing bigint",
        "oldest_ready_at timestamp with time zone",
    ],
    "tasks": [
        "name text",
        "source text",
        "queue text",
        "priority integer",
        "lock text",
        "queueing_lock text",
        "retry jsonb",
        "updated_at timestamp with time zone",
    ],
    "workers": [
        "id bigint",
        "name text",
        "queues text[]",
        "protocol integer",
        "started_at timestamp with time zone",
        "heartbeat_at timestamp with time zone",
        "stalled_after interval",
        "idle boolean",
        "live boolean",
        "running bigint",
        "info jsonb",
    ],
    "locks": [
        "lock text",
        "running_job_id bigint",
        "worker_id bigint",
        "running_since timestamp with time zone",
        "next_job_id bigint",
        "next_queue text",
        "state text",
        "next_due_at timestamp with time zone",
        "waiting bigint",
    ],
    "settings": ["name text", "value jsonb", "description text"],
}


@pytest.mark.parametrize("view", COLUMNS)
def test_columns_are_only_added_and_at_the_end(db, view):
    found = db.rows(
        """
        select format('%%s %%s', attname, format_type(atttypid, atttypmod)) as column
          from pg_attribute
         where attrelid = %s::regclass and attnum > 0 and not attisdropped order by attnum
        """,
        f"procrastinate.{view}",
    )
    assert [row.column for row in found][: len(COLUMNS[view])] == COLUMNS[view]


def test_every_view_says_what_it_shows(db):
    missing = db.rows("""
        select relname from pg_class
         where relnamespace = 'procrastinate'::regnamespace and relkind = 'v'
           and coalesce(obj_description(oid, 'pg_class'), '') = ''
    """)
    assert missing == []


def test_a_job_is_in_the_view_once_whatever_became_of_it(db, worker):
    ids = {kind: db.defer(kind) for kind in ("succeeded", "failed", "aborted", "doing", "todo")}
    ids["cancelled"] = db.defer("cancelled")
    db.cancel(ids["cancelled"])
    for job in worker.fetch(4):
        if job.task != "doing":
            worker.end(job, job.task)
    rows = db.rows("select id, status, task from procrastinate.jobs")
    assert {row.status: row.id for row in rows} == ids
    assert len(rows) == 6
    assert all(row.status == row.task for row in rows)


def test_queues_count_what_is_ready_blocked_scheduled_and_running(db, worker):
    db.defer(queue="q", lock="l")
    worker.take()
    for options in (
        {},
        {"schedule_in": "-1 hour"},
        {"lock": "l"},
        {"lock": "l", "priority": 5},
        {"schedule_in": "1 hour"},
    ):
        db.defer(queue="q", **options)
    db.defer(queue="other", schedule_in="1 hour")
    # only now is it known who waits for the lock
    worker.finish(*[job for job in worker.fetch(1) if job.lock is None])
    rows = {row.name: row for row in db.rows("select * from procrastinate.queues")}
    q = rows["q"]
    assert (q.ready + q.blocked, q.scheduled, q.doing) == (3, 1, 1)
    assert q.oldest_ready_at < db.now() - dt.timedelta(minutes=50)
    other = rows["other"]
    assert (other.ready, other.blocked, other.scheduled, other.doing) == (0, 0, 1, 0)
    assert other.oldest_ready_at is None


def test_queues_tell_blocked_from_ready_once_a_fetch_has_looked(db, worker):
    for priority in (0, 5, -5):
        db.defer(lock="l", priority=priority)
        worker.fetch(9)
    (row,) = db.rows("select * from procrastinate.queues")
    assert (row.ready, row.blocked, row.doing) == (0, 2, 1)


def test_an_empty_queue_is_not_listed(db, worker):
    db.defer(queue="q")
    worker.finish(worker.take())
    assert db.rows("select * from procrastinate.queues") == []


def test_workers_tell_what_they_said_of_themselves_and_what_they_do(db):
    before = db.now()
    worker = db.worker("host/1", queues=["b", "a"], info={"pid": 1}, stalled_after="5 minutes")
    db.defer(queue="a")
    worker.take()
    (row,) = db.rows("select * from procrastinate.workers")
    assert (row.id, row.name, row.queues) == (worker.id, "host/1", ["b", "a"])
    assert (row.info, row.protocol) == ({"pid": 1}, 1)
    assert before <= row.started_at == row.heartbeat_at <= db.now()
    assert (row.stalled_after, row.live, row.running) == (dt.timedelta(minutes=5), True, 1)
    assert row.idle is False


def test_workers_tell_who_is_idle_and_who_is_late(db, worker):
    worker.idle()
    (row,) = db.rows("select idle, live from procrastinate.workers")
    assert (row.idle, row.live) == (True, True)
    db.advance("31 seconds")
    assert db.one("select live from procrastinate.workers") is False
    started = db.one("select started_at from procrastinate.workers")
    worker.heartbeat()
    (row,) = db.rows("select * from procrastinate.workers")
    assert row.live is True
    assert (row.started_at, row.heartbeat_at > started) == (started, True)


def test_reading_the_views_takes_no_more_than_select_on_them(db, session):
    worker = db.worker(schedules=[{"name": "s", "task": "t", "cron": "0 0 1 1 *"}])
    for _ in range(2):
        db.defer(lock="l", schedule_in="1 hour")
    db.advance("1 hour")
    worker.take()
    role = f"reader_{db.conn.info.backend_pid}"
    views = [
        row.name
        for row in db.rows(
            "select c.relname as name from pg_class as c"
            " where c.relnamespace = 'procrastinate'::regnamespace and c.relkind = 'v'"
        )
    ]
    assert len(views) >= 8
    db.conn.execute(f"create role {role}; grant usage on schema procrastinate to {role}")
    try:
        for view in views:
            db.conn.execute(f"grant select on procrastinate.{view} to {role}")
        db.conn.execute(f"set session authorization {role}")
        found = {view: len(db.rows(f"select * from procrastinate.{view}")) for view in views}
    finally:
        db.conn.execute(f"reset session authorization; drop owned by {role}; drop role {role}")
    assert {view for view, count in found.items() if count} >= {"jobs", "workers", "locks", "schedules", "settings"}
