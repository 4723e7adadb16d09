"""Queueing locks: at most one waiting job each."""

from __future__ import annotations

import datetime as dt

import psycopg
import pytest


def test_a_second_waiting_job_is_refused(db):
    job_id = db.defer(queueing_lock="q")
    with pytest.raises(psycopg.errors.UniqueViolation) as raised:
        db.defer(queueing_lock="q", args={"a": "s3cr3t"})
    diag = raised.value.diag
    assert diag.message_primary == f"job {job_id} with the same queueing lock is waiting"
    assert (diag.constraint_name, diag.schema_name, diag.table_name) == ("jobs_queueing_lock", "procrastinate", "job")
    assert diag.message_detail is None
    assert "on_conflict" in diag.message_hint
    assert len(db.rows("select * from procrastinate.jobs")) == 1


def test_no_value_shows_in_any_part_of_the_error(db, secret):
    db.defer(queueing_lock=secret, args={"a": secret})
    with db.refused("23505"):
        db.defer(queueing_lock=secret, args={"a": secret})


def test_other_locks_and_none_do_not_conflict(db):
    for queueing_lock in ("q", "Q", "q ", None, None, "🦀" * 512, "🦀" * 511 + "x"):
        db.defer(queueing_lock=queueing_lock)
    assert len(db.rows("select * from procrastinate.jobs")) == 7


def test_the_queue_and_the_task_make_no_difference(db):
    db.defer("a", queue="a", queueing_lock="q")
    with db.refused("23505"):
        db.defer("b", queue="b", queueing_lock="q")


def test_a_job_that_runs_is_not_waiting(db, worker):
    running = db.defer(queueing_lock="q")
    worker.take()
    waiting = db.defer(queueing_lock="q")
    with db.refused("23505", f"job {waiting} with the same queueing lock is waiting"):
        db.defer(queueing_lock="q")
    assert db.status(running, waiting) == ["doing", "todo"]
    assert worker.ids() == [waiting], "two may run at once: that is what lock is for"


@pytest.mark.parametrize("kind", ["scheduled", "behind a lock", "for its retry"])
def test_every_way_of_waiting_counts(db, worker, kind):
    if kind == "scheduled":
        db.defer(queueing_lock="q", schedule_in="1 year")
    elif kind == "behind a lock":
        db.defer(lock="l")
        db.defer(lock="l", queueing_lock="q")
        worker.fetch(9)
    else:
        db.defer(queueing_lock="q", retry={"wait": 60})
        worker.fail(worker.take())
    with db.refused("23505"):
        db.defer(queueing_lock="q")


@pytest.mark.scenario(28)
def test_a_lock_is_free_once_its_job_is_over(db, worker):
    db.defer(queueing_lock="q")
    worker.finish(worker.take())
    db.cancel(db.defer(queueing_lock="q"))
    db.cancel(db.defer(queueing_lock="q"), delete=True)
    db.defer(queueing_lock="q")


# ignore and replace


def test_ignore_returns_the_id_that_waits_and_changes_nothing(db):
    job_id = db.defer("old", queueing_lock="q", args={"n": 1})
    before = db.job(job_id)
    again = db.defer("new", queueing_lock="q", args={"n": 2}, priority=9, on_conflict="ignore")
    assert (again, db.job(job_id)) == (job_id, before)
    assert len(db.rows("select * from procrastinate.jobs")) == 1


@pytest.mark.parametrize("on_conflict", ["ignore", "replace"])
def test_where_nothing_waits_a_job_is_deferred(db, worker, on_conflict):
    first = db.defer(queueing_lock="q", on_conflict=on_conflict)
    worker.take()
    second = db.defer(queueing_lock="q", on_conflict=on_conflict)
    assert first != second
    assert db.status(first, second) == ["doing", "todo"]


