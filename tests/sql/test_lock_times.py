"""What the times of jobs tell about their lock."""

from __future__ import annotations


def test_a_job_starts_no_earlier_than_its_lock_was_freed(db, worker):
    first, second = (db.defer(lock="l") for _ in range(2))
    ((next_job,), _) = worker.work(worker.take(), capacity=1)
    assert next_job.id == second
    assert db.job(second).started_at >= db.job(first).finished_at
