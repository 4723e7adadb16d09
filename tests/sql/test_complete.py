"""`complete_v1`: a job ends in the same transaction as what it did."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def ledger(db):
    """Make a table of the user's own."""
    db.conn.execute("create table public.ledger (job_id bigint)")
    yield
    db.conn.execute("drop table public.ledger")


def run(db, job, result=None):
    """Do what a task does: write, and complete the job beside it."""
    with db.conn.transaction():
        db.conn.execute("insert into public.ledger values (%s)", [job.id])
        db.call("complete_v1", job_id=job.id, token=job.token, result=result)


def effects(db, job_id):
    return db.one("select count(*) from public.ledger where job_id = %s", job_id)


def test_the_job_ends_with_the_commit(db, worker, session):
    job_id = db.defer()
    job = worker.take()
    run(session(), job, result={"n": 1})
    after = db.job(job_id)
    assert (after.status, after.attempts, after.result) == ("succeeded", 1, {"n": 1})
    assert (after.worker_id, effects(db, job_id)) == (worker.id, 1)


def test_it_does_not_end_with_a_rollback(db, worker, session):
    job_id = db.defer()
    job = worker.take()
    other = session(autocommit=False)
    other.call("complete_v1", job_id=job.id, token=job.token)
    other.conn.rollback()
    assert db.status(job_id) == "doing"
    run(session(), job)
    assert (db.status(job_id), effects(db, job_id)) == ("succeeded", 1)


def test_a_result_may_be_left_out(db, worker):
    job_id = db.defer()
    run(db, worker.take())
    assert db.job(job_id).result is None


def test_what_the_worker_reports_afterwards_changes_nothing(db, worker):
    job_id = db.defer(retry=True)
    job = worker.take()
    run(db, job)
    for kind in ("succeeded", "failed", "aborted", "released"):
        verdict = worker.end(job, kind)
        assert (verdict.verdict, verdict.status) == ("already", "succeeded")
    assert worker.finish(job)[0].verdict == "already"
    assert (db.status(job_id), db.job(job_id).attempts) == ("succeeded", 1)


@pytest.mark.parametrize("plain", [True, False])
def test_a_worker_that_keeps_nothing_makes_it_forgotten(db, worker, outcome, plain):
    job_id = db.defer(retry=True)
    worker.fail(worker.take())
    job = worker.take()
    run(db, job)
    if plain:
        (verdict,) = worker.finish(job, keep=False)
    else:
        verdict = worker.end(job, "succeeded", keep=False)
    assert verdict.verdict == "already"
    assert (db.job(job_id), db.events(job_id)) == (None, [])


@pytest.mark.parametrize("how", ["finished", "released", "rescued", "retried", "gone", "forged"])
def test_a_run_that_lost_its_job_has_no_effect(db, worker, session, how):
    job_id = db.defer(retry=True)
    job = worker.take()
    if how == "finished":
        worker.finish(job)
    elif how == "released":
        worker.end(job, "released")
    elif how == "rescued":
        db.advance("1 hour")
        db.tick()
    elif how == "retried":
        db.retry(job_id)
    elif how == "gone":
        worker.finish(job, keep=False)
    else:
        job = job._replace(token=job.token + 1)
    before = db.job(job_id)
    with db.refused("JQ002", f"job {job_id} is not held under this token", hint="Roll back"):
        run(session(), job)
    assert (db.job(job_id), effects(db, job_id)) == (before, 0)


def test_two_runs_of_a_job_have_one_effect(db, session):
    one, two = db.worker("one"), db.worker("two")
    job_id = db.defer()
    first = one.take()
    db.advance("1 hour")
    two.heartbeat()
    db.tick()
    second = two.take()
    with db.refused("JQ002"):
        run(session(), first)
    run(session(), second)
    assert (db.status(job_id), effects(db, job_id)) == ("succeeded", 1)


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_any_isolation_level_will_do(db, worker, session, level):
    job_id = db.defer()
    job = worker.take()
    other = session(autocommit=False)
    other.conn.execute(f"set transaction isolation level {level}")
    other.call("complete_v1", job_id=job.id, token=job.token)
    other.conn.commit()
    assert db.status(job_id) == "succeeded"


def test_the_lock_is_free_once_the_transaction_ends(db, worker, session):
    db.defer(lock="l")
    second = db.defer(lock="l")
    job = worker.take()
    other = session(autocommit=False)
    other.call("complete_v1", job_id=job.id, token=job.token)
    assert worker.fetch() == []
    other.conn.commit()
    assert worker.ids() == [second]


def test_a_job_may_defer_the_next_one_as_it_completes(db, worker):
    db.defer(queueing_lock="q")
    job = worker.take()
    with db.conn.transaction():
        follower = db.defer(queueing_lock="q")
        db.call("complete_v1", job_id=job.id, token=job.token)
    assert worker.ids() == [follower]