def test_replace_gives_the_waiting_job_everything_of_the_new_call(db, worker):
    job_id = db.defer("old", queueing_lock="q", args={"n": 1}, queue="old", priority=9, lock="old", headers={"h": 1})
    before = db.job(job_id)
    at = dt.datetime(2040, 1, 1, tzinfo=dt.UTC)
    again = db.defer(
        "new",
        queueing_lock="q",
        args={"n": 2},
        queue="new",
        priority=-1,
        lock="new",
        headers={"h": 2},
        schedule_at=at,
        on_conflict="replace",
    )
    job = db.job(job_id)
    assert again == job_id
    assert (job.task, job.args, job.queue, job.priority) == ("new", {"n": 2}, "new", -1)
    assert (job.lock, job.headers, job.scheduled_at) == ("new", {"h": 2}, at)
    assert (job.status, job.deferred_at) == ("todo", before.deferred_at)
    assert "replaced" in db.events(job_id)
    assert worker.fetch() == []


def test_replace_leaves_nothing_of_the_old_call(db):
    job_id = db.defer(
        queueing_lock="q", args={"n": 1}, queue="old", priority=9, lock="old", headers={"h": 1}, schedule_in="1 hour"
    )
    db.defer(queueing_lock="q", on_conflict="replace")
    job = db.job(job_id)
    assert (job.args, job.queue, job.priority, job.lock) == ({}, "default", 0, None)
    assert (job.headers, job.scheduled_at) == (None, None)


def test_replace_takes_the_policy_too(db, worker):
    db.defer(queueing_lock="q", retry=True)
    db.defer(queueing_lock="q", on_conflict="replace")
    assert worker.fail(worker.take()).status == "failed"


def test_a_replaced_job_keeps_its_place(db, worker):
    first = db.defer(queueing_lock="q")
    second = db.defer()
    db.defer(queueing_lock="q", on_conflict="replace")
    assert worker.ids(9) == [first, second]


def test_a_job_waiting_for_its_retry_is_replaced_at_once(db, worker):
    job_id = db.defer(queueing_lock="q", retry={"wait": 3600})
    worker.fail(worker.take())
    db.defer(queueing_lock="q", on_conflict="replace")
    job = db.job(job_id)
    assert (job.attempts, job.error_class) == (1, None)
    assert worker.ids() == [job_id]


def test_a_replace_rolled_back_never_was(db, session):
    job_id = db.defer(queueing_lock="q", args={"n": 1})
    before = db.job(job_id)
    other = session(autocommit=False)
    assert other.defer(queueing_lock="q", args={"n": 2}, on_conflict="replace") == job_id
    other.conn.rollback()
    assert (db.job(job_id), db.events(job_id)) == (before, ["deferred"])


# Isolation


@pytest.mark.parametrize("on_conflict", ["raise", "ignore", "replace"])
@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_conflict_that_the_snapshot_cannot_see_is_40001(db, session, level, on_conflict):
    other = session(autocommit=False)
    other.conn.execute(f"set transaction isolation level {level}")
    other.rows("select")
    db.defer(queueing_lock="q")
    with other.refused("40001"):
        other.defer(queueing_lock="q", on_conflict=on_conflict)
    other.conn.rollback()
    with other.refused("23505"):
        other.defer(queueing_lock="q")


def test_a_conflict_inside_one_transaction_is_seen_at_any_level(session):
    other = session(autocommit=False)
    other.conn.execute("set transaction isolation level repeatable read")
    job_id = other.defer(queueing_lock="q")
    assert other.defer(queueing_lock="q", on_conflict="ignore") == job_id


# Jobs that come back and find their queueing lock taken


def comes_back(db, worker, job, how):
    """Let a running job go back to its queue, in one of the ways there are."""
    if how == "retried":
        return worker.fail(job, retry={"in": 0})
    if how == "stopped by a shutdown":
        return worker.end(job, "aborted", reason="shutdown", retry={"in": 0})
    if how == "released":
        return worker.end(job, "released")
    if how == "unknown":
        return worker.end(job, "unknown_task")
    if how == "left behind":
        return worker.unregister()
    db.advance("1 hour")
    return db.tick()


RAN = ["retried", "stopped by a shutdown", "rescued"]
NOT_BEGUN = ["released", "unknown", "left behind"]


