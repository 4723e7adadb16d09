"""`retry`: an operator puts a job back, whatever its policy says."""

from __future__ import annotations

import datetime as dt

import pytest


def ended(db, worker, kind, **options):
    """Return the id of a job that ended so."""
    job_id = db.defer(**options)
    if kind == "cancelled":
        db.cancel(job_id)
    else:
        worker.end(worker.take(), kind, error={"class": "E"})
    assert db.status(job_id) == kind
    return job_id


KINDS = ["succeeded", "failed", "aborted", "cancelled"]


@pytest.mark.scenario("R4")
@pytest.mark.parametrize("kind", KINDS)
def test_a_job_that_has_ended_runs_again(db, worker, kind):
    job_id = ended(db, worker, kind, args={"a": 1}, queue="q", priority=3, lock="l")
    before = db.job(job_id)
    assert db.retry(job_id) is True
    job = db.job(job_id)
    assert (job.status, job.finished_at, job.result) == ("todo", None, None)
    assert (job.attempts, job.deferred_at) == (before.attempts, before.deferred_at)
    assert (job.args, job.queue, job.priority, job.lock) == ({"a": 1}, "q", 3, "l")
    fetched = worker.take()
    assert (fetched.id, fetched.attempts) == (job_id, before.attempts)
    worker.finish(fetched)
    assert (db.status(job_id), db.job(job_id).attempts) == ("succeeded", before.attempts + 1)


@pytest.mark.parametrize("queueing_lock", [None, "q"])
def test_a_running_job_is_taken_from_its_worker(db, queueing_lock):
    one, two = db.worker("one"), db.worker("two")
    job_id = db.defer(queueing_lock=queueing_lock)
    old = one.take()
    assert db.retry(job_id) is True
    assert (db.status(job_id), db.job(job_id).attempts) == ("todo", 1)
    assert one.finish(old)[0].verdict == "stale"
    new = two.take()
    assert (new.id, new.attempts) == (job_id, 1)
    assert one.fail(old).verdict == "stale"
    assert two.finish(new)[0].verdict == "ok"


def test_taking_a_running_job_away_frees_its_lock(db, worker):
    job_id = db.defer(lock="l", priority=-1)
    worker.take()
    other = db.defer(lock="l")
    assert worker.fetch() == []
    db.retry(job_id)
    assert worker.ids(9) == [other]


def test_taking_a_running_job_away_ends_its_abort_request(db, worker):
    job_id = db.defer()
    worker.take()
    db.cancel(job_id, abort=True)
    db.retry(job_id)
    assert worker.heartbeat().abort == []
    assert worker.take().abort_requested is False


@pytest.mark.parametrize("schedule_in", [None, "1 hour"])
def test_a_waiting_job_cannot_be_retried(db, schedule_in):
    job_id = db.defer(schedule_in=schedule_in)
    with db.refused("JQ003", f"job {job_id} is waiting", detail="todo"):
        db.retry(job_id)


def test_there_is_nothing_to_retry_where_there_is_no_job(db):
    assert db.retry(77) is False
    assert db.retry(None) is False


def test_a_retry_is_part_of_the_callers_transaction(db, worker, session):
    job_id = ended(db, worker, "failed")
    before = db.job(job_id)
    other = session(autocommit=False)
    assert other.retry(job_id) is True
    assert worker.fetch() == []
    other.conn.rollback()
    assert db.job(job_id) == before


# When and where


@pytest.mark.parametrize("kind", [*KINDS, "doing"])
def test_a_retry_may_wait_and_move(db, worker, kind):
    job_id = db.defer() if kind == "doing" else ended(db, worker, kind)
    if kind == "doing":
        worker.take()
    assert db.retry(job_id, schedule_in="1 hour", queue="new", priority=7, lock="m") is True
    job = db.job(job_id)
    assert (job.queue, job.priority, job.lock) == ("new", 7, "m")
    assert abs(job.scheduled_at - db.now() - dt.timedelta(hours=1)) < dt.timedelta(minutes=1)
    assert worker.fetch() == []
    db.advance("1 hour")
    assert worker.ids() == [job_id]


def test_a_retry_may_be_given_a_time(db, worker):
    job_id = ended(db, worker, "failed")
    at = dt.datetime(2040, 1, 1, tzinfo=dt.UTC)
    db.retry(job_id, schedule_at=at)
    assert db.job(job_id).scheduled_at == at


def test_without_a_time_it_runs_at_once_even_if_it_was_scheduled_for_later(db, worker):
    job_id = ended(db, worker, "cancelled", schedule_in="1 year")
    db.retry(job_id)
    assert worker.ids() == [job_id]


@pytest.mark.parametrize(
    ("sqlstate", "bad"),
    [
        ("22023", {"schedule_in": "1 hour", "schedule_at": "2040-01-01"}),
        ("JQ013", {"schedule_at": "infinity"}),
        ("JQ013", {"schedule_at": "-infinity"}),
        ("JQ013", {"schedule_at": "9001-01-01"}),
        ("JQ013", {"schedule_in": "100000 years"}),
        ("JQ014", {"queue": ""}),
        ("JQ014", {"queue": "x" * 129}),
        ("JQ014", {"lock": ""}),
        ("JQ014", {"lock": "x" * 513}),
        ("JQ015", {"priority": -(2**31)}),
        ("JQ016", {"options": {"force": True}}),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["failed", "doing"])
def test_what_no_job_could_have_is_refused_and_changes_nothing(db, worker, sqlstate, bad, kind):
    job_id = db.defer() if kind == "doing" else ended(db, worker, kind)
    if kind == "doing":
        worker.take()
    before = db.job(job_id)
    with db.refused(sqlstate):
        db.retry(job_id, **bad)
    assert db.job(job_id) == before


# Queueing locks


@pytest.mark.parametrize("kind", [*KINDS, "doing"])
def test_a_taken_queueing_lock_refuses_the_retry_and_changes_nothing(db, worker, kind):
    if kind == "doing":
        job_id = db.defer(queueing_lock="q")
        worker.take()
    else:
        job_id = ended(db, worker, kind, queueing_lock="q")
    before = db.job(job_id)
    holder = db.defer(queueing_lock="q", schedule_in="1 hour")
    message = f"job {holder} with the same queueing lock is waiting"
    with db.refused("23505", message, hint="cancel") as _:
        db.retry(job_id)
    assert db.job(job_id) == before
    db.cancel(holder)
    assert db.retry(job_id) is True


def test_the_retried_job_holds_its_queueing_lock_again(db, worker):
    job_id = ended(db, worker, "failed", queueing_lock="q")
    db.retry(job_id)
    with db.refused("23505", f"job {job_id} with the same queueing lock is waiting"):
        db.defer(queueing_lock="q")
