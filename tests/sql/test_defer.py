"""What `defer` promises to anybody who can run SQL."""

from __future__ import annotations

import datetime as dt

import pytest

HOUR = dt.timedelta(hours=1)


def test_the_name_of_the_task_is_enough(db):
    job = db.job(db.defer("send_email"))
    assert (job.status, job.task, job.queue, job.args, job.headers) == ("todo", "send_email", "default", {}, None)
    assert (job.priority, job.lock, job.queueing_lock, job.attempts) == (0, None, None, 0)
    assert (job.scheduled_at, job.started_at, job.finished_at, job.worker_id) == (None,) * 4
    assert (job.abort_requested, job.error_class, job.error_message, job.result) == (False, None, None, None)


def test_one_line_of_sql_defers_a_job(db):
    job_id = db.one("""select procrastinate.defer('send_email', '{"to": "a@b.c"}')""")
    assert db.job(job_id).args == {"to": "a@b.c"}


def test_everything_given_is_stored(db):
    at = dt.datetime(2040, 1, 2, 3, 4, 5, 678, tzinfo=dt.UTC)
    job_id = db.defer(
        "task",
        args={"a": [1, {"b": None}]},
        queue="queue",
        priority=-7,
        lock="lock",
        queueing_lock="queueing lock",
        schedule_at=at,
        headers={"trace": "x"},
        retry={"max_attempts": 3},
    )
    job = db.job(job_id)
    assert (job.args, job.queue, job.priority) == ({"a": [1, {"b": None}]}, "queue", -7)
    assert (job.lock, job.queueing_lock, job.scheduled_at, job.headers) == ("lock", "queueing lock", at, {"trace": "x"})


def test_ids_ascend_in_the_order_of_the_calls(db):
    ids = [db.defer(priority=n) for n in (3, 1, 2)]
    assert ids == sorted(ids)


def test_a_rollback_takes_the_job_with_it(db, session):
    other = session(autocommit=False)
    job_id = other.defer()
    assert db.job(job_id) is None
    other.conn.rollback()
    assert db.job(job_id) is None


def test_a_job_is_seen_from_the_commit_on(db, session, worker):
    other = session(autocommit=False)
    job_id = other.defer()
    assert worker.fetch() == []
    other.conn.commit()
    assert worker.ids() == [job_id]


def test_a_refused_defer_leaves_the_savepoint_before_it_usable(session):
    other = session(autocommit=False)
    kept = other.defer("before")
    with other.refused("JQ014"), other.conn.transaction():
        other.defer("")
    other.conn.commit()
    assert other.status(kept) == "todo"


def test_a_schedule_in_counts_from_now(db):
    before = db.now()
    job = db.job(db.defer(schedule_in="1 hour"))
    assert before + HOUR <= job.scheduled_at <= db.now() + HOUR


@pytest.mark.parametrize("past", [{"schedule_in": "-1 hour"}, {"schedule_at": "2020-01-01"}])
def test_a_time_in_the_past_means_at_once(db, worker, past):
    job_id = db.defer(**past)
    assert worker.ids() == [job_id]


def test_both_ways_to_give_a_time_are_refused(db):
    with db.refused("22023", "both schedule_at and schedule_in are given", hint="one of them"):
        db.defer(schedule_in="1 hour", schedule_at="2040-01-01")


@pytest.mark.parametrize("on_conflict", ["", "Raise", "update", None])
def test_an_unknown_on_conflict_is_refused_even_where_nothing_conflicts(db, on_conflict):
    with db.refused("22023", "unknown on_conflict", hint="raise, ignore or replace"):
        db.defer(on_conflict=on_conflict)


def test_an_unknown_option_is_refused(db, secret):
    with db.refused("JQ016", "unknown key in options", detail='"ttl"', hint="Known keys: none"):
        db.defer(args={"a": secret}, options={"ttl": 3})


def test_options_that_are_no_object_are_refused(db):
    with db.refused("JQ016", "options must be a JSON object"):
        db.defer(options=[1])


def test_deferred_at_goes_by_the_time_of_the_queue(db):
    db.advance("10 days")
    before = db.now()
    assert before <= db.job(db.defer()).deferred_at <= db.now()


def test_null_args_are_empty_args(db):
    assert db.job(db.defer(args=None)).args == {}


def test_a_json_null_is_as_good_as_no_value(db, worker):
    db.value("register_task", name="task", retry=True)
    job_id = db.one("select procrastinate.defer('task', 'null', headers => 'null', retry => 'null')")
    assert (db.job(job_id).args, db.job(job_id).headers) == ({}, None)
    assert worker.fail(worker.take()).status == "todo"


def test_the_search_path_of_the_caller_changes_nothing(db, worker):
    db.conn.execute("""
        create schema evil;
        create function evil.length(text) returns int language sql as 'select 0';
        create function evil.clock_timestamp() returns timestamptz language sql as
          'select timestamptz ''2001-01-01''';
        create table evil.job (id int);
        create temp table config (clock_offset interval default '1 year');
        insert into config default values;
        set search_path = evil, pg_catalog;
    """)
    try:
        job_id = db.defer(args={"a": 1})
        assert abs(db.job(job_id).deferred_at - dt.datetime.now(dt.UTC)) < HOUR
        assert worker.ids() == [job_id]
    finally:
        db.conn.execute("reset search_path; drop schema evil cascade")


def test_the_right_to_defer_is_not_the_right_to_read(db):
    role = f"deferrer_{db.conn.info.backend_pid}"
    signature = db.one("select oid::regprocedure::text from pg_proc where proname = 'defer'")
    db.conn.execute(f"""
        create role {role};
        grant usage on schema procrastinate to {role};
        grant execute on function {signature} to {role};
        set session authorization {role};
    """)
    try:
        job_id = db.defer(args={"a": 1}, queueing_lock="q")
        with db.refused("23505"):
            db.defer(queueing_lock="q")
        for forbidden in ("select * from procrastinate.job", "select procrastinate.cancel(1)"):
            with db.refused("42501"):
                db.rows(forbidden)
    finally:
        db.conn.execute("reset session authorization")
        db.conn.execute(f"drop owned by {role}; drop role {role}")
    assert db.status(job_id) == "todo"


# What a task's registration fills in


def test_what_is_left_out_takes_what_the_task_registered(db):
    db.value("register_task", name="task", queue="mail", priority=5, lock="one", queueing_lock="once")
    job = db.job(db.defer("task"))
    assert (job.queue, job.priority, job.lock, job.queueing_lock) == ("mail", 5, "one", "once")
    job = db.job(db.defer("other task"))
    assert (job.queue, job.priority, job.lock, job.queueing_lock) == ("default", 0, None, None)


GIVEN = {"queue": "q", "priority": 0, "lock": "l", "queueing_lock": "ql"}


@pytest.mark.parametrize("given", [GIVEN, *({name: value} for name, value in GIVEN.items())], ids=str)
@pytest.mark.parametrize("many", [False, True])
def test_what_is_given_wins_over_what_the_task_registered(db, given, many):
    registered = {"queue": "mail", "priority": 5, "lock": "one", "queueing_lock": "once"}
    db.value("register_task", name="task", **registered)
    job = db.job(db.defer_many(given)[0].id if many else db.defer(**given))
    assert {name: getattr(job, name) for name in registered} == registered | given


def test_each_registered_default_stands_for_itself(db):
    db.value("register_task", name="task", lock="one")
    job = db.job(db.defer("task", priority=3))
    assert (job.queue, job.priority, job.lock, job.queueing_lock) == ("default", 3, "one", None)
