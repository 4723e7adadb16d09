"""Cancelling jobs that wait, and asking running ones to stop."""

from __future__ import annotations

import pytest


def waiting(db, worker, how):
    """Return the id of a job that waits in this way."""
    if how == "ready":
        return db.defer()
    if how == "scheduled":
        return db.defer(schedule_in="1 year")
    if how == "behind its lock":
        db.defer(lock="l")
        job_id = db.defer(lock="l")
        assert worker.ids(9) != [job_id]
        return job_id
    if how == "ahead of its lock":
        db.defer(lock="l")
        worker.take()
        job_id = db.defer(lock="l", priority=1)
        assert worker.fetch() == []
        return job_id
    job_id = db.defer(lock="l", retry={"wait": 3600})
    worker.fail(worker.take())
    return job_id


WAITING = ["ready", "scheduled", "behind its lock", "ahead of its lock", "for its retry"]


@pytest.mark.scenario(38)
@pytest.mark.parametrize("how", WAITING)
@pytest.mark.parametrize("abort", [False, True])
def test_a_waiting_job_is_cancelled_and_never_runs(db, worker, how, abort):
    job_id = waiting(db, worker, how)
    before = db.job(job_id)
    assert db.cancel(job_id, abort=abort) == "cancelled"
    after = db.job(job_id)
    assert (after.status, after.abort_requested) == ("cancelled", False)
    assert before.deferred_at <= after.finished_at <= db.now()
    assert after._replace(status="todo", finished_at=None) == before
    db.advance("2 years")
    assert job_id not in worker.ids(9)


@pytest.mark.scenario(39)
@pytest.mark.parametrize("how", WAITING)
def test_a_deleted_job_is_gone_with_its_story(db, worker, how):
    job_id = waiting(db, worker, how)
    assert db.cancel(job_id, delete=True) == "deleted"
    assert (db.job(job_id), db.events(job_id)) == (None, [])


@pytest.mark.scenario(40)
@pytest.mark.parametrize("options", [{}, {"abort": True}, {"delete": True}])
def test_there_is_nothing_to_cancel_where_there_is_no_job(db, options):
    assert db.cancel(77, **options) is None
    assert db.cancel(None, **options) is None


@pytest.mark.parametrize("kind", ["succeeded", "failed", "aborted", "cancelled"])
@pytest.mark.parametrize("options", [{}, {"abort": True}, {"delete": True}])
def test_there_is_nothing_to_cancel_once_a_job_has_ended(db, worker, kind, options):
    job_id = db.defer()
    if kind == "cancelled":
        db.cancel(job_id)
    else:
        worker.end(worker.take(), kind)
    before = db.job(job_id)
    assert db.cancel(job_id, **options) is None
    assert db.job(job_id) == before


@pytest.mark.parametrize("options", [{}, {"delete": True}])
def test_a_running_job_is_left_alone_unless_an_abort_is_asked_for(db, worker, options):
    job_id = db.defer()
    worker.take()
    before = db.job(job_id)
    assert db.cancel(job_id, **options) is None
    assert (db.job(job_id), worker.heartbeat().abort) == (before, [])


def test_whoever_leaves_a_running_job_alone_is_not_in_its_workers_way(db, worker, session):
    job_id = db.defer()
    job = worker.take()
    other = session(autocommit=False)
    assert other.cancel(job_id) is None
    assert worker.succeed(job).verdict == "ok"
    other.conn.rollback()
    assert db.status(job_id) == "succeeded"


@pytest.mark.parametrize("delete", [False, True])
def test_a_running_job_is_asked_to_stop_and_goes_on_until_it_does(db, worker, delete):
    job_id = db.defer()
    job = worker.take()
    assert db.cancel(job_id, abort=True, delete=delete) == "abort_requested"
    assert (db.status(job_id), db.job(job_id).abort_requested) == ("doing", True)
    assert worker.finish(job)[0].verdict == "ok"


def test_asking_twice_is_asking_once(db, worker):
    job_id = db.defer()
    worker.take()
    assert [db.cancel(job_id, abort=True) for _ in range(3)] == ["abort_requested"] * 3
    assert db.events(job_id).count("abort_requested") == 1


def test_cancelling_is_part_of_the_callers_transaction(db, worker, session):
    waiting, running = db.defer(), db.defer(priority=1)
    worker.take()
    other = session(autocommit=False)
    assert other.cancel(waiting) == "cancelled"
    assert other.cancel(running, abort=True) == "abort_requested"
    assert (db.status(waiting), worker.heartbeat().abort) == ("todo", [])
    other.conn.rollback()
    assert (db.status(waiting), worker.heartbeat().abort) == ("todo", [])
    assert worker.ids() == [waiting]


def test_cancelling_frees_the_queueing_lock(db):
    job_id = db.defer(queueing_lock="q")
    db.cancel(job_id)
    assert db.defer(queueing_lock="q") != job_id


def test_a_cancelled_job_keeps_what_its_runs_left(db, worker):
    job_id = db.defer(retry=True)
    worker.fail(worker.take(), "KeyError")
    db.cancel(job_id)
    job = db.job(job_id)
    assert (job.status, job.attempts, job.error_class) == ("cancelled", 1, "KeyError")


def test_an_unknown_option_is_refused(db):
    job_id = db.defer()
    with db.refused("JQ016", "unknown key in options", detail='"force"'):
        db.cancel(job_id, options={"force": True})
    assert db.status(job_id) == "todo"