@pytest.mark.scenario("R3")
@pytest.mark.parametrize("ran_before", [False, True])
@pytest.mark.parametrize("how", RAN + NOT_BEGUN)
def test_it_ends_by_itself(db, how, ran_before):
    worker = db.worker("worker", stalled_after="30 minutes")
    job_id = db.defer("task", queueing_lock="q", lock="l")
    if ran_before:
        worker.fail(worker.take(), retry={"in": 0})
    job = worker.take()
    holder = db.defer("other", queueing_lock="q", schedule_in="2 hours")
    follower = db.defer("follower", lock="l")
    db.worker("expert", tasks={"task": {}}, stalled_after="1 day")
    comes_back(db, worker, job, how)
    after = db.job(job_id)
    never_ran = how in NOT_BEGUN and not ran_before
    assert after.status == ("cancelled" if never_ran else "failed")
    assert (after.error_class, after.attempts) == ("Superseded", (how in RAN) + ran_before)
    assert after.finished_at is not None
    assert db.status(holder) == "todo"
    assert db.worker("last").ids() == [follower], "its lock is free"


def test_the_rest_of_the_batch_goes_on(db, worker, outcome):
    ids = [db.defer(queueing_lock=q, retry=True) for q in ("a", "b", "c")]
    jobs = worker.fetch(3)
    db.defer(queueing_lock="b")
    rows = worker.finish(outcomes=[outcome(job, "failed") for job in jobs])
    assert [(row.verdict, row.status) for row in rows] == [("ok", "todo"), ("ok", "failed"), ("ok", "todo")]
    assert db.status(*ids) == ["todo", "failed", "todo"]


def test_two_of_a_batch_that_want_one_lock_do_not_both_get_it(db, worker, outcome):
    first = db.defer(queueing_lock="q", retry=True)
    a = worker.take()
    second = db.defer(queueing_lock="q", retry=True)
    b = worker.take()
    rows = worker.finish(outcomes=[outcome(b, "failed"), outcome(a, "failed")])
    assert {row.verdict for row in rows} == {"ok"}
    assert sorted(db.status(first, second)) == ["failed", "todo"]


def test_one_that_ends_makes_no_room_for_itself(db, worker):
    job_id = db.defer(queueing_lock="q")
    job = worker.take()
    db.defer(queueing_lock="q")
    assert worker.succeed(job).status == "succeeded"
    assert db.status(job_id) == "succeeded"


@pytest.mark.parametrize("commit", [True, False])
@pytest.mark.parametrize("how", ["retried", "released"])
def test_while_an_open_transaction_wants_the_lock_nothing_is_decided(db, worker, session, how, commit):
    job_id = db.defer(queueing_lock="q")
    job = worker.take()
    other = session(autocommit=False)
    other.defer(queueing_lock="q")
    verdict = comes_back(db, worker, job, how)
    assert (verdict.verdict, verdict.sqlstate) == ("refused", "55P03")
    assert db.status(job_id) == "doing"
    other.conn.commit() if commit else other.conn.rollback()
    verdict = comes_back(db, worker, job, how)
    ended = "failed" if how == "retried" else "cancelled"
    assert (verdict.verdict, verdict.status) == ("ok", ended if commit else "todo")


@pytest.mark.parametrize("commit", [True, False])
@pytest.mark.parametrize("leaving", [True, False])
def test_a_rescue_waits_for_the_open_transaction_too(db, worker, session, leaving, commit):
    job_id = db.defer(queueing_lock="q")
    worker.take()
    other = session(autocommit=False)
    other.defer(queueing_lock="q")
    if leaving:
        assert worker.unregister() == 0
    db.advance("1 hour")
    assert (db.tick(), db.status(job_id)) == ([], "doing")
    other.conn.commit() if commit else other.conn.rollback()
    assert db.tick() == [("failed" if commit else "rescued", job_id)]


def test_an_operator_is_told_to_try_again_meanwhile(db, worker, session):
    job_id = db.defer(queueing_lock="q")
    worker.take()
    other = session(autocommit=False)
    other.defer(queueing_lock="q")
    with db.refused("55P03", hint="Try again"):
        db.retry(job_id)
    assert db.status(job_id) == "doing"
