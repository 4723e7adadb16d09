"""A worker that fetched a job whose task it does not know."""

from __future__ import annotations

import datetime as dt

import pytest

KNOWS = {"tasks": {"task": {}}}


def test_the_job_goes_back_to_a_live_worker_that_knows_it(db, worker):
    expert = db.worker("expert", **KNOWS)
    job_id = db.defer("task")
    verdict = worker.end(worker.take(), "unknown_task")
    assert (verdict.verdict, verdict.status) == ("ok", "todo")
    job = db.job(job_id)
    assert (job.status, job.attempts, job.worker_id) == ("todo", 0, None)
    db.advance("1 second")
    assert expert.ids() == [job_id]


def test_it_does_not_come_back_at_once_to_who_does_not_know_it(db, worker):
    db.worker("expert", **KNOWS)
    job_id = db.defer("task")
    verdict = worker.end(worker.take(), "unknown_task")
    wait = verdict.retry_at - db.now()
    assert dt.timedelta(0) < wait <= dt.timedelta(seconds=1)
    assert worker.fetch() == []
    assert db.job(job_id).scheduled_at is None


def test_the_job_fails_where_nobody_knows_it(db, worker):
    db.worker("other", tasks={"other": {}})
    job_id = db.defer("task", retry=True)
    error = {"class": "TaskNotFound", "message": "no such task"}
    verdict = worker.end(worker.take(), "unknown_task", error=error)
    assert (verdict.verdict, verdict.status) == ("ok", "failed")
    job = db.job(job_id)
    assert (job.status, job.attempts, job.error_class) == ("failed", 1, "TaskNotFound")


def test_a_worker_is_not_asked_to_know_what_it_says_it_does_not(db):
    worker = db.worker(**KNOWS)
    job_id = db.defer("task")
    worker.end(worker.take(), "unknown_task")
    assert db.status(job_id) == "failed"


def test_a_dead_worker_knows_nothing(db):
    db.worker("dead", **KNOWS)
    db.advance("1 hour")
    worker = db.worker()
    job_id = db.defer("task")
    worker.end(worker.take(), "unknown_task")
    assert db.status(job_id) == "failed"


@pytest.mark.parametrize(("queues", "status"), [(["q"], "todo"), (None, "todo"), (["other"], "failed"), ([], "failed")])
def test_a_worker_that_does_not_serve_the_queue_is_no_help(db, worker, queues, status):
    db.worker("expert", queues=queues, **KNOWS)
    job_id = db.defer("task", queue="q")
    worker.end(worker.take(), "unknown_task")
    assert db.status(job_id) == status


def test_its_lock_is_free_meanwhile_for_others(db, worker):
    db.worker("expert", **KNOWS)
    job_id, other = db.defer("task", lock="l"), db.defer("other", lock="l")
    worker.end(worker.take(), "unknown_task")
    assert (db.status(job_id), worker.ids(9)) == ("todo", [other])


@pytest.mark.parametrize("more", [{}, {"queueing_lock": "q"}, {"lock": "l"}])
@pytest.mark.parametrize("schedule_in", [None, "1 hour"])
def test_when_it_was_due_is_not_forgotten(db, worker, more, schedule_in):
    expert = db.worker("expert", stalled_after="1 day", **KNOWS)
    job_id = db.defer("task", schedule_in=schedule_in, **more)
    due = db.job(job_id).scheduled_at
    db.advance("2 hours")
    for _ in range(2):
        worker.end(worker.take(), "unknown_task")
        assert db.job(job_id).scheduled_at == due
        db.advance("1 second")
    run = expert.take()
    assert (run.id, run.scheduled_at) == (job_id, due)
    expert.finish(run)
    job = db.job(job_id)
    assert (job.scheduled_at, job.attempts, job.error_class) == (due, 1, None)
    assert db.events(job_id) == ["deferred", "started", "succeeded"]
    assert db.one("select error from procrastinate.done") is None


def test_nor_is_its_last_error(db, worker):
    expert = db.worker("expert", stalled_after="1 day", **KNOWS)
    job_id = db.defer("task", retry={"wait": 60})
    due = expert.fail(expert.take()).retry_at
    db.advance("1 hour")
    worker.end(worker.take(), "unknown_task")
    assert db.job(job_id).error_class == "ValueError"
    db.advance("1 second")
    assert expert.take().scheduled_at == due
    assert db.job(job_id).error_class == "ValueError"


@pytest.mark.parametrize("more", [{}, {"queueing_lock": "q"}])
def test_one_that_is_cancelled_meanwhile(db, worker, more):
    db.worker("expert", **KNOWS)
    job_id = db.defer("task", **more)
    worker.end(worker.take(), "unknown_task")
    assert db.cancel(job_id) == "cancelled"
    assert db.job(job_id).scheduled_at is None
    assert "scheduled" not in [row.type for row in db.rows("select type from procrastinate.events")]
    assert db.one("select error from procrastinate.done") is None
