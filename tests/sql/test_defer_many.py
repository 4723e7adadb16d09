"""What `defer_many` promises: as many jobs as one likes, in one statement."""

from __future__ import annotations

import datetime as dt

import pytest

AT = "2040-01-02T03:04:05+00:00"


def plain(db, job_id):
    """Return all that a defer decides about a job."""
    job = db.job(job_id)
    return job._replace(id=None, deferred_at=None)


def test_each_job_gets_a_row_in_the_order_given(db):
    rows = db.defer_many({"args": {"n": 1}}, {"args": {"n": 2}}, {"args": {"n": 3}})
    assert [(row.ord, row.created) for row in rows] == [(1, True), (2, True), (3, True)]
    assert [db.job(row.id).args["n"] for row in rows] == [1, 2, 3]


def test_ids_ascend_in_the_order_given_whatever_the_priorities(db):
    rows = db.defer_many(*({"priority": p, "args": {"p": p}} for p in (1, 9, -3, 9, 0)))
    assert [row.id for row in rows] == sorted(row.id for row in rows)
    assert [db.job(row.id).args["p"] for row in rows] == [1, 9, -3, 9, 0]


def test_nothing_to_defer_is_no_error(db):
    assert db.call("defer_many", jobs=[]) == []


@pytest.mark.parametrize(
    "job",
    [
        {},
        {"task": "registered"},
        {"task": "registered", "queue": "q", "priority": 0, "lock": "l", "queueing_lock": "ql"},
        {"args": {"a": [1, None, "ü"]}, "headers": {"b": {}}},
        {"queue": "q", "priority": -3, "lock": "l", "queueing_lock": "ql"},
        {"schedule_at": AT},
        {"schedule_at": AT, "lock": "l"},
        {"schedule_at": "2001-01-01T00:00:00+02:00"},
        dict.fromkeys(["queue", "priority", "lock", "queueing_lock", "schedule_at"]),
        dict.fromkeys(["args", "headers", "retry"]),
    ],
    ids=str,
)
def test_a_job_is_the_same_whichever_way_it_is_deferred(db, job):
    db.value("register_task", name="registered", queue="r", priority=5, lock="rl", queueing_lock="rql")
    one = db.defer(**{"task": "task"} | job)
    expected = plain(db, one)
    db.cancel(one, delete=True)
    (row,) = db.defer_many(job)
    assert plain(db, row.id) == expected


@pytest.mark.parametrize(
    ("given", "seconds"), [(90, 90), (0.5, 0.5), ("90", 90), ("1 hour 30 minutes", 5400), (-5, -5)]
)
def test_schedule_in_is_seconds_or_an_interval(db, given, seconds):
    before = db.now()
    (row,) = db.defer_many({"schedule_in": given})
    delay = dt.timedelta(seconds=seconds)
    assert before + delay <= db.job(row.id).scheduled_at <= db.now() + delay


def test_the_retry_policy_comes_along(db, worker):
    db.defer_many({"retry": 1})
    assert worker.fail(worker.take()).status == "todo"
    assert worker.fail(worker.take()).status == "failed"


def test_registered_defaults_fill_in_for_each_job(db):
    db.value("register_task", name="a", queue="qa", priority=1)
    db.worker(tasks={"b": {"queue": "qb", "lock": "lb"}})
    rows = db.defer_many({"task": "a"}, {"task": "b"}, {"task": "c"}, {"task": "a", "queue": "x"})
    jobs = [db.job(row.id) for row in rows]
    assert [(job.queue, job.priority, job.lock) for job in jobs] == [
        ("qa", 1, None),
        ("qb", 0, "lb"),
        ("default", 0, None),
        ("x", 1, None),
    ]


@pytest.mark.parametrize(
    ("sqlstate", "bad"),
    [
        ("JQ014", {"task": ""}),
        ("JQ014", {"task": None}),
        ("JQ014", {"queue": "x" * 129}),
        ("JQ014", {"lock": ""}),
        ("JQ014", {"queueing_lock": "x" * 513}),
        ("JQ015", {"priority": -(2**31)}),
        ("22003", {"priority": 2**31}),
        ("JQ013", {"schedule_at": "infinity"}),
        ("JQ013", {"schedule_at": "9999-01-01"}),
        ("JQ013", {"schedule_in": 1e12}),
        ("22023", {"schedule_at": AT, "schedule_in": 5}),
        ("22007", {"schedule_at": "tomorrowish"}),
        ("JQ010", {"args": ["s3cr3t"]}),
        ("JQ010", {"args": "s3cr3t"}),
        ("JQ010", {"headers": 5}),
        ("JQ016", {"arg": {}}),
        ("JQ017", {"retry": {"waits": 3}}),
        ("JQ017", {"retry": -1}),
    ],
    ids=str,
)
@pytest.mark.parametrize("others", [{}, {"queueing_lock": "x"}], ids=["plain", "queueing lock"])
def test_one_bad_job_and_none_is_deferred(db, sqlstate, bad, others):
    with db.refused(sqlstate):
        db.defer_many({"args": {"a": "s3cr3t"}} | others, {"args": {"a": "s3cr3t"}} | bad, {"task": "c"})
    assert db.rows("select * from procrastinate.jobs") == []


