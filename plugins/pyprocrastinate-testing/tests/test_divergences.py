"""
Where the test double of Procrastinate does other than its database; this one does as the schema.
"""

from __future__ import annotations

import pytest

from pyprocrastinate import exceptions, operations
from pyprocrastinate.operations import Call, Outcomes


@pytest.fixture
def worker(queue):
    """Return the id of a worker of queue q."""
    tasks = '{"t": {"retry": 3}}'
    return queue.run(
        Call("register_worker_v1", {"name": "w", "queues": ["q"], "tasks": tasks}, lambda rows: rows[0][0])
    )


def fetch(queue, worker):
    """Return the next job, and its token; None if there is none."""
    nothing = Outcomes((), (), (), True)
    work = queue.run_for_worker(operations.work(worker, nothing, capacity=1, extra=0, scan=None))
    return work.claims[0][:2] if work.claims else None


def end(queue, worker, run, outcome):
    """Return the verdict."""
    described = [f'{{"id": {run[0]}, "token": {run[1]}, "outcome": "{outcome}"}}']
    (verdict,) = queue.run_for_worker(operations.finish(worker, Outcomes((), (), described, True)))
    return verdict


def defer(connector, **options):
    return connector.run(Call("defer", {"task": "t", "queue": "q"} | options, lambda rows: rows[0][0]))


def test_a_job_waits_for_a_better_one_under_its_lock_even_in_a_queue_that_is_not_served(app, queue, worker):
    other = defer(queue, lock="x", queue="elsewhere")
    behind = defer(queue, lock="x")
    assert fetch(queue, worker) is None
    app.job_manager.cancel_job_by_id(other)
    assert fetch(queue, worker)[0] == behind


def test_a_job_that_waits_for_its_retry_holds_its_lock(queue, worker):
    first = defer(queue, lock="x", retry='{"wait": 60}')
    second = defer(queue, lock="x")
    assert end(queue, worker, fetch(queue, worker), "failed")["status"] == "todo"
    assert fetch(queue, worker) is None
    queue.advance(60)
    run = fetch(queue, worker)
    assert run[0] == first
    assert end(queue, worker, run, "succeeded")["status"] == "succeeded"
    assert fetch(queue, worker)[0] == second


def test_a_cancelled_job_has_an_event(app, queue):
    job_id = defer(queue)
    assert app.job_manager.cancel_job_by_id(job_id)
    assert [event["type"] for event in queue.events[job_id]] == ["deferred", "cancelled"]


def test_an_unknown_id_is_no_key_error(app):
    jobs = app.job_manager
    assert jobs.cancel_job_by_id(7) is False
    with pytest.raises(exceptions.JobNotFound):
        jobs.get_job_status(7)
    with pytest.raises(exceptions.JobNotFound):
        jobs.retry_job_by_id(7)
    assert list(jobs.list_jobs(id=7)) == []


def test_no_tick_fires_twice_not_even_one_before_the_last(queue):
    schedules = '[{"name": "report", "task": "report", "cron": "0 * * * *", "max_delay": 86400}]'
    declare = Call("register_worker_v1", {"name": "w", "queues": [], "schedules": schedules}, lambda rows: rows[0][0])
    tick = Call("tick_v1", {}, len)

    def fired():
        return [job["args"]["timestamp"] for job in queue.jobs.values()]

    worker = queue.run(declare)
    queue.advance(3 * 3600)
    queue.run_for_worker(operations.heartbeat(worker))
    queue.run(tick)
    ticks = fired()
    assert ticks == sorted(set(ticks))
    assert len(ticks) >= 3
    assert queue.periodic_defers == {("report", ""): ticks[-1]}
    # who declares it next starts after the last one, though it would catch up with a whole day
    queue.run(declare)
    queue.run(tick)
    assert fired() == ticks


def test_what_a_user_asked_to_abort_is_not_retried(app, queue, worker):
    job_id = defer(queue)
    run = fetch(queue, worker)
    app.job_manager.cancel_job_by_id(job_id, abort=True)
    assert queue.jobs[job_id]["abort_requested"]
    assert end(queue, worker, run, "failed")["status"] == "failed"
    assert not queue.jobs[job_id]["abort_requested"]


def test_an_operators_retry_clears_the_request_to_abort(app, queue, worker):
    job_id = defer(queue)
    run = fetch(queue, worker)
    app.job_manager.cancel_job_by_id(job_id, abort=True)
    app.job_manager.retry_job_by_id(job_id)
    assert (queue.jobs[job_id]["status"], queue.jobs[job_id]["abort_requested"]) == ("todo", False)
    assert end(queue, worker, run, "aborted")["verdict"] == "stale"
