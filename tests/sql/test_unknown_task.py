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
    assert db.job(job_id).scheduled_at == verdict.retry_at


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
