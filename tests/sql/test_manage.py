"""An operator's functions: ending a run from outside, counting, and looking for silent workers."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("status", ["succeeded", "failed", "aborted"])
def test_a_running_job_is_ended_without_its_worker(db, status):
    first = db.defer(lock="l")
    second = db.defer(lock="l")
    worker = db.worker()
    job = worker.take()
    assert db.value("finish_job_v1", job_id=first, status=status) is True
    assert db.job(first).status == status
    assert db.job(first).attempts == 1
    assert worker.ids() == [second]
    assert [row.verdict for row in worker.finish(job)] == ["stale"]
    assert db.job(first).status == status


def test_it_may_be_forgotten(db):
    job_id = db.defer()
    db.worker().take()
    assert db.value("finish_job_v1", job_id=job_id, status="failed", delete=True) is True
    assert db.job(job_id) is None
    assert db.events(job_id) == []


def test_only_a_running_job_can_be_ended(db):
    waiting = db.defer()
    with db.refused("JQ003"):
        db.value("finish_job_v1", job_id=waiting, status="failed")
    db.cancel(waiting)
    with db.refused("JQ003"):
        db.value("finish_job_v1", job_id=waiting, status="failed")
    assert db.value("finish_job_v1", job_id=99, status="failed") is False


@pytest.mark.parametrize("status", ["todo", "cancelled", None])
def test_a_run_ends_in_one_of_three_ways(db, status):
    job_id = db.defer()
    db.worker().take()
    with db.refused("22023"):
        db.value("finish_job_v1", job_id=job_id, status=status)


def test_jobs_are_counted(db):
    db.defer("a", queue="q1", lock="l")
    db.defer("b", queue="q1", lock="l")
    db.cancel(db.defer("a", queue="q2"))
    worker = db.worker(queues=["q1"])
    worker.finish(worker.take())

    def counts(by, **filters):
        return {
            row.name: (row.jobs_count, row.todo, row.succeeded, row.cancelled)
            for row in db.call("count_jobs_v1", by=by, **filters)
        }

    assert counts("queue") == {"q1": (2, 1, 1, 0), "q2": (1, 0, 0, 1)}
    assert counts("task") == {"a": (2, 0, 1, 1), "b": (1, 1, 0, 0)}
    assert counts("lock") == {"l": (2, 1, 1, 0)}
    assert counts("queue", task="a", status="cancelled") == {"q2": (1, 0, 0, 1)}
    assert counts("task", queue="q1", lock="l") == {"a": (1, 0, 1, 0), "b": (1, 1, 0, 0)}
    with db.refused("22023"):
        counts("colour")


def test_jobs_of_silent_workers_are_listed(db):
    db.conn.execute("select procrastinate.enable_test_clock()")
    first, second = db.defer("a"), db.defer("b", queue="q")
    worker = db.worker(stalled_after="1 hour")
    worker.ids(2)

    def stalled(**options):
        return [row.id for row in db.call("stalled_jobs_v1", **options)]

    assert stalled(silent_for="30 s") == []
    db.advance("1 minute")
    assert stalled(silent_for="30 s") == [first, second]
    assert stalled(silent_for="30 s", queue="q") == [second]
    assert stalled(silent_for="30 s", task="a") == [first]
    assert stalled(silent_for="2 minutes") == []