def test_an_unknown_key_is_named(db):
    with db.refused("JQ016", "unknown key in a job", detail='"run_at"', hint="schedule_at"):
        db.defer_many({}, {"run_at": AT})


@pytest.mark.parametrize("jobs", [None, {}, "task", 3])
def test_what_is_no_array_is_refused(db, jobs):
    with db.refused("22023", "jobs must be a JSON array", hint="task"):
        db.call("defer_many", jobs=jobs)


@pytest.mark.parametrize("job", [None, 3, "task", ["task"]])
def test_what_is_no_array_of_objects_is_refused(db, job):
    with db.refused("JQ016", "a job must be a JSON object"):
        db.call("defer_many", jobs=[{"task": "task"}, job])


@pytest.mark.parametrize("on_conflict", ["", "skip", None])
def test_an_unknown_on_conflict_is_refused(db, on_conflict):
    with db.refused("22023", "unknown on_conflict"):
        db.defer_many({}, on_conflict=on_conflict)


def test_jobs_of_one_lock_run_in_the_order_of_priority_then_place(db, worker):
    rows = db.defer_many(*({"lock": "l", "priority": p} for p in (0, 5, 5, 9, 0)))
    ids = [row.id for row in rows]
    order = []
    while jobs := worker.fetch(10):
        assert len(jobs) == 1
        order.append(jobs[0].id)
        worker.finish(*jobs)
    assert order == [ids[3], ids[1], ids[2], ids[0], ids[4]]


def test_a_scheduled_job_of_a_batch_does_not_hold_its_lock_back(db, worker):
    _, due = db.defer_many({"lock": "l", "schedule_in": 3600, "priority": 9}, {"lock": "l"})
    assert worker.ids() == [due.id]


def test_a_thousand_jobs_are_deferred_and_fetched_in_order(db, worker):
    rows = db.defer_many(*({"args": {"n": n}} for n in range(1000)))
    assert len({row.id for row in rows}) == 1000
    assert worker.ids(1000) == [row.id for row in rows]


def test_a_rollback_takes_the_batch_with_it(db, session):
    other = session(autocommit=False)
    assert len(other.defer_many({}, {}, {"queueing_lock": "x"})) == 3
    other.conn.rollback()
    assert db.rows("select * from procrastinate.jobs") == []


# Queueing locks


@pytest.mark.scenario(27)
@pytest.mark.parametrize("waiting_before", [True, False])
def test_a_taken_queueing_lock_refuses_the_whole_batch(db, waiting_before):
    if waiting_before:
        db.defer(queueing_lock="x")
    with db.refused("23505", "job 1 with the same queueing lock is waiting" * waiting_before):
        db.defer_many({}, {"queueing_lock": "x"}, {"queueing_lock": "x"})
    assert len(db.rows("select * from procrastinate.jobs")) == waiting_before


def test_ignore_returns_the_id_that_waits(db):
    waiting = db.defer(queueing_lock="x", args={"old": 1})
    rows = db.defer_many(
        {"queueing_lock": "x"}, {"queueing_lock": "y"}, {"queueing_lock": "y"}, {}, on_conflict="ignore"
    )
    assert [row.created for row in rows] == [False, True, False, True]
    assert [row.id for row in rows[:1] + rows[2:3]] == [waiting, rows[1].id]
    assert [row.ord for row in rows] == [1, 2, 3, 4]
    assert db.job(waiting).args == {"old": 1}


def test_of_a_batch_that_replaces_the_last_counts(db):
    rows = db.defer_many(*({"queueing_lock": "x", "args": {"n": n}} for n in range(3)), on_conflict="replace")
    assert [row.created for row in rows] == [True, False, False]
    assert {row.id for row in rows} == {rows[0].id}
    assert db.job(rows[0].id).args == {"n": 2}


def test_a_registered_queueing_lock_counts_too(db):
    db.value("register_task", name="task", queueing_lock="x")
    rows = db.defer_many({}, {}, {"queueing_lock": "y"}, on_conflict="ignore")
    assert [row.created for row in rows] == [True, False, True]
